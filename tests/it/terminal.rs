//! What goes to stdout and what to stderr.

use crate::support::Home;

#[test]
fn stdout_has_the_last_words_alone() {
    let home = Home::new();
    let output = home.train("plain", &[]).succeeded();
    let labels: Vec<&str> = output
        .stdout
        .lines()
        .map(|line| line.split("  ").next().unwrap_or_default())
        .collect();
    assert_eq!(
        labels,
        ["run", "loss/eval", "checkpoints", "next", ""],
        "{output}"
    );
    // The line that shows it in TensorBoard is the one to paste.
    let said = |start: &str| {
        let line = output
            .stderr
            .lines()
            .find_map(|line| line.strip_prefix(start));
        line.unwrap_or_else(|| panic!("no {start}: {output}"))
            .to_owned()
    };
    let address = said("gRPC at ");
    assert!(address.starts_with("127.0.0.1:"), "{output}");
    let command = said("TensorBoard: ");
    assert_eq!(
        command,
        format!("tensorboard --grpc_data_provider={address}")
    );
    // Where nobody sits at a terminal nothing moves a cursor.
    assert!(!format!("{output}").contains('\u{1b}'), "{output}");
}

#[test]
fn stdout_is_empty_where_nothing_was_trained() {
    let home = Home::new();
    assert_eq!(home.train("none", &["--seq-length", "1"]).stdout, "");
}

#[test]
fn with_json_every_line_of_stdout_is_an_object_and_no_event_is_missing() {
    let home = Home::new();
    let output = home.train("json", &["--json"]).succeeded();
    let objects = output.objects();
    let (opened, events) = objects.split_first().expect("lines");
    assert_eq!(opened["kind"], "run");
    assert_eq!(opened["name"], "json");
    assert!(!output.stderr.contains("TensorBoard"), "{output}");
    let numbers: Vec<u64> = events
        .iter()
        .filter_map(|event| event["seq"].as_u64())
        .collect();
    assert_eq!(numbers, (1..=events.len() as u64).collect::<Vec<_>>());
    assert_eq!(events.first().expect("events")["kind"], "run_started");
    assert_eq!(events.last().expect("events")["kind"], "run_finished");
    assert!(output.stderr.contains("host runs show"), "{output}");
}

#[test]
fn help_is_on_stdout_and_names_every_command_and_exit_code() {
    let home = Home::new();
    let help = home.host(&["--help"]).succeeded();
    for word in [
        "run", "resume", "groups", "plugin", "runs", "serve", "watch", "generate", "130", "143",
    ] {
        assert!(help.stdout.contains(word), "{word}: {help}");
    }
    assert_eq!(help.stderr, "");
}
