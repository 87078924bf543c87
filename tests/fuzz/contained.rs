//! Panics of libraries that the reader catches by itself are not failures. The fuzzer's own hook ends the
//! process at any panic, so another one takes its place, and only what leaves the reader counts.

use std::panic::{AssertUnwindSafe, catch_unwind, set_hook};
use std::sync::{Mutex, Once};

/// The last panic and where it was.
static LAST: Mutex<String> = Mutex::new(String::new());
static HOOK: Once = Once::new();

/// Runs the test of one input. A panic that leaves it ends the process.
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
