//! A writer killed at a random moment leaves a file that is whole, and that a next writer goes on
//! with.
#![allow(missing_docs)]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use host_core::{Emitter, EventBody, MetricValue, Step};
use host_store::{Callbacks, FILE, Reader, RunRecord, RunStatus, Writer};

/// Set in the child, which is this same test run again.
const CHILD: &str = "HOST_STORE_WRITE_TO";

#[test]
fn a_killed_writer_leaves_a_whole_file() {
    if let Some(dir) = std::env::var_os(CHILD) {
        write_for_ever(Path::new(&dir));
    }
    let dir = tempfile::tempdir().expect("a folder");
    let record = RunRecord {
        name: "killed".to_owned(),
        created_us: 0,
        config_json: "{}".to_owned(),
    };
    drop(Writer::create(dir.path(), &record).expect("a run"));
    let reader = Reader::open(dir.path()).expect("a run");
    let mut random = fastrand::Rng::with_seed(7);
    let mut before = 0;
    for _ in 0..6 {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "a_killed_writer_leaves_a_whole_file"])
            .env(CHILD, dir.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("a child");
        while reader.last_seq().expect("readable") <= before {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(random.u64(0..150)));
        child.kill().expect("killed");
        child.wait().expect("gone");

        assert_eq!(reader.run().expect("readable").status, RunStatus::Crashed);
        before = check(dir.path());
    }
    let mut writer = Writer::open(dir.path()).expect("a next writer");
    assert_eq!(writer.last_seq(), before);
    writer.append(Vec::new()).expect("nothing to do");
}

fn write_for_ever(dir: &Path) -> ! {
    let (emitter, drafts) = Emitter::new(1024);
    let writer = Writer::open(dir).expect("a run");
    let mut n = writer.last_seq();
    let _thread = writer.spawn(drafts, Callbacks::default());
    loop {
        n += 1;
        let body = if n.is_multiple_of(100) {
            EventBody::Warning {
                message: n.to_string(),
            }
        } else {
            #[expect(clippy::cast_precision_loss, reason = "small")]
            let value = n as f64;
            EventBody::Metrics {
                values: ["loss/train", "lr", "samples", "steps"]
                    .map(|name| MetricValue::new(name, value))
                    .to_vec(),
            }
        };
        emitter.emit(Step(n), body);
    }
}

/// Reads everything, and returns the last sequence number.
fn check(dir: &Path) -> u64 {
    let file = rusqlite::Connection::open(dir.join(FILE)).expect("the file");
    let verdict: String = file
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .expect("checked");
    assert_eq!(verdict, "ok");
    drop(file);

    let reader = Reader::open(dir).expect("a run");
    let mut last = 0;
    let mut metrics = 0;
    loop {
        let page = reader.events_after(last, 10_000).expect("readable");
        if page.is_empty() {
            break;
        }
        for event in page {
            last += 1;
            // Events are numbered as the child counted them, over all its lives.
            assert_eq!((event.seq, event.step.0), (last, last));
            metrics += usize::from(matches!(event.body, EventBody::Metrics { .. }));
        }
    }
    assert_eq!(last, reader.last_seq().expect("readable"));
    let history = reader.history("lr", usize::MAX).expect("readable");
    assert_eq!(history.expect("a series").len(), metrics);
    last
}
