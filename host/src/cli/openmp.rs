//! How libtorch's idle OpenMP threads wait.

use std::env;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// libgomp's number of turns before an idle thread sleeps.
const SPIN_COUNT: &str = "GOMP_SPINCOUNT";

/// The OpenMP variables by which a user decides how idle threads wait.
const USERS_CHOICE: [&str; 2] = [SPIN_COUNT, "OMP_WAIT_POLICY"];

/// Less than a millisecond: longer than the gap between two operations of a step, shorter than a time slice.
/// libgomp's own default of 300,000 turns takes ten milliseconds and more, which on a busy CPU is the time that
/// other threads of the same step need.
const TURNS: &str = "10000";

/// Restarts this process with `GOMP_SPINCOUNT` set, unless the user has chosen how threads wait.
///
/// libgomp reads the variable while it is loaded, before `main`, and offers no call for it. A restart keeps
/// the process's id, its open files and its signal mask, and takes as long as loading libtorch. Where the
/// program's file cannot be started again, training is slower on a busy CPU, and otherwise the same.
pub(crate) fn limit_spinning() {
    if USERS_CHOICE.iter().any(|name| env::var_os(name).is_some()) {
        return;
    }
    let Ok(program) = env::current_exe() else {
        return;
    };
    let mut args = env::args_os();
    let mut again = Command::new(program);
    if let Some(name) = args.next() {
        again.arg0(name);
    }
    // Returns only if it failed.
    let _ = again.args(args).env(SPIN_COUNT, TURNS).exec();
}
