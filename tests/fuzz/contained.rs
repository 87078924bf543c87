//! The readers of data and checkpoints catch panics of libraries, so these panics are not failures. However,
//! libFuzzer's panic hook aborts at every panic. This module replaces the hook, and aborts only if a panic
//! escapes the reader.

use std::panic::{AssertUnwindSafe, catch_unwind, set_hook};
use std::sync::{Mutex, Once};

/// The last panic and its location.
static LAST: Mutex<String> = Mutex::new(String::new());
static HOOK: Once = Once::new();

/// Runs the test of one input. Aborts if it panics.
pub(crate) fn run(test: impl FnOnce()) {
    HOOK.call_once(|| {
        set_hook(Box::new(|panic| {
            let backtrace = std::backtrace::Backtrace::capture();
            *LAST.lock().expect("the last panic") = format!("{panic}\n{backtrace}");
        }));
    });
    if catch_unwind(AssertUnwindSafe(test)).is_err() {
        eprintln!("{}", LAST.lock().expect("the last panic"));
        std::process::abort();
    }
}
