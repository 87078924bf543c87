//! The preflight before the first step: sinks that are not ready are found, and a run that does not start
//! leaves no files.

use serde_json::Value;
use test_hub::{READ_TOKEN, TestHub, WRITE_TOKEN};

use crate::support::Home;

const HUB_GIT: [&str; 2] = ["--plugin", "hub-git:repo=ann/model"];

fn run<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["run", "tiny.toml", "--name", "run"][..], &HUB_GIT, more].concat()
}

#[test]
fn all_sinks_that_are_not_ready_are_reported_and_the_run_does_not_start() {
    let home = Home::new();
    let hub = TestHub::start();
    hub.create_repo("ann/model", &[(".gitattributes", "")]);
    let env = |token| [("HF_ENDPOINT", hub.url()), ("HF_TOKEN", token)];
    let gone = home.text_path("gone.git");
    let second = format!("hub-git:repo=file://{gone}");
    let output = home.host_with(&env(READ_TOKEN), &run(&["--plugin", &second]));
    let (error, hint) = output.failed_with(3);
    assert!(
        error.contains("hub-git is not ready: ") && error.contains("You have read access only"),
        "{error}"
    );
    assert!(error.contains("; hub-git-2 is not ready: "), "{error}");
    assert!(error.contains(&gone), "{error}");
    assert!(hint.contains("hub-git, hub-git-2"), "{hint}");
    assert!(hint.contains("--preflight warn"), "{hint}");
    assert!(!home.run_dir("run").exists());

    // The rejected run did not take the name: with a token for writing, a run of this name succeeds.
    let output = home.host_with(&env(WRITE_TOKEN), &run(&[])).succeeded();
    assert!(
        output.stderr.contains("hub-git is ready: branch run"),
        "{output}"
    );
}

#[test]
fn with_preflight_warn_there_is_a_warning_event_and_the_run_starts() {
    let home = Home::new();
    let hub = TestHub::start();
    hub.create_repo("ann/model", &[(".gitattributes", "")]);
    let env = [("HF_ENDPOINT", hub.url()), ("HF_TOKEN", READ_TOKEN)];
    let more = ["--preflight", "warn", "--json"];
    let output = home.host_with(&env, &run(&more));
    output.failed_with(4);
    let warns = |event: &Value| {
        let message = event["message"].as_str().unwrap_or_default();
        event["kind"] == "warning" && message.starts_with("hub-git is not ready: ")
    };
    let events = output.events();
    assert_eq!(events.iter().filter(|event| warns(event)).count(), 1);
    let recorded = std::fs::read_to_string(home.run_dir("run").join("run.toml"));
    assert!(recorded.expect("a file").contains("preflight = \"warn\""));

    // A flag of `host resume` overrides the setting in the file. With `off`, there is no preflight.
    let resume = ["resume", "run", "--max-train-steps", "25"];
    let strict = [&resume[..], &["--preflight", "fail"]].concat();
    home.host_with(&env, &strict).failed_with(3);
    let silent = [&resume[..], &["--preflight", "off", "--json"]].concat();
    let output = home.host_with(&env, &silent);
    output.failed_with(4);
    assert!(!output.events().iter().any(warns));
}
