//! Computes `loss/eval`, the token-weighted mean negative log likelihood of the evaluation set, and its
//! exponential, `perplexity`.

#![forbid(unsafe_code)]

use host_plugin_sdk::{Batch, Error, Host, Metric, NoConfig, Result, Sum, Values, export_plugin};

/// First byte of a state. Must be incremented when the layout changes.
const STATE_VERSION: u8 = 1;
/// Size of a state: version, sum, count.
const STATE_BYTES: usize = 1 + 16 + 8;

/// Loss and perplexity of the tokens seen so far.
///
/// The state contains the sum and the count, not the mean, because the number of tokens differs between
/// batches and between ranks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Perplexity {
    /// In nats.
    loss_sum: Sum,
    token_count: u64,
}

impl Metric for Perplexity {
    type Config = NoConfig;

    fn create(_config: NoConfig, _host: Host) -> Result<Self> {
        Ok(Self::default())
    }

    fn reset(&mut self) {
        *self = Self::default();
    }

    fn update(&mut self, batch: &Batch<'_>) -> Result<()> {
        let token_count = batch.scalar_i64("token_count")?;
        let token_count = u64::try_from(token_count)
            .map_err(|_| Error::new(format!("invalid token_count: {token_count}")))?;
        self.add(Sum::from(batch.scalar_f64("loss_sum")?), token_count)
    }

    fn export_state(&self) -> Vec<u8> {
        let mut state = Vec::with_capacity(STATE_BYTES);
        state.push(STATE_VERSION);
        state.extend(self.loss_sum.to_le_bytes());
        state.extend(self.token_count.to_le_bytes());
        state
    }

    fn merge_state(&mut self, state: &[u8]) -> Result<()> {
        let Some((&version, numbers)) = state.split_first() else {
            return Err(Error::new("the state of perplexity is empty"));
        };
        if version != STATE_VERSION {
            return Err(Error::unsupported(format!(
                "the state of perplexity has version {version}, but this plugin reads version {STATE_VERSION}"
            )));
        }
        let wrong = || {
            Error::new(format!(
                "a state of perplexity has {STATE_BYTES} bytes, but this one has {}",
                state.len()
            ))
        };
        let (&loss_sum, count) = numbers.split_first_chunk().ok_or_else(wrong)?;
        let count = count.try_into().map_err(|_| wrong())?;
        self.add(Sum::from_le_bytes(loss_sum), u64::from_le_bytes(count))
    }

    fn compute(&self, values: &mut Values<'_>) -> Result<()> {
        if self.token_count == 0 {
            return Err(Error::new("no tokens were evaluated, so there is no loss"));
        }
        let loss = self.loss_sum.value() / self.token_count as f64;
        values.put_f64("loss/eval", loss)?;
        // The perplexity overflows to infinity if the loss is above about 709.
        values.put_f64("perplexity", loss.exp())
    }
}

impl Perplexity {
    fn add(&mut self, loss_sum: Sum, token_count: u64) -> Result<()> {
        let count = self.token_count.checked_add(token_count);
        self.token_count = count.ok_or_else(|| Error::new("the token count overflowed"))?;
        self.loss_sum += loss_sum;
        Ok(())
    }
}

