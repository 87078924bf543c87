//! Tests how the idle OpenMP threads of a training run wait.

use std::fs;

use crate::support::Home;

/// Returns the GOMP_ and OMP_ environment variables of a live run's process, and the name of the process.
fn while_training(home: &Home, env: &[(&str, &str)]) -> (Vec<String>, String) {
    let args = ["run", "tiny.toml", "--json", "--max-train-steps", "100000"];
    let training = home.start_with(env, &args);
    training.event(|event| event["values"]["loss/train"].is_number());
    let read = |file: &str| {
        let path = format!("/proc/{}/{file}", training.id());
        String::from_utf8(fs::read(path).expect("a live process")).expect("text")
    };
    let mut variables: Vec<String> = read("environ")
        .split('\0')
        .filter(|variable| variable.starts_with("GOMP_") || variable.starts_with("OMP_"))
        .map(str::to_owned)
        .collect();
    variables.sort();
    let name = read("comm").trim().to_owned();
    training.kill();
    training.output();
    (variables, name)
}

/// libgomp has no function that sets the spin count, so the environment variable must be set when the process
/// starts.
#[test]
fn idle_threads_do_not_spin_for_long_unless_the_user_sets_it() {
    let home = Home::new();
    for (set, expected) in [
        (&[][..], &["GOMP_SPINCOUNT=10000"][..]),
        (&[("GOMP_SPINCOUNT", "7")], &["GOMP_SPINCOUNT=7"]),
        (
            &[("OMP_WAIT_POLICY", "passive")],
            &["OMP_WAIT_POLICY=passive"],
        ),
    ] {
        let (variables, name) = while_training(&home, set);
        assert_eq!(variables, expected);
        assert_eq!(name, "host");
    }
}

/// The program restarts itself to set the variable. The restart keeps every argument and the exit code.
#[test]
fn a_restart_changes_no_argument() {
    let home = Home::new();
    let output = home.host(&["run", "tiny.toml", "--name", "a  b"]);
    let (error, _) = output.failed_with(2);
    assert!(error.contains("a  b"), "{error}");
}
