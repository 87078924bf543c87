//! `host control`: requests to a live run, and the tokens that they need.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use host_core::{Ask, EventBody, Request};
use host_serve::{Access, Client, Remote, Server, Source, Token};
use host_store::{RunRecord, Writer};
use serde_json::json;

use crate::support::{Home, curve, events_of};

/// Arguments for a run that trains until a request stops it.
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
        assert_eq!(done["step"], paused["step"], "the training is paused");
    }
    let step = paused["step"].as_u64().expect("a step");
    run.event(|event| event["kind"] == "checkpoint_written" && event["step"] == step);
    asked(&["continue"]);
    run.event(|event| event["step"] == step + 1 && event["values"]["lr"].is_number());
    asked(&["stop"]);
    let output = run.output().succeeded();
    assert!(!output.stdout.contains(&secret) && !output.stderr.contains(&secret));
    assert!(
        !token.exists(),
        "the token file is removed at the end of the run"
    );
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

    // No file of the run contains the secret.
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
fn a_learning_rate_set_after_the_steps_checkpoint_is_not_lost() {
    let home = Home::new();
    // Every step writes its checkpoint before requests are handled.
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
    // The schedule itself hardly changes the rate in one step, because it has a million steps.
    assert!(
        (after / before - 0.25).abs() < 0.01,
        "{after} after {before}"
    );
}

#[test]
fn guessed_tokens_are_reported_and_weak_tokens_are_rejected() {
    let home = Home::new();
    // This token is accepted, although it is short. After wrong guesses, calls with a short token have to
    // wait even if the token is correct.
    let token = [("CONTROL", "an-owner-9876543210")];
    let train = [
        "run",
        "tiny.toml",
        "--name",
        "guessed",
        "--control-token-env",
        "CONTROL",
    ];
    let run = home.start_with(&token, &[&train[..], &ENDLESS].concat());
    let opened = run.event(|event| event["kind"] == "run");
    let address = opened["listen"].as_str().expect("an address").to_owned();
    let ask = |token: &str| {
        let remote = Remote {
            token: Some(token.to_owned()),
            ..Remote::at(&address)
        };
        let ask = Ask {
            request: Request::Stop,
            reason: String::new(),
        };
        Client::connect_to(&remote)
            .expect("connected")
            .ask("", "", ask)
    };
    for guess in 0..10 {
        let refused = ask(&format!("guess-{guess}")).expect_err("refused");
        assert!(refused.message().contains("unknown token"), "{refused}");
    }
    let warned = run.event(|event| event["kind"] == "warning");
    let said = warned["message"].as_str().expect("a message");
    assert!(
        said.starts_with("10 wrong tokens came from 127.0.0.1"),
        "{said}"
    );
    // The owner is not locked out.
    ask(token[0].1).expect("stopped");
    run.output().succeeded();

    for weak in ["x", "fifteen-letters", "aaaaaaaaaaaaaaaaaaaaaaaa"] {
        let output = home.host_with(&[("CONTROL", weak)], &train);
        let (error, hint) = output.failed_with(2);
        assert!(error.contains("environment variable CONTROL"), "{error}");
        assert!(!error.contains(weak) || weak.len() == 1, "{error}");
        assert!(hint.contains("openssl rand"), "{hint}");
    }
}

#[test]
fn a_run_folder_does_not_choose_which_secret_is_sent_where() {
    let home = Home::new();
    let run = home.start_training("mine", &ENDLESS);
    run.event(|event| event["values"]["loss/train"].is_number());
    // An attacker's run folder. Its files name one of the user's environment variables, and a server to which
    // the variable's value would be sent.
    let secret = "a-secret-of-the-user-s";
    let access = Access {
        read: Some(Token::new(secret)),
        control: None,
    };
    let any_port = "127.0.0.1:0".parse().expect("an address");
    let server = Server::new(any_port, Source::Folder(home.path("runs"))).access(access);
    let server = server.start().expect("a server");
    let (mine, theirs) = (home.run_dir("mine"), home.run_dir("theirs"));
    let record = RunRecord {
        name: "theirs".to_owned(),
        created_us: 0,
        config_json: "{}".to_owned(),
    };
    let at_work = Writer::create(&theirs, &record).expect("a run");
    let config = fs::read_to_string(mine.join("run.toml")).expect("a file");
    let keys = "control_token_env = \"SECRET\"\nread_token_env = \"SECRET\"\n";
    fs::write(theirs.join("run.toml"), format!("{keys}{config}")).expect("written");
    fs::write(theirs.join("grpc.addr"), server.addr().to_string()).expect("written");
    let env = [("SECRET", secret)];
    let watch = [
        "watch", "theirs", "--run", "mine", "--after", "1000000", "--json",
    ];
    for args in [&watch[..], &["control", "theirs", "pause"]] {
        let output = home.host_with(&env, args);
        let (error, hint) = output.failed_with(2);
        assert!(error.contains("no token was given"), "{error}");
        assert!(hint.contains("--token-env"), "{hint}");
    }
    // A token is sent only in two cases: the user names its environment variable, or the run folder's token
    // file contains it. This file must be a regular file that the user owns.
    let said = home.host_with(&env, &[&watch[..], &["--token-env", "SECRET"]].concat());
    let said = said.ended_with(2);
    assert!(said.stderr.contains("cursor 1000000"), "{said}");
    let token = theirs.join("control.token");
    fs::write(home.path("elsewhere"), secret).expect("written");
    symlink(home.path("elsewhere"), &token).expect("linked");
    let linked = home.host_with(&env, &watch);
    assert!(
        linked.failed_with(2).0.contains("no token was given"),
        "{linked}"
    );
    fs::remove_file(&token).expect("removed");
    fs::write(&token, secret).expect("written");
    let own = home.host(&watch).ended_with(2);
    assert!(own.stderr.contains("cursor 1000000"), "{own}");
    drop((server, at_work));
    home.host(&["control", "mine", "stop"]).succeeded();
    run.output().succeeded();
}

#[test]
fn serving_beyond_this_machine_requires_tls_and_tokens() {
    let home = Home::new();
    let refused = home.train("open", &["--listen", "0.0.0.0:0"]);
    let (_, hint) = refused.failed_with(2);
    assert!(hint.contains("--tls self-signed"), "{hint}");

    let tokens = [
        ("READ", "a-reader-0123456789"),
        ("CONTROL", "an-owner-9876543210"),
    ];
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
    assert!(
        output.failed_with(2).0.contains("permits reading"),
        "{output}"
    );
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
        !file.contains("a-reader-0123456789") && !file.contains("an-owner-9876543210"),
        "{file}"
    );
}