export_plugin! {
    description: "Loss and perplexity of the evaluation set",
    metric: Perplexity,
    needs: ["loss_sum", "token_count"],
    devices: ["cpu"],
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use host_plugin_sdk::fake;

    use super::*;

    fn metric() -> fake::Metric {
        fake::Plugin::load(&PLUGIN).metric("{}").expect("created")
    }

    fn batch(loss_sum: f64, token_count: i64) -> fake::Batch {
        fake::Batch::new()
            .with("loss_sum", loss_sum)
            .with("token_count", token_count)
    }

    fn of(batches: &[(f64, i64)]) -> fake::Metric {
        let mut metric = metric();
        for &(loss_sum, token_count) in batches {
            metric
                .update(&batch(loss_sum, token_count))
                .expect("updated");
        }
        metric
    }

    fn values(batches: &[(f64, i64)]) -> BTreeMap<String, f64> {
        of(batches).compute().expect("computed")
    }

    /// Returns batches whose sizes and losses differ greatly. A small pseudorandom generator produces the
    /// values.
    fn uneven(n: usize) -> Vec<(f64, i64)> {
        let mut seed = 1u64;
        let mut random = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 40) as f64 / (1u64 << 24) as f64
        };
        (0..n)
            .map(|_| {
                let tokens = 1 + (random() * 8191.0) as i64;
                (tokens as f64 * 12.0 * random().powi(9), tokens)
            })
            .collect()
    }

    fn assert_near(left: &BTreeMap<String, f64>, right: &BTreeMap<String, f64>) {
        assert!(left.keys().eq(right.keys()));
        for (name, value) in left {
            let relative = (value - right[name]).abs() / value.abs();
            assert!(relative <= 1e-12, "{name}: {value} and {}", right[name]);
        }
    }

    #[test]
    fn the_loss_is_the_mean_over_tokens_and_not_over_batches() {
        let values = values(&[(10.0, 10), (0.0, 90)]);
        assert_eq!(values["loss/eval"], 0.1);
        assert_eq!(values["perplexity"], 0.1f64.exp());
        assert_eq!(values.len(), 2);
    }

    #[test]
    fn the_perplexity_of_a_uniform_guess_is_the_number_of_choices() {
        let values = values(&[(128.0 * 512f64.ln(), 128)]);
        assert!((values["perplexity"] - 512.0).abs() < 1e-9);
    }

    #[test]
    fn split_and_merged_equals_the_whole() {
        let batches = uneven(3000);
        let whole = values(&batches);
        for parts in [2, 3, 7, 3000] {
            let mut merged = metric();
            for part in batches.chunks(batches.len().div_ceil(parts)) {
                let state = of(part).export_state().expect("exported");
                merged.merge_state(&state).expect("merged");
            }
            assert_near(&merged.compute().expect("computed"), &whole);
        }
    }

    #[test]
    fn the_order_and_grouping_of_merges_do_not_matter() {
        let batches = uneven(1000);
        let mut reversed = batches.clone();
        reversed.reverse();
        assert_near(&values(&reversed), &values(&batches));
        let states: Vec<Vec<u8>> = batches
            .chunks(300)
            .map(|part| of(part).export_state().expect("exported"))
            .collect();
        let merge = |order: [usize; 4]| {
            let mut merged = metric();
            for index in order {
                merged.merge_state(&states[index]).expect("merged");
            }
            merged.compute().expect("computed")
        };
        let first = merge([0, 1, 2, 3]);
        for order in [[3, 2, 1, 0], [2, 0, 3, 1], [1, 3, 0, 2]] {
            assert_near(&merge(order), &first);
        }
    }

    #[test]
    fn a_million_batches_lose_no_digits() {
        let mut metric = Perplexity::default();
        for _ in 0..1_000_000 {
            metric.add(Sum::from(0.1), 1).expect("added");
        }
        let loss = metric.loss_sum.value() / metric.token_count as f64;
        assert!((loss - 0.1).abs() <= 1e-16, "{loss}");
    }

    #[test]
    fn an_empty_state_changes_nothing_and_has_no_values() {
        let mut empty = metric();
        let failure = empty.compute().expect_err("no tokens");
        assert!(failure.message.contains("no tokens"), "{failure}");
        let state = empty.export_state().expect("exported");
        let mut metric = of(&[(3.0, 4)]);
        metric.merge_state(&state).expect("merged");
        assert_eq!(metric.compute().expect("computed"), values(&[(3.0, 4)]));
    }

    #[test]
    fn reset_restores_the_initial_state() {
        let mut metric = of(&[(f64::NAN, 4)]);
        metric.reset().expect("reset");
        assert!(metric.compute().is_err());
        metric.update(&batch(3.0, 4)).expect("updated");
        assert_eq!(metric.compute().expect("computed"), values(&[(3.0, 4)]));
    }

    #[test]
    fn a_loss_that_is_not_finite_is_reported_as_such() {
        let infinite = values(&[(1.0, 1), (f64::INFINITY, 1), (1.0, 1)]);
        assert_eq!(infinite["loss/eval"], f64::INFINITY);
        assert_eq!(infinite["perplexity"], f64::INFINITY);
        let nan = values(&[(1.0, 1), (f64::NAN, 1), (1.0, 1)]);
        assert!(nan["loss/eval"].is_nan() && nan["perplexity"].is_nan());
    }

    #[test]
    fn a_perplexity_that_overflows_is_infinite_but_its_loss_is_not() {
        let values = values(&[(710.0, 1)]);
        assert_eq!(values["loss/eval"], 710.0);
        assert_eq!(values["perplexity"], f64::INFINITY);
    }

    #[test]
    fn invalid_states_are_refused_and_change_nothing() {
        let state = of(&[(3.0, 4)]).export_state().expect("exported");
        assert_eq!(state.len(), STATE_BYTES);
        let mut metric = of(&[(3.0, 4)]);
        for length in 0..state.len() {
            assert!(metric.merge_state(&state[..length]).is_err(), "{length}");
        }
        let longer = [&state[..], &[0]].concat();
        assert!(metric.merge_state(&longer).is_err());
        let newer = [&[STATE_VERSION + 1], &state[1..]].concat();
        assert!(
            metric
                .merge_state(&newer)
                .expect_err("newer")
                .is_unsupported()
        );
        let endless = [&state[..17], &u64::MAX.to_le_bytes()].concat();
        assert!(metric.merge_state(&endless).is_err());
        assert_eq!(metric.compute().expect("computed"), values(&[(3.0, 4)]));
    }

    #[test]
    fn an_incomplete_batch_is_refused() {
        let mut metric = metric();
        let lacking = fake::Batch::new().with("loss_sum", 1.0);
        assert!(
            metric
                .update(&lacking)
                .expect_err("refused")
                .is_unsupported()
        );
        assert!(metric.update(&batch(1.0, -1)).is_err());
        let wrong = fake::Batch::new()
            .with("loss_sum", 1i64)
            .with("token_count", 1i64);
        assert!(metric.update(&wrong).expect_err("refused").is_unsupported());
    }
}
