use std::time::Instant;

use host_core::{EventBody, StopReason};
use host_serve::{Client, Server, Source};
use host_store::RunList;
use serde_json::{Value, json};

use crate::{draft, four_values, millis, new_run, percentile};

/// Measures how long it takes to list a thousand finished runs, from the files and over gRPC.
pub(crate) fn measure() -> Value {
    const RUNS: usize = 1000;
    let runs = tempfile::tempdir().expect("a folder");
    for n in 0..RUNS {
        let mut writer = new_run(&runs.path().join(format!("run-{n:04}")));
        let end = EventBody::RunFinished {
            reason: StopReason::Completed,
            message: String::new(),
        };
        let started = EventBody::RunStarted { generation: 0 };
        let steps = (1..50).map(|step| draft(step, four_values(step)));
        let events = [draft(0, started)]
            .into_iter()
            .chain(steps)
            .chain([draft(50, end)]);
        writer.append(events.collect()).expect("written");
    }
    let mut file_ms = timed(|| {
        let listed = RunList::new(runs.path()).all().expect("a list");
        listed.iter().filter(|(_, row)| row.is_ok()).count()
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
            .runs()
            .expect("a list")
            .iter()
            .filter(|(_, row)| row.is_ok())
            .count()
    });
    let (file, rpc) = (percentile(&mut file_ms, 0.5), percentile(&mut rpc_ms, 0.5));
    println!("a list of {RUNS} runs: {file:.1} ms from the files, {rpc:.1} ms over gRPC (medians)");
    json!({ "files_ms": file, "rpc_ms": rpc })
}

fn timed(mut list: impl FnMut() -> usize) -> Vec<f64> {
    let mut ms = Vec::new();
    for _ in 0..11 {
        let begin = Instant::now();
        assert_eq!(list(), 1000);
        ms.push(millis(begin.elapsed()));
    }
    ms
}
