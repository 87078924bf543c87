use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use host_core::{Emitter, EventBody, RequestQueue, Step, StopReason};
use host_proto::tracker::v1 as proto;
use host_serve::{Server, Source};
use host_store::Callbacks;
use proto::tracker_service_client::TrackerServiceClient;
use serde_json::{Value, json};
use tonic::Streaming;
use tonic::transport::Channel;

use crate::{four_values, new_run, percentile};

/// Flags with which this program starts itself again: the first for a process with watchers, the second for a
/// process that serves a folder.
pub(crate) const WATCH: &str = "--watch";
pub(crate) const SERVE: &str = "--serve";
/// Two more flags: the first for watchers that never read, the second for a live run with such watchers.
pub(crate) const SLEEP: &str = "--watch-asleep";
pub(crate) const HOLD: &str = "--hold";

const WATCHERS: usize = 100;
const SECS: u64 = 8;
const EVENTS_PER_SEC: u64 = 10;
/// Number of events of the live run whose watchers never read. The events amount to 20 MB on the wire.
const FLOOD: u64 = 200_000;

/// Measures three cases. The first is a hundred watchers of a live run that emits ten events per second. This
/// case alternates with its baseline, a run without watchers. The second case is one watcher of a separate
/// service. The third is a hundred watchers that never read.
pub(crate) fn measure() -> Value {
    let (mut with, mut without, mut late_ms) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..2 {
        without.push(live(0).0);
        let (share, late) = live(WATCHERS);
        with.push(share);
        late_ms.extend(late);
    }
    let mut separate_ms = separate();
    let [alone, held] = [0, WATCHERS].map(resident_kb);
    let each_kb = (held - alone) / WATCHERS as f64;
    let show = |shares: &[f64]| {
        shares
            .iter()
            .map(|share| format!("{share:.2} %"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    println!(
        "{WATCHERS} watchers at {EVENTS_PER_SEC} events per second: the server's threads use {} of one core; without watchers {}",
        show(&with),
        show(&without)
    );
    let (p50, p99) = (
        percentile(&mut late_ms, 0.5),
        percentile(&mut late_ms, 0.99),
    );
    let (far50, far99) = (
        percentile(&mut separate_ms, 0.5),
        percentile(&mut separate_ms, 0.99),
    );
    println!("latency of an event, live run: p50 {p50:.1} ms, p99 {p99:.1} ms");
    println!("latency of an event, separate service: p50 {far50:.1} ms, p99 {far99:.1} ms");
    println!(
        "{FLOOD} events to {WATCHERS} watchers that never read: the process uses {each_kb:.0} KB per watcher"
    );
    json!({ "percent_of_a_core": with, "asleep_kb": each_kb, "percent_without_watchers": without, "live_p50_ms": p50,
        "live_p99_ms": p99, "separate_p50_ms": far50, "separate_p99_ms": far99 })
}

/// Returns the CPU usage of the server's threads as a percentage of one core, and the latency of each event
/// in ms.
fn live(watchers: usize) -> (f64, Vec<f64>) {
    let runs = tempfile::tempdir().expect("a folder");
    let dir = runs.path().join("bench");
    let (emitter, drafts) = Emitter::new(16_384);
    let thread = new_run(&dir)
        .spawn(drafts, Callbacks::default())
        .expect("a thread");
    let source = Source::Live {
        run_dir: dir.clone(),
        commits: thread.commits(),
        // No requests are sent, so only this end of the queue is needed.
        requests: RequestQueue::new().0,
    };
    let serving = Server::new("127.0.0.1:0".parse().expect("an address"), source)
        .start()
        .expect("a server");
    let child = (watchers > 0).then(|| Watching::start(&serving.addr().to_string(), watchers));
    let before = serving_secs();
    let begun = Instant::now();
    emit_for_a_while(&emitter);
    let share = 100.0 * (serving_secs() - before) / begun.elapsed().as_secs_f64();
    finish(emitter);
    thread.join().expect("all is written");
    let late = child.map(Watching::lateness).unwrap_or_default();
    serving.stop().expect("stopped");
    (share, late)
}

/// Starts a process with a live run that has many events. The run has this number of watchers, which never
/// read. Returns the resident memory of the process.
fn resident_kb(watchers: usize) -> f64 {
    let mut child = again(&[HOLD, &watchers.to_string()]);
    let mut said = String::new();
    let mut out = child.stdout.take().expect("piped");
    out.read_to_string(&mut said).expect("an answer");
    child.wait().expect("gone");
    said.trim().parse().expect("a number")
}

/// Runs the process that [`resident_kb`] measures.
pub(crate) fn hold(watchers: &str) {
    let watchers: usize = watchers.parse().expect("a count");
    let runs = tempfile::tempdir().expect("a folder");
    let dir = runs.path().join("bench");
    let (emitter, drafts) = Emitter::new(16_384);
    let thread = new_run(&dir)
        .spawn(drafts, Callbacks::default())
        .expect("a thread");
    let commits = thread.commits();
    let source = Source::Live {
        run_dir: dir,
        commits: commits.clone(),
        requests: RequestQueue::new().0,
    };
    let serving = Server::new("127.0.0.1:0".parse().expect("an address"), source)
        .start()
        .expect("a server");
    let child = (watchers > 0).then(|| {
        let mut child = again(&[SLEEP, &serving.addr().to_string(), &watchers.to_string()]);
        let mut said = BufReader::new(child.stdout.take().expect("piped"));
        said.read_line(&mut String::new()).expect("ready");
        child
    });
    (0..FLOOD).for_each(|n| emitter.emit(Step(n), four_values(n)));
    commits.wait_settled(FLOOD, Duration::from_secs(60));
    // Wait until all data in flight has been buffered.
    std::thread::sleep(Duration::from_secs(2));
    let status = std::fs::read_to_string("/proc/self/status").expect("readable");
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident = resident.and_then(|size| size.split_whitespace().next());
    println!("{}", resident.expect("a size"));
    if let Some(mut child) = child {
        child.kill().expect("ended");
        child.wait().expect("gone");
    }
    drop(emitter);
    thread.join().expect("all is written");
}

/// Runs the process of the watchers that never read. Each watcher opens a stream but does not read from it.
/// The parent kills the process.
pub(crate) fn sleep(addr: &str, count: &str) {
    let count: usize = count.parse().expect("a count");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let mut streams = Vec::new();
        for _ in 0..count {
            streams.push(stream(addr).await);
        }
        println!("ready");
        std::future::pending::<()>().await;
    });
}

/// Opens a stream of all events of the run over a new connection.
async fn stream(addr: &str) -> Streaming<proto::WatchEventsResponse> {
    let channel = Channel::from_shared(format!("http://{addr}")).expect("an address");
    let mut client = TrackerServiceClient::new(channel.connect().await.expect("connected"));
    let request = proto::WatchEventsRequest {
        run: "bench".to_owned(),
        after_seq: 0,
        follow: true,
    };
    let answer = client.watch_events(request).await.expect("a stream");
    answer.into_inner()
}

/// Measures one watcher of a service that runs in another process. Returns the latency of each event.
fn separate() -> Vec<f64> {
    let runs = tempfile::tempdir().expect("a folder");
    let (emitter, drafts) = Emitter::new(16_384);
    let writer = new_run(&runs.path().join("bench"));
    let thread = writer
        .spawn(drafts, Callbacks::default())
        .expect("a thread");
    let mut service = again(&[SERVE, runs.path().to_str().expect("UTF-8")]);
    let mut addr = String::new();
    let mut said = BufReader::new(service.stdout.take().expect("piped"));
    said.read_line(&mut addr).expect("an address");
    let child = Watching::start(addr.trim(), 1);
    emit_for_a_while(&emitter);
    finish(emitter);
    thread.join().expect("all is written");
    let late = child.lateness();
    service.kill().expect("ended");
    service.wait().expect("gone");
    late
}

fn emit_for_a_while(emitter: &Emitter) {
    let begun = Instant::now();
    for n in 0..SECS * EVENTS_PER_SEC {
        let next =
            begun + Duration::from_secs(1) * u32::try_from(n).expect("few") / EVENTS_PER_SEC as u32;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        emitter.emit(Step(n), four_values(n));
    }
}

fn finish(emitter: Emitter) {
    let (reason, message) = (StopReason::Completed, String::new());
    emitter.emit(Step(0), EventBody::RunFinished { reason, message });
}

/// Returns the CPU time of this process's server threads.
fn serving_secs() -> f64 {
    let mut ns = 0;
    for thread in std::fs::read_dir("/proc/self/task")
        .expect("threads")
        .flatten()
    {
        let read =
            |file: &str| std::fs::read_to_string(thread.path().join(file)).unwrap_or_default();
        if read("comm").starts_with("serve") {
            let stat = read("schedstat");
            ns += stat
                .split(' ')
                .next()
                .and_then(|ns| ns.parse::<u64>().ok())
                .unwrap_or(0);
        }
    }
    ns as f64 / 1e9
}

/// A process of watchers.
struct Watching {
    child: Child,
    said: BufReader<std::process::ChildStdout>,
}

impl Watching {
    /// Starts the process and waits until all its watchers have a stream.
    fn start(addr: &str, count: usize) -> Self {
        let mut child = again(&[WATCH, addr, &count.to_string()]);
        let mut said = BufReader::new(child.stdout.take().expect("piped"));
        let mut ready = String::new();
        said.read_line(&mut ready).expect("ready");
        Self { child, said }
    }

    /// Waits for the process to end and returns the latency of each event in milliseconds.
    fn lateness(mut self) -> Vec<f64> {
        let lines = self.said.by_ref().lines().map_while(Result::ok);
        let late = lines.map(|line| line.parse().expect("a number")).collect();
        self.child.wait().expect("gone");
        late
    }
}

fn again(arguments: &[&str]) -> Child {
    Command::new(std::env::current_exe().expect("this program"))
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .expect("a child")
}

/// Runs the process that serves a folder. It prints its address; the parent kills it.
pub(crate) fn serve(runs_dir: &Path) {
    let source = Source::Folder(runs_dir.to_owned());
    let serving = Server::new("127.0.0.1:0".parse().expect("an address"), source)
        .start()
        .expect("a server");
    println!("{}", serving.addr());
    loop {
        std::thread::park();
    }
}

/// Runs the process of the watchers. Each watcher has its own connection.
pub(crate) fn watch(addr: &str, count: &str) {
    let count: usize = count.parse().expect("a count");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let late = runtime.block_on(async {
        let mut watchers = Vec::new();
        for _ in 0..count {
            let mut stream = stream(addr).await;
            watchers.push(tokio::spawn(async move {
                let mut late = Vec::new();
                while let Some(piece) = stream.message().await.expect("a piece") {
                    let now = SystemTime::now()
                        .duration_since(UNIX_EPOCH)
                        .expect("after 1970");
                    let now_us = i64::try_from(now.as_micros()).expect("before 292277");
                    late.extend(
                        piece
                            .events
                            .iter()
                            .map(|event| (now_us - event.time_us) as f64 / 1e3),
                    );
                }
                late
            }));
        }
        println!("ready");
        let mut late = Vec::new();
        for watcher in watchers {
            late.extend(watcher.await.expect("watched"));
        }
        late
    });
    let mut out = std::io::stdout().lock();
    late.iter()
        .for_each(|late| writeln!(out, "{late}").expect("heard"));
}
