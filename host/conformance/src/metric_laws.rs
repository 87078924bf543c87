//! Tests of the algebraic laws that allow a metric to be computed on several ranks.

use crate::batch::{Form, Tokens};
use crate::setup::Setup;
use crate::state;
use crate::subject::{Failure, Metric, Subject, tolerate};
use crate::test::{Stop, Test, Topic, Verdict, fault};
use host_plugin::PluginKind;

const TOPIC: Topic = Topic {
    name: "metric laws",
    kinds: &[PluginKind::Metric],
};
/// Number of batches.
const BATCHES: usize = 12;
/// Largest accepted relative difference between two computations of the same value.
const NEAR: f64 = 1e-12;

pub(super) const TESTS: &[Test] = &[
    TOPIC.test(
        "merge-equals-whole",
        "merged parts give the same values as the whole",
        merge_equals_whole,
    ),
    TOPIC.test(
        "batch-order",
        "the order of the batches does not matter",
        batch_order,
    ),
    TOPIC.test(
        "merge-order",
        "the order of the merges does not matter",
        merge_order,
    ),
    TOPIC.test(
        "merge-empty",
        "merging an empty state changes nothing",
        merge_empty,
    ),
    TOPIC.test(
        "reset-equals-new",
        "a metric after a reset equals a new metric",
        reset_equals_new,
    ),
    TOPIC.test(
        "export-changes-nothing",
        "exporting the state does not change it",
        export_changes_nothing,
    ),
    TOPIC.test(
        "compute-repeats",
        "computing again gives the same values",
        compute_repeats,
    ),
    TOPIC.test(
        "compute-of-nothing",
        "computing before the first batch gives values or an error",
        compute_of_nothing,
    ),
    TOPIC.test(
        "truncated-state",
        "a truncated or extended state is rejected and changes nothing",
        |setup| state::truncated(&mut tried(setup)?),
    ),
    TOPIC.test(
        "foreign-state",
        "a state of another version is rejected",
        |setup| state::foreign(&mut tried(setup)?),
    ),
    TOPIC.test(
        "random-state",
        "random bytes as a state do not crash the plugin",
        |setup| state::random(&mut tried(setup)?, &mut setup.random()),
    ),
    TOPIC.test(
        "state-refusals-have-reasons",
        "the rejection of a state reports a reason",
        |setup| state::has_reasons(&mut tried(setup)?),
    ),
];

/// A loaded plugin, and batches for its metrics.
struct Lab {
    subject: Subject,
    tokens: Vec<Tokens>,
}

impl Lab {
    fn new(setup: &Setup) -> Result<Self, Stop> {
        Ok(Self {
            subject: Subject::load(setup)?,
            tokens: Tokens::several(&mut setup.random(), BATCHES),
        })
    }

    fn new_metric(&self) -> Result<Metric, Stop> {
        self.subject.metric()
    }

    fn feed<'a>(&self, metric: &Metric, tokens: impl IntoIterator<Item = &'a Tokens>) -> Verdict {
        for tokens in tokens {
            let batch = tokens.batch(&self.subject.manifest().needs, &Form::default())?;
            metric.update(batch.raw(), "an ordinary batch")?;
        }
        Ok(())
    }

    fn fed<'a>(&self, tokens: impl IntoIterator<Item = &'a Tokens>) -> Result<Metric, Stop> {
        let metric = self.new_metric()?;
        self.feed(&metric, tokens)?;
        Ok(metric)
    }

    /// Splits the batches into the given number of parts, and returns the metric's state for each part.
    fn states(&self, parts: usize) -> Result<Vec<Vec<u8>>, Stop> {
        self.tokens
            .chunks(self.tokens.len().div_ceil(parts))
            .map(|part| Ok(self.fed(part)?.export_state()?))
            .collect()
    }

    fn merged<'a>(&self, states: impl IntoIterator<Item = &'a Vec<u8>>) -> Result<Metric, Stop> {
        let metric = self.new_metric()?;
        for state in states {
            metric.merge_state(state, "a state that another instance exported")?;
        }
        Ok(metric)
    }

    fn whole(&self) -> Result<Vec<(String, f64)>, Stop> {
        Ok(self.fed(&self.tokens)?.compute()?)
    }
}

