//! Runs plugins that end the host's own process. The host must always name the plugin and the call, and must
//! never report success.

use host_core::{EventBody, StopReason};
use serde_json::json;

use crate::support::{Fixture, Home, events_of};

/// Builds a plugin and returns its SPEC with these settings.
fn spec(home: &Home, fixture: &Fixture, settings: &str) -> String {
    format!("{}:{settings}", fixture.build(&home.path("")).display())
}

#[test]
fn a_plugin_that_ends_the_process_is_named_with_its_call() {
    let home = Home::new();
    for (kind, how, said) in [
        ("metric", "exit update", "in update: it called exit(0)"),
        ("metric", "exit-7 create", "in create: it called exit(7)"),
        ("metric", "_Exit compute", "in compute: it called _exit(0)"),
        ("metric", "exit destroy", "in destroy: it called exit(0)"),
        (
            "metric",
            "thread-exit update",
            "from its own thread: it called exit(0)",
        ),
        (
            "observer",
            "quick_exit observe",
            "in observe: it called quick_exit(0)",
        ),
        (
            "param_groups",
            "_exit group",
            "in group: it called _exit(0)",
        ),
        // During `publish`, the training loop still runs.
        (
            "checkpoint_sink",
            "exit publish",
            "in publish: it called exit(0)",
        ),
    ] {
        let settings = format!("how={how},mode=in_process");
        let plugin = spec(&home, &Fixture::breach(kind), &settings);
        let name = format!("ended-{}", how.replace(['_', ' '], "-"));
        let output = home.train(&name, &["--plugin", &plugin]);
        // Lines that are still queued may be printed after the error. So the error is not always at the end.
        let output = output.ended_with(3);
        let error =
            format!("error: plugin breach ended the process {said}\nhint: run `host resume` ");
        assert!(output.stderr.contains(&error), "{output}");
    }
}

#[test]
fn a_constructor_that_ends_the_process_is_named() {
    let home = Home::new();
    let fixture = Fixture::breach("metric").flag("-DAT_LOAD=\"exit\"");
    let output = home.train("load", &["--plugin", &spec(&home, &fixture, "how=no")]);
    let (error, _) = output.failed_with(3);
    assert_eq!(
        error,
        "plugin breach ended the process in load: it called exit(0)"
    );
    assert!(!home.path("runs").exists(), "a run was created");
}

/// A library's destructor runs when the process exits and could change the exit code.
#[test]
fn a_destructor_does_not_change_the_exit_code() {
    let home = Home::new();
    let fixture = Fixture::breach("metric").flag("-DAT_END");
    let plugin = spec(&home, &fixture, "how=fail update");
    let output = home.train("end", &["--plugin", &plugin]);
    let (error, _) = output.failed_with(3);
    assert_eq!(error, "plugin breach failed in update: cannot do update");
}

#[test]
fn a_run_ended_by_a_plugin_records_the_reason_and_can_be_resumed() {
    let home = Home::new();
    let plugin = spec(&home, &Fixture::breach("metric"), "how=exit update late");
    let output = home.train("ended", &["--plugin", &plugin]);
    let (error, _) = output.failed_with(3);
    let said = "plugin breach ended the process in update: it called exit(0)";
    assert_eq!(error, said);
    let last = events_of(&home.run_dir("ended")).pop().expect("events");
    let finished = EventBody::RunFinished {
        reason: StopReason::Failed,
        message: said.to_owned(),
    };
    assert_eq!(last.body, finished);
    let shown = home.host(&["runs", "show", "ended", "--json"]).succeeded();
    assert_eq!(shown.json()["status"], json!("failed"));
    assert!(!home.run_dir("ended").join("grpc.addr").exists());
    assert_eq!(home.checkpoints("ended"), [5]);
    let (error, _) = (home.host(&["resume", "ended"]), ());
    assert_eq!(error.failed_with(3).0, said);
}

#[test]
fn a_plugin_that_crashes_the_process_is_named_with_its_call() {
    let home = Home::new();
    for (kind, how, signal, said) in [
        (
            "metric",
            "segfault update",
            11,
            "in update: SIGSEGV at address 0x10",
        ),
        (
            "metric",
            "bus compute",
            7,
            "in compute: SIGBUS at address 0x",
        ),
        ("metric", "divide reset", 8, "in reset: SIGFPE"),
        ("metric", "abort create", 6, "in create: SIGABRT"),
        ("metric", "raise update", 11, "in update: SIGSEGV"),
        (
            "metric",
            "thread-crash update",
            11,
            "in its own thread: SIGSEGV at address 0x8",
        ),
        ("observer", "trap observe", 4, "in observe: SIGILL"),
        (
            "param_groups",
            "overflow group",
            6,
            "in group: SIGSEGV, stack overflow",
        ),
    ] {
        let plugin = spec(&home, &Fixture::breach(kind), &format!("how={how}"));
        let output = home.train(&how.replace(' ', "-"), &["--plugin", &plugin]);
        assert_eq!(output.signal(), Some(signal), "{output}");
        let errors = output
            .stderr
            .lines()
            .filter(|line| line.starts_with("error: "));
        let [error] = errors.collect::<Vec<_>>()[..] else {
            panic!("{output}");
        };
        let start = format!("error: plugin breach crashed {said}");
        assert!(error.starts_with(&start), "{error}");
    }
}

/// A plugin is allowed to fork, but a child that returned from the plugin's call would be a second host.
#[test]
fn a_process_forked_by_a_plugin_does_not_become_a_second_host() {
    let home = Home::new();
    for (how, is_ended) in [("forks update", false), ("fork-returns update", true)] {
        let plugin = spec(&home, &Fixture::breach("metric"), &format!("how={how}"));
        let name = how.replace(' ', "-");
        let output = home.train(&name, &["--plugin", &plugin]).succeeded();
        let said = "forked the host process; the child process returned from update";
        assert_eq!(output.stderr.contains(said), is_ended, "{output}");
        assert_eq!(home.checkpoints(&name), [5, 10, 15, 20]);
    }
}
