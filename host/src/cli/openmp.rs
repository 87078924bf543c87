//! How libtorch's idle OpenMP threads wait.

use std::env;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// The variable from which libgomp reads how often an idle thread spins before it sleeps.
const SPIN_COUNT: &str = "GOMP_SPINCOUNT";

/// The OpenMP variables with which users choose how idle threads wait.
const USERS_CHOICE: [&str; 2] = [SPIN_COUNT, "OMP_WAIT_POLICY"];

/// Number of spins. Together they take less than a millisecond: longer than the gap between two operations of
/// a step, but shorter than a time slice. libgomp's default of 300,000 spins takes at least ten milliseconds.
/// On a busy CPU, the other threads of the same step lose that time.
const TURNS: &str = "10000";

/// Restarts this process with `GOMP_SPINCOUNT` set, unless the user has chosen how threads wait.
///
/// libgomp reads the variable when it is loaded, before `main`, and has no function to set it. A restart
/// keeps the process id, the open files and the signal mask. It takes as long as loading libtorch. If the
/// restart fails, training is slower on a busy CPU but otherwise unchanged.
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
    // `exec` returns only on failure.
    let _ = again.args(args).env(SPIN_COUNT, TURNS).exec();
}
