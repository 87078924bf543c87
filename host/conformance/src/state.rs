//! Bytes that are no state, for whoever takes states: metrics merge them, observers import them.

use fastrand::Rng;

use crate::subject::{Failure, has_reason, tolerate};
use crate::test::{Stop, Verdict, fault, skip};

/// Most lengths to which a state is cut.
const MOST_CUTS: usize = 64;
/// How many random states are tried.
const RANDOM: usize = 500;

/// An instance that takes states.
pub(super) trait Stateful {
    /// One that it exported.
    fn state(&self) -> &[u8];
    /// Merges or imports.
    fn take(&mut self, state: &[u8], given: &str) -> Result<(), Failure>;
    /// Whether it is as it was when the state was exported.
    fn is_as_before(&mut self) -> Result<bool, Stop>;
    /// Makes it so.
    fn renew(&mut self) -> Verdict;
}

/// Every length but the right one, with what to call it.
fn wrong_lengths(state: &[u8]) -> Vec<(Vec<u8>, String)> {
    let step = state.len().div_ceil(MOST_CUTS).max(1);
    let mut wrong: Vec<(Vec<u8>, String)> = (0..state.len())
        .step_by(step)
        .map(|length| {
            let given = format!("the first {length} of a state's {} bytes", state.len());
            (state[..length].to_vec(), given)
        })
        .collect();
    wrong.push((
        [state, &[0]].concat(),
        "a state with one byte too many".to_owned(),
    ));
    wrong
}

pub(super) fn truncated(of: &mut impl Stateful) -> Verdict {
    let state = of.state().to_vec();
    if state.is_empty() {
        return skip("its state is empty");
    }
    for (wrong, given) in wrong_lengths(&state) {
        if tolerate(of.take(&wrong, &given))?.is_ok() {
            return Err(fault(
                format!("took {given} for a state"),
                "bytes that are no whole state are an error",
                "compare the length before anything is read",
            ));
        }
        if !of.is_as_before()? {
            return Err(fault(
                format!("refused {given}, but was changed by it"),
                "a state that is refused leaves the instance as it is",
                "read all of the state before any field is changed",
            ));
        }
    }
    Ok(())
}

/// Where the version is, only the plugin knows: one of the bytes must make a difference.
pub(super) fn foreign(of: &mut impl Stateful) -> Verdict {
    let state = of.state().to_vec();
    if state.is_empty() {
        return skip("its state is empty");
    }
    let mut is_refused = false;
    for at in 0..state.len().min(MOST_CUTS) {
        let mut changed = state.clone();
        changed[at] = !changed[at];
        let given = format!("a state whose byte {at} is another");
        is_refused |= tolerate(of.take(&changed, &given))?.is_err();
        of.renew()?;
    }
    match is_refused {
        true => Ok(()),
        false => Err(fault(
            "took every state of the right length, with any bytes",
            "a state says its own version, and one of another version is refused",
            "put a version number first, and return HOST_UNSUPPORTED for another",
        )),
    }
}

pub(super) fn random(of: &mut impl Stateful, random: &mut Rng) -> Verdict {
    let longest = of.state().len() * 2 + 16;
    for _ in 0..RANDOM {
        let length = random.usize(0..longest);
        let bytes: Vec<u8> = (0..length).map(|_| random.u8(..)).collect();
        let shown: Vec<String> = bytes.iter().take(8).map(|b| format!("{b:02x}")).collect();
        let given = format!("{length} random bytes, {}…", shown.join(" "));
        tolerate(of.take(&bytes, &given))?.ok();
    }
    of.renew()
}

pub(super) fn has_reasons(of: &mut impl Stateful) -> Verdict {
    let state = of.state().to_vec();
    if state.is_empty() {
        return skip("its state is empty");
    }
    for (wrong, given) in wrong_lengths(&state) {
        if let Err(failure) = tolerate(of.take(&wrong, &given))? {
            has_reason(&failure)?;
        }
    }
    of.renew()
}