/// Returns whether two computations agree. The names must be equal. The relative difference of the numbers
/// must be at most 1e-12.
pub(super) fn same(left: &[(String, f64)], right: &[(String, f64)]) -> bool {
    let near = |a: f64, b: f64| {
        let is_close = || (a - b).abs() <= NEAR * a.abs().max(b.abs());
        a == b || a.is_nan() && b.is_nan() || a.is_finite() && b.is_finite() && is_close()
    };
    left.len() == right.len()
        && left
            .iter()
            .zip(right)
            .all(|((name, a), (other, b))| name == other && near(*a, *b))
}

/// Formats the first values for a message.
pub(super) fn values(values: &[(String, f64)]) -> String {
    let shown: Vec<String> = values
        .iter()
        .take(3)
        .map(|(name, value)| format!("{name} = {value}"))
        .collect();
    match shown.is_empty() {
        true => "nothing".to_owned(),
        false => shown.join(", "),
    }
}

fn expect(
    one: &[(String, f64)],
    other: &[(String, f64)],
    ways: (&str, &str),
    expects: &str,
    fix: &str,
) -> Verdict {
    match same(one, other) {
        true => Ok(()),
        false => Err(fault(
            format!(
                "computed {} {}, but {} {}",
                values(one),
                ways.0,
                values(other),
                ways.1
            ),
            expects,
            fix,
        )),
    }
}

const KEEP_SUMS: &str =
    "keep sums and counts in the state and divide in compute; a mean of means is wrong";

fn merge_equals_whole(setup: &Setup) -> Verdict {
    let lab = Lab::new(setup)?;
    let whole = lab.whole()?;
    for parts in [1, 2, 3, BATCHES] {
        let merged = lab.merged(&lab.states(parts)?)?.compute()?;
        expect(
            &whole,
            &merged,
            ("for the whole", &format!("for {parts} merged parts")),
            "merged parts equal the whole: integers exactly, floats to 1e-12",
            KEEP_SUMS,
        )?;
    }
    Ok(())
}

fn batch_order(setup: &Setup) -> Verdict {
    let lab = Lab::new(setup)?;
    let whole = lab.whole()?;
    let mut shuffled = lab.tokens.clone();
    setup.random().shuffle(&mut shuffled);
    let reversed: Vec<Tokens> = lab.tokens.iter().rev().cloned().collect();
    for (tokens, way) in [(reversed, "backwards"), (shuffled, "in another order")] {
        expect(
            &whole,
            &lab.fed(&tokens)?.compute()?,
            ("for batches in order", way),
            "the order of the batches does not matter",
            "only add each batch to sums and counts, independently of the previous batch",
        )?;
    }
    Ok(())
}

fn merge_order(setup: &Setup) -> Verdict {
    let lab = Lab::new(setup)?;
    let states = lab.states(4)?;
    let first = lab.merged(&states)?.compute()?;
    let backwards = lab.merged(states.iter().rev())?.compute()?;
    // Merges (a, b) and (c, d) first.
    let pairs: Vec<Vec<u8>> = states
        .chunks(2)
        .map(|pair| Ok::<_, Stop>(lab.merged(pair)?.export_state()?))
        .collect::<Result<_, _>>()?;
    let paired = lab.merged(&pairs)?.compute()?;
    for (other, way) in [(backwards, "backwards"), (paired, "in pairs")] {
        expect(
            &first,
            &other,
            ("for states merged in order", way),
            "merging is associative and commutative",
            KEEP_SUMS,
        )?;
    }
    Ok(())
}

fn merge_empty(setup: &Setup) -> Verdict {
    let lab = Lab::new(setup)?;
    let whole = lab.whole()?;
    let empty = lab.new_metric()?.export_state()?;
    let metric = lab.fed(&lab.tokens)?;
    metric.merge_state(&empty, "the state of a new instance")?;
    let into_new = lab.new_metric()?;
    into_new.merge_state(&empty, "the state of a new instance")?;
    lab.feed(&into_new, &lab.tokens)?;
    for (metric, way) in [
        (metric, "after merging an empty state"),
        (into_new, "after merging an empty state first"),
    ] {
        expect(
            &whole,
            &metric.compute()?,
            ("for the batches", way),
            "a rank without batches changes nothing",
            "start sums at 0 and minima at infinity, also in the state that a new instance exports",
        )?;
    }
    Ok(())
}

