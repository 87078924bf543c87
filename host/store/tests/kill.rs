//! Kills writers at random moments: fifty writers with each kind of journal. After each kill, the file must
//! be undamaged and must contain every event up to its last one. An event may be lost only if it was reported
//! less than a second before the kill.
#![allow(missing_docs)]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use host_core::{Emitter, EventBody, MetricValue, Step};
use host_store::{Callbacks, FILE, Journal, Reader, RunRecord, RunStatus, Writer};

/// The environment variable with the run's folder. It is set only in the child process, which runs this same
/// test.
const CHILD: &str = "HOST_STORE_WRITE_TO";

/// Each of `FILES` files has `WRITERS` writers, one after the other. A single file for all writers would take
/// too long, because the file grows with every writer, and the whole file is read after each kill.
const WRITERS: usize = 10;
const FILES: u64 = 5;

#[test]
fn a_killed_writer_leaves_an_intact_file_with_a_log() {
    kill_writers(
        "a_killed_writer_leaves_an_intact_file_with_a_log",
        Journal::Automatic,
    );
}

#[test]
fn a_killed_writer_leaves_an_intact_file_with_a_rollback_journal() {
    let name = "a_killed_writer_leaves_an_intact_file_with_a_rollback_journal";
    kill_writers(name, Journal::Rollback);
}

fn kill_writers(name: &str, journal: Journal) {
    if let Some(dir) = std::env::var_os(CHILD) {
        write_for_ever(Path::new(&dir), journal);
    }
    let mut random = fastrand::Rng::with_seed(7);
    let mut worst = 0;
    for _ in 0..FILES {
        let dir = tempfile::tempdir().expect("a folder");
        let record = RunRecord {
            name: "killed".to_owned(),
            created_us: 0,
            config_json: "{}".to_owned(),
        };
        drop(Writer::create_with(dir.path(), &record, journal).expect("a run"));
        // A reader that stays open while writers are killed.
        let reader = Reader::open(dir.path()).expect("a run");
        let mut before = 0;
        for _ in 0..WRITERS {
            let mut child = Command::new(std::env::current_exe().expect("this program"))
                .args(["--exact", name, "--nocapture"])
                .env(CHILD, dir.path())
                .stdout(Stdio::piped())
                .spawn()
                .expect("a child");
            let said = listen(child.stdout.take().expect("piped"));
            while reader.last_seq().expect("readable") <= before {
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(Duration::from_micros(random.u64(0..60_000)));
            let last_said_us = kill(child, said);

            assert_eq!(reader.run().expect("readable").status, RunStatus::Crashed);
            before = check(dir.path());
            let kept_us = reader.run().expect("readable").last_time_us;
            worst = worst.max(last_said_us - kept_us);
        }
        let mut writer = Writer::open_with(dir.path(), journal).expect("a next writer");
        assert_eq!(writer.last_seq(), before);
        writer.append(Vec::new()).expect("nothing to do");
    }
    println!("{journal:?}: at most {worst} us of the reported events were lost");
    assert!(worst < 1_000_000, "{worst} us were lost");
}

/// Reads the times of the events that the child process reports; returns the last time.
fn listen(said: ChildStdout) -> std::thread::JoinHandle<i64> {
    let read = move || {
        let lines = BufReader::new(said).lines().map_while(Result::ok);
        // The last line may be incomplete, and the test harness prints other lines.
        let times =
            lines.filter_map(|line| line.strip_prefix("said ")?.strip_suffix('.')?.parse().ok());
        times.last().expect("the child reported a time")
    };
    let thread = std::thread::Builder::new().name("listener".to_owned());
    thread.spawn(read).expect("a thread")
}

fn kill(mut child: Child, said: std::thread::JoinHandle<i64>) -> i64 {
    child.kill().expect("killed");
    child.wait().expect("gone");
    said.join().expect("the last time")
}

fn write_for_ever(dir: &Path, journal: Journal) -> ! {
    let (emitter, drafts) = Emitter::new(1024);
    let writer = Writer::open_with(dir, journal).expect("a run");
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
        if n.is_multiple_of(10) {
            // The event is emitted first and reported afterwards, as in a run.
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            let us = now.expect("after 1970").as_micros();
            writeln!(std::io::stdout(), "said {us}.").expect("heard");
        }
    }
}

/// Checks the whole store, and returns its last sequence number.
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
            // Each step has the same number as its event. Each child process continues the numbers of the
            // previous one.
            assert_eq!((event.seq, event.step.0), (last, last));
            metrics += usize::from(matches!(event.body, EventBody::Metrics { .. }));
        }
    }
    assert_eq!(last, reader.last_seq().expect("readable"));
    let history = reader.history("lr", usize::MAX).expect("readable");
    assert_eq!(history.expect("a series").len(), metrics);
    last
}
