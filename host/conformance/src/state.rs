//! Tests with invalid states. Two kinds of plugins read states: metrics merge them, and observers import
//! them.

use fastrand::Rng;

use crate::subject::{Failure, has_reason, tolerate};
use crate::test::{Stop, Verdict, fault, skip};

/// Maximum number of truncated copies of a state. Also the maximum number of copies with one changed byte.
const MOST_CUTS: usize = 64;
/// Number of random states that are tried.
const RANDOM: usize = 500;

/// An instance that reads states.
pub(super) trait Stateful {
    /// Returns a state that the instance exported.
    fn state(&self) -> &[u8];
    /// Merges or imports a state, depending on the kind.
    fn take(&mut self, state: &[u8], given: &str) -> Result<(), Failure>;
    /// Returns whether the instance is unchanged since the state was exported.
    fn is_as_before(&mut self) -> Result<bool, Stop>;
    /// Restores the instance to the exported state.
    fn renew(&mut self) -> Verdict;
}

/// Returns states of wrong lengths, each with a description.
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
        "a state with one extra byte".to_owned(),
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
                format!("accepted {given}"),
                "an incomplete or overlong state is an error",
                "check the length before reading",
            ));
        }
        if !of.is_as_before()? {
            return Err(fault(
                format!("rejected {given}, but was changed by it"),
                "a rejected state leaves the instance unchanged",
                "read the whole state before changing any field",
            ));
        }
    }
    Ok(())
}

/// Checks that a state of another version is rejected. The position of the version in the state is unknown,
/// so each of the state's first bytes is changed in turn, and at least one change must cause a rejection.
pub(super) fn foreign(of: &mut impl Stateful) -> Verdict {
    let state = of.state().to_vec();
    if state.is_empty() {
        return skip("its state is empty");
    }
    let mut is_refused = false;
    for at in 0..state.len().min(MOST_CUTS) {
        let mut changed = state.clone();
        changed[at] = !changed[at];
        let given = format!("a state with a changed byte {at}");
        is_refused |= tolerate(of.take(&changed, &given))?.is_err();
        of.renew()?;
    }
    match is_refused {
        true => Ok(()),
        false => Err(fault(
            "accepted every state of the right length, with any bytes",
            "a state contains its version, and a state of another version is rejected",
            "start with a version number, and return HOST_UNSUPPORTED for other versions",
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
