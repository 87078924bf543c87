//! What belongs to the process and a plugin changes all the same: the training does not notice, and an
//! event names the plugin.

use std::fs;

use host_core::EventBody;

use crate::support::{Fixture, Home, events_of};

/// What plugins changed, as (call, message).
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

/// The weights after the last step of a run with a plugin that does this.
fn weights(home: &Home, run: &str, more: &[&str]) -> Vec<u8> {
    let flags = [&["--threads", "2"], more].concat();
    home.train(run, &flags).succeeded();
    fs::read(home.checkpoint(run, 20).join("model.safetensors")).expect("weights")
}

/// What a plugin does, what that changes, and what becomes of it.
const BREACHES: [(&str, &str, &str); 16] = [
    ("rounding", "the floating-point environment", "put it back"),
    ("denormals", "the floating-point environment", "put it back"),
    ("traps", "the floating-point environment", "put it back"),
    ("threads", "OpenMP", "put it back"),
    ("dynamic", "how OpenMP works", "put it back"),
    ("mask", "which signals are blocked", "put it back"),
    ("deaf", "what happens on SIGINT", "put it back"),
    ("handler", "what happens on SIGUSR2", "put it back"),
    ("locale", "the locale", "put it back"),
    ("umask", "the umask", "put it back"),
    ("folder", "the working directory", "put it back"),
    ("files", "the resource limit NOFILE", "put it back"),
    // The host may have opened a file with this number in the meantime; the test below has no such file.
    ("stdin", "it closed or redirected stdin", ""),
    ("processor", "the processors", ""),
    ("alarm", "a timer that sends a signal", "put it back"),
    ("variable", "the environment variable BREACH", "it stays so"),
];

#[test]
fn what_a_plugin_changes_of_the_process_changes_no_weight_and_is_an_event() {
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

/// Each alone, since one could hide another.
#[test]
fn numbers_are_the_same_after_each_change_of_how_they_are_made() {
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

/// The process is checked right after `create`.
#[test]
fn a_stdin_that_is_closed_while_a_plugin_is_made_is_open_again() {
    let home = Home::new();
    let groups = Fixture::breach("param_groups").build(&home.path(""));
    let plugin = format!("{}:how=stdin create", groups.display());
    home.train("stdin", &["--plugin", &plugin]).succeeded();
    let change = (
        "create".to_owned(),
        "it closed or redirected stdin; the host has put it back".to_owned(),
    );
    assert_eq!(changes(&home, "stdin"), [change]);
}

/// stderr's number may by then be a file of the host's.
#[test]
fn a_closed_stderr_is_open_again_and_what_is_said_reaches_it() {
    let home = Home::new();
    let observer = Fixture::breach("observer").build(&home.path(""));
    let plugin = format!("{}:how=stderr observe", observer.display());
    let output = home.train("stderr", &["--plugin", &plugin]).succeeded();
    assert!(output.stderr.contains("checkpoint step-000020"), "{output}");
    let changes = changes(&home, "stderr");
    // Before it is put back, a file of the host's may have had its number.
    let said = "it closed or redirected stderr; the host has put it back";
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
