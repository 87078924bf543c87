//! Protects the host's process around each call into a plugin that runs in it. The guard records which call
//! is running, and names that call if the plugin ends or blocks the process. After the call, it restores the
//! process state that the plugin changed.
//!
//! Calls are always recorded. All other protection begins with [`guard_process`]. The conformance suite and
//! the child process of a plugin do not call [`guard_process`], because their process serves only the plugin.

mod exit;
mod openmp;
mod process_state;
mod signal;
mod under_way;
mod wait;

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) use exit::loaded;
pub use exit::{end_process, on_exit_by_plugin};
use process_state::Numbers;
pub use process_state::ProcessWatch;
pub use process_state::{FloatingPoint, ProcessState, environment, locale, umask};
pub(crate) use signal::remember;
pub(crate) use under_way::{PluginName, UnderWay, name_of};

/// Whether this process is guarded.
static IS_GUARDED: AtomicBool = AtomicBool::new(false);

/// Guards this process against its plugins, until the process ends. Must be called before the first plugin is
/// loaded. `[main]`
pub fn guard_process() {
    if IS_GUARDED.swap(true, Ordering::Relaxed) {
        return;
    }
    exit::guard();
    signal::guard();
    wait::watch();
}

fn is_guarded() -> bool {
    IS_GUARDED.load(Ordering::Relaxed)
}

/// A change that a plugin made to the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessChange {
    /// The plugin's id. If several plugins may have made the change, the ids of all these plugins.
    pub plugin: String,
    /// The call that made the change.
    pub call: String,
    /// What changed, and whether it was restored.
    pub message: String,
}

/// The changes that are not yet reported, and all changes found so far. The second list ensures that each
/// change is reported only once.
static CHANGES: Mutex<(Vec<ProcessChange>, Vec<ProcessChange>)> =
    Mutex::new((Vec::new(), Vec::new()));

/// Returns the changes found since this function was last called. A change that a plugin repeats is reported
/// once.
pub fn process_changes() -> Vec<ProcessChange> {
    let mut changes = CHANGES.lock().unwrap_or_else(PoisonError::into_inner);
    std::mem::take(&mut changes.0)
}

fn note(change: ProcessChange) {
    let mut changes = CHANGES.lock().unwrap_or_else(PoisonError::into_inner);
    let is_told =
        |told: &ProcessChange| told.plugin == change.plugin && told.message == change.message;
    if !changes.1.iter().any(is_told) && changes.1.len() < MOST_CHANGES {
        changes.0.push(change.clone());
        changes.1.push(change);
    }
}

/// Maximum number of reported changes. It is limited because a plugin may change the same state to a new
/// value again and again.
const MOST_CHANGES: usize = 200;

/// How thoroughly the process is checked around a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// Checks only the floating-point environment and the OpenMP settings. They affect the results of
    /// computations, and reading them takes only nanoseconds.
    Quick,
    /// Checks the whole state.
    Close,
}

/// Runs a call into a plugin, records it as running, and restores the process state that it changed.
#[inline]
pub(crate) fn enter<T>(
    plugin: &'static PluginName,
    call: &'static str,
    look: Look,
    body: impl FnOnce() -> T,
) -> T {
    let under_way = UnderWay::here(plugin, call);
    if !is_guarded() {
        return body();
    }
    if look == Look::Close || process_state::is_suspicious() {
        let before = ProcessState::now();
        let output = body();
        for message in before.put_back() {
            note(ProcessChange {
                plugin: plugin.to_string(),
                call: call.to_owned(),
                message,
            });
        }
        exit::check_fork(plugin, call);
        return output;
    }
    let numbers = Numbers::now();
    let output = body();
    if numbers != Numbers::now() {
        put_back(&numbers, plugin, call);
    }
    exit::check_fork(plugin, call);
    process_state::called(plugin, call);
    drop(under_way);
    output
}

#[cold]
fn put_back(before: &Numbers, plugin: &'static PluginName, call: &'static str) {
    for message in before.put_back(&Numbers::now()) {
        note(ProcessChange {
            plugin: plugin.to_string(),
            call: call.to_owned(),
            message,
        });
    }
}