fn reset_equals_new(setup: &Setup) -> Verdict {
    let lab = Lab::new(setup)?;
    let (used, new) = (lab.fed(&lab.tokens)?, lab.new_metric()?);
    used.compute()?;
    used.reset()?;
    let expects = "after reset the state equals that of a new instance";
    let fix = "set every field of the state in reset, as create does";
    let nothing = |metric: &Metric| Ok::<_, Stop>(tolerate(metric.compute())?.ok());
    let (of_used, of_new) = (nothing(&used)?, nothing(&new)?);
    let is_same = match (&of_used, &of_new) {
        (Some(used), Some(new)) => same(used, new),
        (used, new) => used.is_none() && new.is_none(),
    };
    if !is_same {
        let shown = |found: Option<Vec<(String, f64)>>| {
            found.map_or_else(|| "an error".to_owned(), |found| values(&found))
        };
        return Err(fault(
            format!(
                "computed {} after reset, but {} when new",
                shown(of_used),
                shown(of_new)
            ),
            expects,
            fix,
        ));
    }
    let some = &lab.tokens[..3];
    lab.feed(&used, some)?;
    lab.feed(&new, some)?;
    expect(
        &new.compute()?,
        &used.compute()?,
        ("with a new instance", "after a reset"),
        expects,
        fix,
    )?;
    // The exported states must also agree, since other ranks receive them.
    let merged = [&new, &used].map(|metric| {
        let state = metric.export_state()?;
        Ok::<_, Stop>(lab.merged([&state])?.compute()?)
    });
    let [of_new, of_used] = merged;
    expect(
        &of_new?,
        &of_used?,
        (
            "from a new instance's state",
            "from the state after a reset",
        ),
        expects,
        fix,
    )
}

fn export_changes_nothing(setup: &Setup) -> Verdict {
    let lab = Lab::new(setup)?;
    let whole = lab.whole()?;
    let metric = lab.new_metric()?;
    for tokens in &lab.tokens {
        lab.feed(&metric, [tokens])?;
        metric.export_state()?;
    }
    metric.export_state()?;
    expect(
        &whole,
        &metric.compute()?,
        ("without an export", "with an export after each batch"),
        "export_state does not change the state",
        "do not clear the state in export_state: reset does that",
    )
}

fn compute_repeats(setup: &Setup) -> Verdict {
    let lab = Lab::new(setup)?;
    let whole = lab.whole()?;
    let metric = lab.new_metric()?;
    for tokens in &lab.tokens {
        lab.feed(&metric, [tokens])?;
        metric.compute()?;
    }
    metric.compute()?;
    expect(
        &whole,
        &metric.compute()?,
        (
            "when called once",
            "when called after each batch and twice at the end",
        ),
        "compute does not change the state",
        "do not change the state in compute",
    )
}

fn compute_of_nothing(setup: &Setup) -> Verdict {
    let metric = Lab::new(setup)?.new_metric()?;
    match tolerate(metric.compute())? {
        Ok(_) => Ok(()),
        Err(failure) => super::subject::has_reason(&failure),
    }
}

/// A metric that has received batches, and its exported state. Used in the tests of states, which are the
/// same for metrics and observers.
struct Tried {
    lab: Lab,
    metric: Metric,
    state: Vec<u8>,
    before: Vec<(String, f64)>,
}

fn tried(setup: &Setup) -> Result<Tried, Stop> {
    let lab = Lab::new(setup)?;
    let fed = || lab.fed(&lab.tokens[..2]);
    Ok(Tried {
        state: fed()?.export_state()?,
        before: fed()?.compute()?,
        metric: fed()?,
        lab,
    })
}

impl state::Stateful for Tried {
    fn state(&self) -> &[u8] {
        &self.state
    }

    fn take(&mut self, state: &[u8], given: &str) -> Result<(), Failure> {
        self.metric.merge_state(state, given)
    }

    fn is_as_before(&mut self) -> Result<bool, Stop> {
        let now = self.metric.compute()?;
        // The instance is renewed, because a defective `compute` can change its state. Another test reports
        // that fault.
        self.renew()?;
        Ok(same(&self.before, &now))
    }

    fn renew(&mut self) -> Verdict {
        self.metric = self.lab.fed(&self.lab.tokens[..2])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_compared_exactly_and_nan_equals_nan() {
        let of = |value: f64| vec![("a".to_owned(), value)];
        assert!(same(&of(f64::NAN), &of(f64::NAN)));
        assert!(same(&of(0.1 + 0.2), &of(0.3)));
        assert!(same(&of(f64::INFINITY), &of(f64::INFINITY)));
        assert!(!same(&of(1_000_000.0), &of(1_000_001.0)));
        assert!(!same(&of(f64::INFINITY), &of(1.0)));
        assert!(!same(&of(0.0), &[]));
    }
}
