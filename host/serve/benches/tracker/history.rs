use std::time::Instant;

use host_serve::{Client, Server, Source};
use host_store::Reader;
use serde_json::{Value, json};

use crate::{draft, four_values, millis, new_run, percentile};

/// Measures how long it takes to read a metric. The metric has a million points, which are reduced to a
/// thousand. It is read from the file, and then over gRPC.
pub(crate) fn measure() -> Value {
    const POINTS: u64 = 1_000_000;
    let runs = tempfile::tempdir().expect("a folder");
    let dir = runs.path().join("bench");
    let mut writer = new_run(&dir);
    for begin in (0..POINTS).step_by(10_000) {
        let drafts = (begin..begin + 10_000).map(|step| draft(step, four_values(step)));
        writer.append(drafts.collect()).expect("written");
    }
    drop(writer);
    let reader = Reader::open(&dir).expect("a run");
    let mut read_ms = timed(|| {
        reader
            .history("loss/train", 1000)
            .expect("readable")
            .map_or(0, |p| p.len())
    });
    let serving = Server::new(
        "127.0.0.1:0".parse().expect("an address"),
        Source::Folder(runs.path().to_owned()),
    )
    .start()
    .expect("a server");
    let client = Client::connect(&serving.addr().to_string()).expect("a client");
    let mut rpc_ms = timed(|| {
        client
            .history("bench", "loss/train", 1000)
            .expect("points")
            .len()
    });
    let (read, rpc) = (percentile(&mut read_ms, 0.5), percentile(&mut rpc_ms, 0.5));
    println!(
        "{POINTS} points reduced to 1000: {read:.1} ms from the file, {rpc:.1} ms over gRPC (medians)"
    );
    json!({ "read_ms": read, "rpc_ms": rpc })
}

fn timed(mut read: impl FnMut() -> usize) -> Vec<f64> {
    let mut ms = Vec::new();
    for _ in 0..21 {
        let begin = Instant::now();
        let points = read();
        ms.push(millis(begin.elapsed()));
        assert!((900..=1000).contains(&points), "{points} points");
    }
    ms
}
