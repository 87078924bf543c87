//! What a gRPC client receives from live and finished runs.

use std::fs;
use std::time::Duration;

use host_core::{Event, EventBody, StopReason};
use host_serve::{Client, WatchEnd};
use serde_json::json;

use crate::support::{Home, Process, events_of};

/// Starts a run that only a signal ends. Returns its process and its address.
fn start_endless(home: &Home, name: &str) -> (Process, String) {
    let flags = [
        "--max-train-steps",
        "1000000",
        "--save-checkpoint-steps",
        "50",
        "--json",
    ];
    let run = home.start_training(name, &flags);
    let opened = run.event(|object| object["kind"] == "run");
    let address = opened["listen"].as_str().expect("an address").to_owned();
    (run, address)
}

#[test]
fn a_client_that_reconnects_sees_every_event_once() {
    let home = Home::new();
    let (run, address) = start_endless(&home, "live");
    let file = fs::read_to_string(home.run_dir("live").join("grpc.addr")).expect("an address");
    assert_eq!(file.trim(), address);

    // The first connection ends in the middle of the stream, with messages in transit.
    let mut seen: Vec<Event> = Vec::new();
    {
        let client = Client::connect(&address).expect("connected");
        let events = client.watch("live", 0, true);
        seen.extend(events.take(25).map(|event| event.expect("an event")));
    }
    let cursor = seen.last().expect("events").seq;
    let client = Client::connect(&address).expect("connected again");
    let mut watch = client.watch("", cursor, true);
    for event in &mut watch {
        seen.push(event.expect("an event"));
        if seen.len() == 100 {
            run.terminate();
        }
    }
    assert_eq!(watch.end(), Some(WatchEnd::RunFinished));
    run.output().ended_with(143);

    let numbers: Vec<u64> = seen.iter().map(|event| event.seq).collect();
    assert_eq!(numbers, (1..=seen.len() as u64).collect::<Vec<_>>());
    assert_eq!(seen, events_of(&home.run_dir("live")));
    let last = &seen.last().expect("events").body;
    let reason = StopReason::Terminated;
    let message = String::new();
    assert_eq!(*last, EventBody::RunFinished { reason, message });
}

#[test]
fn a_finished_run_is_served_like_a_live_one() {
    let home = Home::new();
    home.train("over", &["--plugin", "perplexity"]).succeeded();
    let server = home.start(&["serve", "--runs", "runs"]);
    let line = server.printed("gRPC at ");
    let address = line
        .split([' ', ':'])
        .skip(2)
        .take(2)
        .collect::<Vec<_>>()
        .join(":");
    let command = format!("TensorBoard: tensorboard --grpc_data_provider={address}");
    assert_eq!(server.printed("TensorBoard"), command);

    let client = Client::connect(&address).expect("connected");
    let runs = client.runs().expect("runs");
    assert_eq!(runs.len(), 1);
    let (name, row) = &runs[0];
    assert_eq!(name.as_str(), "over");
    assert_eq!(row.as_ref().expect("readable").last_step.0, 20);
    let run = client.run("over").expect("a run");
    let config: serde_json::Value = serde_json::from_str(&run.config_json).expect("JSON");
    assert_eq!(config["max_train_steps"], 20);

    let stored = events_of(&home.run_dir("over"));
    for cursor in [0, 10, stored.len()] {
        let mut watch = client.watch("over", cursor as u64, true);
        let seen: Vec<Event> = watch
            .by_ref()
            .map(|event| event.expect("an event"))
            .collect();
        assert_eq!(seen, stored[cursor..]);
        assert_eq!(watch.end(), Some(WatchEnd::RunFinished));
    }
    let losses = client.history("over", "loss/train", 0).expect("a history");
    let steps: Vec<u64> = losses.iter().map(|point| point.step.0).collect();
    assert_eq!(steps, (1..=20).collect::<Vec<_>>());
    let metrics = client.series("over").expect("metrics");
    assert!(metrics.iter().any(|metric| &*metric.name == "perplexity"));

    // A run that starts later is served, too.
    home.train("later", &[]).succeeded();
    let later = client
        .watch("later", 0, true)
        .map(|event| event.expect("an event"));
    assert_eq!(later.collect::<Vec<_>>(), events_of(&home.run_dir("later")));
    let refused = client.run("none").expect_err("no such run");
    assert!(refused.message().contains("none"), "{refused}");

    server.interrupt();
    server.output().succeeded();

    // TensorBoard cannot send a token, so its command is not printed.
    let server = home.start_with(
        &[("READ", "a-reader-0123456789")],
        &["serve", "--read-token-env", "READ"],
    );
    server.printed("gRPC at ");
    server.interrupt();
    let output = server.output().succeeded();
    assert!(!output.stdout.contains("TensorBoard"), "{output}");
}

/// The smallest possible model. Its steps are so quick that a few seconds of events fill a connection's
/// buffers.
const SMALLEST: &str = r#"{
    "model_type": "gpt2", "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 1,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0
}"#;

#[test]
fn a_client_that_does_not_read_delays_nothing() {
    let home = Home::new();
    fs::write(home.path("config.json"), SMALLEST).expect("written");
    let steps = 12_000;
    let run = home.start_training(
        "unread",
        &[
            "--model=./config.json",
            "--vocab-size=257",
            "--seq-length=2",
            "--train-batch-size=1",
            "--save-checkpoint-steps=0",
            &format!("--max-train-steps={steps}"),
            "--json",
        ],
    );
    let opened = run.event(|object| object["kind"] == "run");
    let address = opened["listen"].as_str().expect("an address");
    let client = Client::connect(address).expect("connected");
    let mut watch = client.watch("unread", 0, true).patience(Duration::ZERO);
    watch.next().expect("an event").expect("an event");

    // The client stops reading, and the run still completes.
    let output = run.output().succeeded();
    let events = output.events();
    let trained = events
        .iter()
        .filter(|event| !event["values"]["loss/train"].is_null());
    assert_eq!(trained.count(), steps);
    // If the training loop had waited for the store, there would be a warning.
    let warnings = events.iter().filter(|event| event["kind"] == "warning");
    assert_eq!(warnings.count(), 0);
    // The server was indeed unable to send all events.
    let arrived = watch.by_ref().map_while(Result::ok).count();
    assert!(arrived < events.len(), "{arrived}: a longer run is needed");
}

#[test]
fn host_watch_shows_a_live_run_and_ends_with_it() {
    let home = Home::new();
    let (run, address) = start_endless(&home, "watched");
    let by_name = home.start(&["watch", "watched"]);
    let by_address = home.start(&["watch", &address, "--json"]);
    by_name.printed("loss/eval");
    by_address.event(|event| event["kind"] == "checkpoint_written");
    run.terminate();
    run.output().ended_with(143);

    let by_name = by_name.output().succeeded();
    assert!(
        by_name.stdout.starts_with("run watched at step "),
        "{by_name}"
    );
    assert!(
        by_name.stdout.trim_end().ends_with("terminated"),
        "{by_name}"
    );
    let shown = by_address.output().succeeded().objects();
    let stored = events_of(&home.run_dir("watched"));
    let numbers: Vec<u64> = shown
        .iter()
        .filter_map(|event| event["seq"].as_u64())
        .collect();
    assert_eq!(
        numbers,
        stored.iter().map(|event| event.seq).collect::<Vec<_>>()
    );
    assert_eq!(shown.last().expect("events")["kind"], json!("run_finished"));

    // A finished run is read from its folder.
    let again = home.host(&["watch", "watched"]).succeeded().stdout;
    assert!(again.trim_end().ends_with("terminated"), "{again}");
}
