use std::collections::BTreeMap;
use std::path::Path;
use std::thread;

use host_core::{
    CheckpointDir, CheckpointSink, FileEntry, Manifest, MetricValue, Publish, Receipt, RunName,
    SinkError, Step,
};
use serde_json::{Value, json};

use crate::fixture::{Fixture, dir, listen, load, log_of};

fn publish(sink: &mut dyn CheckpointSink) -> Result<Receipt, SinkError> {
    let run: RunName = "demo".parse().unwrap();
    let entry = FileEntry {
        sha256: "ab".to_owned(),
        size: 3,
    };
    sink.publish(Publish {
        run: &run,
        checkpoint: &CheckpointDir {
            step: Step(100),
            path: "/runs/demo/checkpoints/step-000100".into(),
            manifest: Manifest {
                files: BTreeMap::from([("config.json".to_owned(), entry)]),
            },
            metrics: vec![
                MetricValue::new("loss/eval", 1.5),
                MetricValue::new("perplexity", f64::INFINITY),
            ],
        },
        state_dir: Path::new("/runs/demo/sinks/x"),
    })
}

fn sink(id: &str, config: Value) -> Box<dyn CheckpointSink> {
    let plugin = Fixture::new("sink.c", id).load_with(dir().path(), config);
    plugin.unwrap().checkpoint_sink().unwrap()
}

#[test]
fn a_checkpoint_is_passed_and_a_receipt_is_returned() {
    let mut sink = sink("good-sink", json!({"keep": 3}));
    assert_eq!(sink.id(), "good-sink");
    let Receipt(receipt) = publish(&mut *sink).unwrap();
    let receipt: Value = serde_json::from_str(&receipt).unwrap();
    assert_eq!(
        receipt,
        json!({
            "step": 100, "run": "demo", "dir": "/runs/demo/checkpoints/step-000100",
            "manifest": {"files": {"config.json": {"sha256": "ab", "size": 3}}},
            "metrics": {"loss/eval": 1.5, "perplexity": "inf"},
            "state_dir": "/runs/demo/sinks/x", "config": {"keep": 3}
        })
    );
}

#[test]
fn two_sinks_of_one_library_have_their_own_settings() {
    let dir = dir();
    let path = Fixture::new("sink.c", "two-sinks").build(dir.path());
    let receipts = [1, 2].map(|keep| {
        let plugin = load(&path, json!({"keep": keep})).unwrap();
        let Receipt(receipt) = publish(&mut *plugin.checkpoint_sink().unwrap()).unwrap();
        assert_eq!(plugin.account().summary().calls, 1);
        serde_json::from_str::<Value>(&receipt).unwrap()["config"]["keep"].clone()
    });
    assert_eq!(receipts, [json!(1), json!(2)]);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mapped = maps
        .lines()
        .filter(|line| line.contains("memfd:two-sinks") && line.contains("r-xp"))
        .count();
    assert_eq!(mapped, 1, "the same bytes are loaded once");
}

#[test]
fn a_failure_is_temporary_or_permanent() {
    for (how, error) in [
        (
            "temporary",
            SinkError::Temporary("the network is down".to_owned()),
        ),
        (
            "publish",
            SinkError::Permanent("publish was told to fail".to_owned()),
        ),
        (
            "silent",
            SinkError::Permanent("it succeeded but put no output".to_owned()),
        ),
        (
            "no_json",
            SinkError::Permanent(
                "its receipt is not a JSON object: expected value at line 1 column 1".to_owned(),
            ),
        ),
    ] {
        let mut sink = sink(&format!("sink-{how}"), json!({"how": how}));
        assert_eq!(publish(&mut *sink), Err(error.clone()));
        assert_eq!(publish(&mut *sink), Err(error), "it can be called again");
    }
}

#[test]
fn a_publish_is_cancelled_from_another_thread() {
    listen();
    let mut sink = sink("cancelled", json!({"how": "wait"}));
    let cancel = sink.canceller();
    thread::scope(|scope| {
        let publishing = scope.spawn(|| publish(&mut *sink));
        while !log_of("cancelled").contains(&"waiting".to_owned()) {
            thread::yield_now();
        }
        cancel();
        assert_eq!(publishing.join().unwrap(), Err(SinkError::Cancelled));
    });
    drop(sink);
    cancel();
    assert_eq!(
        log_of("cancelled"),
        ["create", "waiting", "cancel", "destroy"],
        "a destroyed sink is not cancelled"
    );
}

#[test]
fn after_a_panic_another_instance_publishes_at_most_three_times() {
    listen();
    let mut sink = sink("sink-panic", json!({"how": "panic"}));
    let cancel = sink.canceller();
    let panicked = Err(SinkError::Temporary("it panicked".to_owned()));
    for _ in 0..4 {
        assert_eq!(sink.lost(), None);
        assert_eq!(publish(&mut *sink), panicked);
        cancel();
    }
    assert_eq!(
        sink.lost().unwrap(),
        "it panicked in publish after 3 restarts"
    );
    let again = "it panicked in publish earlier and is not called again";
    assert_eq!(
        publish(&mut *sink),
        Err(SinkError::Temporary(again.to_owned()))
    );
    cancel();
    drop(sink);
    // All instances were destroyed. None was cancelled, because an instance that panicked is not cancelled.
    let log = log_of("sink-panic");
    let count = |what: &str| log.iter().filter(|line| *line == what).count();
    assert_eq!((count("create"), count("destroy")), (4, 4), "{log:?}");
    assert_eq!(count("cancel"), 0, "{log:?}");
}
