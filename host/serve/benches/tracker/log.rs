use std::sync::Arc;
use std::time::{Duration, Instant};

use host_core::{Emitter, EventBody, MetricValue, Step};
use host_store::Callbacks;
use serde_json::{Value, json};

use crate::{micros, new_run, percentile};

/// Length of the emitter's queue in `host run`.
const QUEUE: usize = 16_384;

/// Measures how long it takes to log four values in one call. There are a thousand calls per second, and a
/// writer empties the queue meanwhile.
pub(crate) fn call() -> Value {
    const CALLS: u64 = 5_000;
    let dir = tempfile::tempdir().expect("a folder");
    let (emitter, drafts) = Emitter::new(QUEUE);
    let thread = new_run(dir.path())
        .spawn(drafts, Callbacks::default())
        .expect("a thread");
    let names = names();
    let mut us = Vec::new();
    let begun = Instant::now();
    for step in 0..CALLS {
        spin_until(begun + Duration::from_millis(step));
        let call = Instant::now();
        emitter.emit(Step(step), four(&names, step));
        us.push(micros(call.elapsed()));
    }
    drop(emitter);
    thread.join().expect("all is written");
    us.drain(..100);
    let (p50, p99) = (percentile(&mut us, 0.5), percentile(&mut us, 0.99));
    println!("a log call of four values: p50 {p50:.2} us, p99 {p99:.2} us");
    json!({ "p50_us": p50, "p99_us": p99 })
}

/// Logs 200,000 points per second for five seconds, and measures how long the calls and the writer take. Then
/// measures the maximum rate.
pub(crate) fn load() -> Value {
    const SECS: u64 = 5;
    const CALLS_PER_MS: u64 = 50;
    let dir = tempfile::tempdir().expect("a folder");
    let (emitter, drafts) = Emitter::new(QUEUE);
    let thread = new_run(dir.path())
        .spawn(drafts, Callbacks::default())
        .expect("a thread");
    let names = names();
    let begun = Instant::now();
    let mut longest = Duration::ZERO;
    for ms in 0..1000 * SECS {
        // Sleep between the bursts. With busy waiting, the writer would have one core fewer than it has in
        // GPU training.
        std::thread::sleep(
            (begun + Duration::from_millis(ms)).saturating_duration_since(Instant::now()),
        );
        for n in 0..CALLS_PER_MS {
            let step = ms * CALLS_PER_MS + n;
            let call = Instant::now();
            emitter.emit(Step(step), four(&names, step));
            longest = longest.max(call.elapsed());
        }
    }
    let (waits, emitted) = (emitter.waits(), emitter.emitted());
    let secs = begun.elapsed().as_secs_f64();
    let commits = thread.commits();
    commits.wait_settled(emitted, Duration::from_secs(60));
    let lag_ms = (begun.elapsed().as_secs_f64() - secs) * 1e3;
    let rate = emitted as f64 * 4.0 / secs;
    println!(
        "{rate:.0} points per second for {SECS} s: the loop waited {waits} times, its longest call took {:.0} us; \
         the last point was on disk {lag_ms:.0} ms later",
        micros(longest)
    );

    let begun = Instant::now();
    for step in 0..500_000 {
        emitter.emit(Step(step), four(&names, step));
    }
    commits.wait_settled(emitter.emitted(), Duration::from_secs(60));
    let most = 2e6 / begun.elapsed().as_secs_f64();
    println!("maximum rate: {most:.0} points per second");
    drop(emitter);
    thread.join().expect("all is written");
    json!({ "points_per_sec": rate, "waits": waits, "longest_call_us": micros(longest),
        "lag_ms": lag_ms, "most_points_per_sec": most })
}

fn names() -> [Arc<str>; 4] {
    ["loss/train", "lr", "samples", "steps"].map(Arc::from)
}

/// Creates values as the training loop does: the names are shared instead of copied.
fn four(names: &[Arc<str>; 4], step: u64) -> EventBody {
    let value = |name: &Arc<str>| MetricValue::new(Arc::clone(name), step as f64 / 7.0);
    EventBody::Metrics {
        values: names.iter().map(value).collect(),
    }
}

fn spin_until(moment: Instant) {
    while Instant::now() < moment {
        std::hint::spin_loop();
    }
}
