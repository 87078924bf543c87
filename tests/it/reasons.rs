//! If a call to a plugin fails, the user sees the plugin's own error message, or the limit that the plugin
//! exceeded.

use host_core::EventBody;

use crate::support::{Fixture, Home, events_of};

/// Returns the plugin faults of a run, as (call, message).
fn faults(home: &Home, run: &str) -> Vec<(String, String)> {
    let fault = |event: host_core::Event| match event.body {
        EventBody::PluginFault { call, message, .. } => Some((call, message)),
        _ => None,
    };
    let events = events_of(&home.run_dir(run));
    events.into_iter().filter_map(fault).collect()
}

fn spec(home: &Home, kind: &'static str, settings: &str) -> String {
    let library = Fixture::breach(kind).build(&home.path(""));
    format!("{}:{settings}", library.display())
}

const MODES: [&str; 2] = ["in_process", "process"];

#[test]
fn a_failure_before_the_training_shows_the_plugins_message() {
    let home = Home::new();
    for mode in MODES {
        for (kind, call) in [
            ("param_groups", "create"),
            ("param_groups", "group"),
            ("metric", "create"),
            ("metric", "reset"),
            ("metric", "update"),
            ("metric", "compute"),
            ("checkpoint_sink", "create"),
            ("observer", "create"),
        ] {
            let plugin = spec(&home, kind, &format!("how=fail {call},mode={mode}"));
            let output = home.train("refused", &["--plugin", &plugin]);
            let expected = format!("plugin breach failed in {call}: cannot do {call}");
            assert_eq!(output.failed_with(3).0, expected);
        }
        let plugin = spec(
            &home,
            "checkpoint_sink",
            &format!("how=fail preflight,mode={mode}"),
        );
        let output = home.train("refused", &["--plugin", &plugin]);
        let (error, _) = output.failed_with(3);
        assert_eq!(error, "breach is not ready: cannot do preflight");
    }
}

#[test]
fn a_failure_in_a_run_shows_the_plugins_message_or_the_limit() {
    let home = Home::new();
    let too_much = "it put 104857600 bytes, more than 64 MiB";
    for mode in MODES {
        for (kind, call, how, words, code) in [
            ("observer", "observe", "fail", "cannot do observe", 0),
            (
                "observer",
                "export_state",
                "fail",
                "cannot do export_state",
                0,
            ),
            ("observer", "export_state", "too-much", too_much, 0),
            ("checkpoint_sink", "publish", "fail", "cannot do publish", 4),
            ("checkpoint_sink", "publish", "too-much", too_much, 4),
        ] {
            let plugin = spec(&home, kind, &format!("how={how} {call},mode={mode}"));
            let run = format!(
                "{how}-{}-{}",
                call.replace('_', "-"),
                mode.replace('_', "-")
            );
            let flags = ["--max-train-steps", "5", "--plugin", &plugin];
            home.train(&run, &flags).ended_with(code);
            let faults = faults(&home, &run);
            let is_said = faults
                .iter()
                .any(|(in_call, message)| in_call == call && message.ends_with(words));
            assert!(is_said, "{run}: {faults:?}");
        }
    }
}

#[test]
fn a_state_rejected_at_a_resume_shows_the_plugins_message() {
    let home = Home::new();
    let plugin = spec(&home, "observer", "how=fail import_state");
    home.train("first", &["--max-train-steps", "5", "--plugin", &plugin])
        .succeeded();
    let output = home.host(&["resume", "first", "--max-train-steps", "10"]);
    let (error, hint) = output.failed_with(3);
    let expected = "plugin breach failed in import_state: cannot do import_state";
    assert_eq!(error, expected);
    assert!(
        hint.contains("same version and settings of the plugin"),
        "{hint}"
    );
}

/// If the plugin runs in a child process, that process itself drops the excess lines, so that they do not
/// fill its channel to the host.
#[test]
fn a_flood_of_log_lines_is_cut_and_counted() {
    let home = Home::new();
    for mode in MODES {
        let plugin = spec(&home, "metric", &format!("how=flood compute,mode={mode}"));
        let flags = ["--max-train-steps", "5", "--plugin", &plugin];
        let run = mode.replace('_', "-");
        let output = home.train(&run, &flags).succeeded();
        let count = |part: &str| {
            let lines = output.stderr.lines();
            lines.filter(|line| line.contains(part)).count()
        };
        // The plugin logs 40,000 lines in two calls.
        let shown = count("breach: and another thing");
        assert!((200..10_001).contains(&shown), "{shown}");
        let numbers = output.stderr.lines().filter_map(|line| {
            let (count, rest) = line.strip_prefix("warning: breach: ")?.split_once(' ')?;
            rest.starts_with("lines of its log are not shown")
                .then(|| count.parse::<usize>().expect("a number"))
        });
        assert_eq!(shown + numbers.sum::<usize>(), 40_000, "{output}");
    }
}
