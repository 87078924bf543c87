//! What the host does around each call into a plugin that runs in its own process: it knows which call
//! is under way, says so when the plugin ends the process or keeps it waiting, and puts back what the
//! plugin changed of the process.
//!
//! All of it but the record of calls begins with [`guard_process`]. The conformance suite and the child
//! process of a plugin do without: there the plugin's process is the plugin's own.

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

/// Guards this process against what plugins in it do to it, until its end. Call it before the first
/// plugin is loaded. `[main]`
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

/// Something of the process that a plugin changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessChange {
    /// The plugin's id; of several, of which each may have done it, all of them.
    pub plugin: String,
    /// The call in which it did so.
    pub call: String,
    /// What it changed, and whether that was put back.
    pub message: String,
}

/// Changes not yet reported, and all that were ever found: each is reported once.
static CHANGES: Mutex<(Vec<ProcessChange>, Vec<ProcessChange>)> =
    Mutex::new((Vec::new(), Vec::new()));

/// What plugins changed of the process since the last call of this. Each is told once, however often
/// the plugin does it.
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

/// A plugin that changes the same thing to something else each time is not told of without end.
const MOST_CHANGES: usize = 200;

/// How closely the process is looked at around a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// At what decides numbers and costs nanoseconds: the floating-point environment, and the threads that
    /// OpenMP takes.
    Quick,
    /// At everything.
    Close,
}

/// Makes a call into a plugin, on record as under way, and puts back what it changed of the process.
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
