//! Runs plugins that change the state of the process. The training must not be affected, and an event must
//! name the plugin.

use std::fs;

use host_core::EventBody;

use crate::support::{Fixture, Home, events_of};

/// Returns the run's reports of changes that plugins made. Each report is a pair: (call, message).
fn changes(home: &Home, run: &str) -> Vec<(String, String)> {
    let fault = |event: host_core::Event| match event.body {
        EventBody::PluginFault {
            plugin,
            call,
            message,
        } => {
            assert_eq!(plugin, "breach");
            Some((call, message))
        }
        _ => None,
    };
    let events = events_of(&home.run_dir(run));
    events.into_iter().filter_map(fault).collect()
}

/// Trains with these arguments and returns the weights after the last step.
fn weights(home: &Home, run: &str, more: &[&str]) -> Vec<u8> {
    let flags = [&["--threads", "2"], more].concat();
    home.train(run, &flags).succeeded();
    fs::read(home.checkpoint(run, 20).join("model.safetensors")).expect("weights")
}

/// What a plugin does, and two texts that the message must contain: the changed state, and the outcome.
const BREACHES: [(&str, &str, &str); 16] = [
    ("rounding", "the floating-point environment", "restored it"),
    ("denormals", "the floating-point environment", "restored it"),
    ("traps", "the floating-point environment", "restored it"),
    ("threads", "OpenMP", "restored it"),
    ("dynamic", "the OpenMP settings", "restored it"),
    ("mask", "the blocked signals", "restored it"),
    ("deaf", "the action for SIGINT", "restored it"),
    ("handler", "the action for SIGUSR2", "restored it"),
    ("locale", "the locale", "restored it"),
    ("umask", "the umask", "restored it"),
    ("folder", "the working directory", "restored it"),
    ("files", "the resource limit NOFILE", "restored it"),
    // An empty outcome matches any message. Here, the host cannot restore stdin if it has already reused the
    // descriptor for a file. The test of `create` below requires that stdin is restored.
    ("stdin", "it closed or redirected stdin", ""),
    ("processor", "the number of processors", ""),
    ("alarm", "a timer that sends a signal", "restored it"),
    (
        "variable",
        "the environment variable BREACH",
        "did not restore it",
    ),
];

#[test]
fn changes_of_the_process_by_a_plugin_affect_no_weight_and_are_events() {
    let home = Home::new();
    let metric = Fixture::breach("metric").build(&home.path(""));
    let plain = weights(&home, "plain", &[]);
    let all: Vec<&str> = BREACHES.iter().map(|(what, ..)| *what).collect();
    let all = all.join("+");
    for (run, when) in [("at-once", "update"), ("late", "update late")] {
        let plugin = format!("{}:how={all} {when}", metric.display());
        assert!(
            weights(&home, run, &["--plugin", &plugin]) == plain,
            "{run}"
        );
        let changes = changes(&home, run);
        for (what, changed, outcome) in BREACHES {
            // On a machine with one processor there is nothing to change.
            if what == "processor" {
                continue;
            }
            let is_told = changes
                .iter()
                .any(|(_, message)| message.contains(changed) && message.contains(outcome));
            assert!(is_told, "{run}: {what}: {changes:#?}");
        }
    }
    let calls = changes(&home, "at-once");
    assert!(calls.iter().any(|(call, _)| call == "update"), "{calls:?}");
}

/// Each change is tested alone, since one could hide another.
#[test]
fn weights_are_the_same_after_each_change_of_the_arithmetic() {
    let home = Home::new();
    let metric = Fixture::breach("metric").build(&home.path(""));
    let plain = weights(&home, "plain", &[]);
    for what in ["rounding", "denormals", "threads"] {
        let plugin = format!("{}:how={what} compute", metric.display());
        assert!(
            weights(&home, what, &["--plugin", &plugin]) == plain,
            "{what}"
        );
        assert!(!changes(&home, what).is_empty());
    }
}

/// The host checks the process right after `create`.
#[test]
fn stdin_closed_by_create_is_opened_again() {
    let home = Home::new();
    let groups = Fixture::breach("param_groups").build(&home.path(""));
    let plugin = format!("{}:how=stdin create", groups.display());
    home.train("stdin", &["--plugin", &plugin]).succeeded();
    let change = (
        "create".to_owned(),
        "it closed or redirected stdin; the host restored it".to_owned(),
    );
    assert_eq!(changes(&home, "stdin"), [change]);
}

/// When the host detects the change, stderr's descriptor may already belong to a file of the host.
#[test]
fn a_closed_stderr_is_opened_again_and_receives_later_output() {
    let home = Home::new();
    let observer = Fixture::breach("observer").build(&home.path(""));
    let plugin = format!("{}:how=stderr observe", observer.display());
    let output = home.train("stderr", &["--plugin", &plugin]).succeeded();
    assert!(output.stderr.contains("checkpoint step-000020"), "{output}");
    let changes = changes(&home, "stderr");
    // Earlier messages need not mention a restoration: the host cannot restore stderr while a file of the
    // host has the descriptor.
    let said = "it closed or redirected stderr; the host restored it";
    assert!(
        changes.iter().any(|(_, message)| message == said),
        "{changes:?}"
    );
    let is_stderr = |message: &String| message.starts_with("it closed or redirected stderr");
    assert!(
        changes
            .iter()
            .all(|(call, message)| call == "observe" && is_stderr(message)),
        "{changes:?}"
    );
}
