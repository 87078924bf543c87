//! `host control`: what people ask of a live run, and who may.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use host_core::{EventBody, Request};
use serde_json::json;

use crate::support::{Home, curve, events_of};

/// A training that only a request ends.
const ENDLESS: [&str; 5] = [
    "--max-train-steps",
    "1000000",
    "--save-checkpoint-steps",
    "0",
    "--json",
];

#[test]
fn a_live_run_is_paused_changed_and_stopped() {
    let home = Home::new();
    let run = home.start_training("live", &ENDLESS);
    run.event(|event| event["values"]["loss/train"].is_number());
    let token = home.run_dir("live").join("control.token");
    let mode = fs::metadata(&token).expect("a token").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let secret = fs::read_to_string(&token).expect("a token");

    let asked = |verb: &[&str]| {
        let args = [
            &[
                "control", "live", "--json", "--by", "ann", "--reason", "to see",
            ],
            verb,
        ];
        home.host(&args.concat()).succeeded().json()
    };
    let paused = asked(&["pause"]);
    assert_eq!(paused["request"], json!({ "kind": "pause" }));
    for verb in [&["set-lr", "0.5"][..], &["evaluate"], &["checkpoint"]] {
        let done = asked(verb);
        assert_eq!(done["step"], paused["step"], "the loop stands still");
    }
    let step = paused["step"].as_u64().expect("a step");
    run.event(|event| event["kind"] == "checkpoint_written" && event["step"] == step);
    asked(&["continue"]);
    run.event(|event| event["step"] == step + 1 && event["values"]["lr"].is_number());
    asked(&["stop"]);
    let output = run.output().succeeded();
    assert!(!output.stdout.contains(&secret) && !output.stderr.contains(&secret));
    assert!(!token.exists(), "it ends with the run");
    assert!(
        home.checkpoint("live", step)
            .join("manifest.json")
            .is_file()
    );

    let events = events_of(&home.run_dir("live"));
    let requests: Vec<Request> = events
        .iter()
        .filter_map(|event| match &event.body {
            EventBody::Request {
                by,
                request,
                reason,
            } => {
                assert_eq!((by.as_str(), reason.as_str()), ("client:ann", "to see"));
                Some(*request)
            }
            _ => None,
        })
        .collect();
    let expected = [
        Request::Pause,
        Request::SetLearningRate { factor: 0.5 },
        Request::Evaluate,
        Request::Checkpoint,
        Request::Continue,
        Request::Stop,
    ];
    assert_eq!(requests, expected);

    // No file of the run has the secret.
    for file in ["run.toml", "events.db", "events.db-wal"] {
        let bytes = fs::read(home.run_dir("live").join(file)).unwrap_or_default();
        let found = bytes
            .windows(secret.len())
            .any(|part| part == secret.as_bytes());
        assert!(!found, "{file}");
    }
    let output = home.host(&["control", "live", "stop"]);
    let (error, _) = output.failed_with(2);
    assert!(error.starts_with("run live is not live: "), "{error}");
}

#[test]
fn a_rate_that_was_set_after_the_steps_checkpoint_is_not_lost() {
    let home = Home::new();
    // Every step has its checkpoint before anybody is listened to.
    let every = ["--save-checkpoint-steps", "1", "--keep-checkpoints", "3"];
    let run = home.start_training("set", &[&ENDLESS[..2], &every, &["--json"]].concat());
    run.event(|event| event["kind"] == "checkpoint_written");
    let asked = |verb: &[&str]| {
        let args = [&["control", "set"], verb, &["--json"]].concat();
        home.host(&args).succeeded().json()
    };
    let step = asked(&["pause"])["step"].as_u64().expect("a step");
    asked(&["set-lr", "0.25"]);
    asked(&["stop"]);
    run.output().succeeded();
    assert_eq!(home.checkpoints("set").last(), Some(&step));

    let before = curve(&home.run_dir("set"), "lr");
    let before = f64::from_bits(before.last().expect("a rate").1);

    let run = home.start(&["resume", "set", "--json"]);
    let next = run.event(|event| event["step"] == step + 1 && event["values"]["lr"].is_number());
    run.terminate();
    run.output().ended_with(143);
    let after = next["values"]["lr"].as_f64().expect("a rate");
    // The schedule itself is all but level over one step of a million.
    assert!(
        (after / before - 0.25).abs() < 0.01,
        "{after} after {before}"
    );
}

#[test]
fn beyond_this_machine_a_run_takes_tls_and_tokens() {
    let home = Home::new();
    let refused = home.train("open", &["--listen", "0.0.0.0:0"]);
    let (_, hint) = refused.failed_with(2);
    assert!(hint.contains("--tls self-signed"), "{hint}");

    let tokens = [("READ", "a-reader"), ("CONTROL", "an-owner")];
    let service = [
        "--listen",
        "0.0.0.0:0",
        "--tls",
        "self-signed",
        "--read-token-env",
        "READ",
        "--control-token-env",
        "CONTROL",
    ];
    let train = ["run", "tiny.toml", "--name", "wide"];
    let run = home.start_with(&tokens, &[&train[..], &service, &ENDLESS].concat());
    let opened = run.event(|event| event["kind"] == "run");
    let fingerprint = opened["tls_fingerprint"].as_str().expect("a fingerprint");
    let port = opened["listen"].as_str().expect("an address");
    let port = port.rsplit_once(':').expect("a port").1;
    let address = format!("https://127.0.0.1:{port}");
    let asks = |variable: &str, verb: &str| {
        let args = [
            "control",
            &address,
            "--tls-fingerprint",
            fingerprint,
            "--token-env",
        ];
        home.host_with(&tokens, &[&args[..], &[variable, verb]].concat())
    };
    let output = asks("READ", "pause");
    assert!(output.failed_with(2).0.contains("may read"), "{output}");
    let output = home.host(&["control", &address, "pause"]);
    assert!(
        output.failed_with(2).1.contains("--tls-fingerprint"),
        "{output}"
    );
    assert!(!home.run_dir("wide").join("control.token").exists());
    asks("CONTROL", "stop").succeeded();
    run.output().succeeded();
    let file = fs::read_to_string(home.run_dir("wide").join("run.toml")).expect("run.toml");
    assert!(file.contains("read_token_env = \"READ\""), "{file}");
    assert!(
        !file.contains("a-reader") && !file.contains("an-owner"),
        "{file}"
    );
}
