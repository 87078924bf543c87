//! Checks a sink's calls: arguments, cancellation and faults.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use host_plugin_sdk::{Cancel, Checkpoint, CheckpointSink, Error, Host, Result};
use host_plugin_sdk::{export_plugin, fake};
use serde_json::{Value, json};

/// Becomes true when the sink starts to wait for `cancel`.
static WAITING: AtomicBool = AtomicBool::new(false);

/// A sink whose configuration selects its behavior.
struct Actor(Config);

#[derive(serde::Deserialize)]
struct Config {
    act: String,
}

impl CheckpointSink for Actor {
    type Config = Config;

    fn create(config: Config, _host: Host) -> Result<Self> {
        Ok(Self(config))
    }

    fn publish(&mut self, checkpoint: &Checkpoint<'_>, cancel: &Cancel) -> Result<Value> {
        match self.0.act.as_str() {
            "wait" => {
                // Another thread of the sink can use a clone of the flag.
                let (told, tell) = mpsc::sync_channel(1);
                let watched = cancel.clone();
                WAITING.store(true, Ordering::Release);
                std::thread::scope(|scope| {
                    scope.spawn(move || {
                        while !watched.is_requested() {
                            std::thread::yield_now();
                        }
                        told.send(()).expect("the sink waits");
                    });
                    tell.recv().expect("the helper");
                });
                cancel.check()?;
                Ok(Value::Null)
            }
            "disk" => Err(std::io::Error::from(std::io::ErrorKind::StorageFull).into()),
            "panic" => panic!("lost {}", checkpoint.run()),
            "unsupported" => Err(Error::unsupported("not on this machine")),
            _ => Ok(json!({
                "step": checkpoint.step(),
                "run": checkpoint.run(),
                "dir": checkpoint.dir(),
                "state_dir": checkpoint.state_dir(),
                "files": checkpoint.files(),
                "best": checkpoint.metrics()["loss/eval"],
                "infinite": checkpoint.metrics()["perplexity"].is_infinite(),
                "cancelled": cancel.is_requested(),
            })),
        }
    }
}

export_plugin! { description: "Has a configured behavior", checkpoint_sink: Actor }

fn sink(act: &str) -> fake::CheckpointSink {
    let config = json!({ "act": act }).to_string();
    fake::Plugin::load(&PLUGIN)
        .checkpoint_sink(&config)
        .expect("created")
}

fn checkpoint(scratch: &fake::Scratch) -> fake::Checkpoint {
    let dir = scratch.path().join("step-000007");
    fake::Checkpoint::write(&dir, 7, &[("a", b"abc"), ("trainer/b", b"")])
}

#[test]
fn a_sink_gets_all_data_of_a_checkpoint() {
    let scratch = fake::Scratch::new();
    let checkpoint = checkpoint(&scratch)
        .with_metric("loss/eval", 1.5)
        .with_metric("perplexity", f64::INFINITY);
    let receipt = sink("tell").publish(&checkpoint).expect("published");
    assert_eq!(receipt["step"], 7);
    assert_eq!(receipt["run"], "demo");
    assert_eq!(receipt["dir"], json!(checkpoint.dir()));
    assert_eq!(receipt["state_dir"], json!(checkpoint.state_dir()));
    assert_eq!(receipt["files"]["trainer/b"]["size"], 0);
    let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(
        receipt["files"]["a"],
        json!({ "sha256": sha256, "size": 3 })
    );
    assert_eq!(receipt["best"], 1.5);
    assert_eq!(receipt["infinite"], true);
}

#[test]
fn cancel_ends_the_running_publish_and_no_later_one() {
    let scratch = fake::Scratch::new();
    let checkpoint = checkpoint(&scratch)
        .with_metric("loss/eval", 1.0)
        .with_metric("perplexity", 1.0);
    let mut waiting = sink("wait");
    let ended = waiting.publish_with(&checkpoint, |canceller| {
        while !WAITING.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        canceller.cancel();
    });
    assert!(ended.expect_err("cancelled").is_cancelled());
    let mut telling = sink("tell");
    telling
        .publish_with(&checkpoint, fake::Canceller::cancel)
        .expect("published");
    let receipt = telling.publish(&checkpoint).expect("published");
    assert_eq!(receipt["cancelled"], false);
}

#[test]
fn failures_have_the_right_status() {
    let scratch = fake::Scratch::new();
    let checkpoint = checkpoint(&scratch);
    assert!(
        sink("disk")
            .publish(&checkpoint)
            .expect_err("full")
            .is_temporary()
    );
    let failure = sink("unsupported")
        .publish(&checkpoint)
        .expect_err("refused");
    assert!(failure.is_unsupported());
    let mut panicking = sink("panic");
    let failure = panicking.publish(&checkpoint).expect_err("panics");
    assert_eq!(failure.message, "panicked: lost demo");
    // After a panic, `cancel` can still be called.
    let failure = panicking.publish_with(&checkpoint, fake::Canceller::cancel);
    assert!(failure.expect_err("poisoned").is_panic());
}

#[test]
fn an_invalid_checkpoint_is_rejected() {
    let scratch = fake::Scratch::new();
    let entry = r#"{"sha256": "00", "size": 0}"#;
    for (manifest, says) in [
        ("{}".to_owned(), "missing field `files`"),
        (
            format!(r#"{{"files": {{"../x": {entry}}}}}"#),
            "outside the folder: ../x",
        ),
        (
            format!(r#"{{"files": {{"/x": {entry}}}}}"#),
            "outside the folder: /x",
        ),
        (
            r#"{"files": {"x": {"sha256": "00"}}}"#.to_owned(),
            "missing field `size`",
        ),
    ] {
        let checkpoint = checkpoint(&scratch).claim_manifest(&manifest);
        let failure = sink("tell").publish(&checkpoint).expect_err(says);
        assert!(failure.message.contains(says), "{failure}");
    }
    for run in ["", "..", "a/b", "/a"] {
        let checkpoint = checkpoint(&scratch).of_run(run);
        let failure = sink("tell").publish(&checkpoint).expect_err(run);
        assert!(failure.message.contains("run name"), "{failure}");
    }
}
