use std::path::Path;
use std::time::{Duration, Instant};

use host_core::Event;
use host_store::Reader;

/// Returns all events of a run, including superseded ones.
pub(crate) fn events_of(run_dir: &Path) -> Vec<Event> {
    let reader = Reader::open(run_dir).expect("a store");
    reader.events_after(0, 1_000_000).expect("events")
}

/// Returns the step and the bits of each value of a metric. Leaves out superseded values. Bits can be
/// compared even if a value is NaN.
pub(crate) fn curve(run_dir: &Path, metric: &str) -> Vec<(u64, u64)> {
    let reader = Reader::open(run_dir).expect("a store");
    let points = reader.history(metric, 1_000_000).expect("a history");
    let points = points.unwrap_or_else(|| panic!("no metric {metric}"));
    let bits = |point: &host_store::Point| (point.step.0, point.value.to_bits());
    points.iter().map(bits).collect()
}

/// Waits until a run's store has a matching event, and returns the event. Reads only the store, not the
/// output of the run's process.
#[track_caller]
pub(crate) fn await_event(run_dir: &Path, fits: impl Fn(&Event) -> bool) -> Event {
    let ends = Instant::now() + Duration::from_secs(120);
    let mut cursor = 0;
    loop {
        let read = |reader: Reader| reader.events_after(cursor, 10_000);
        // The store does not exist until the run has started.
        for event in Reader::open(run_dir).and_then(read).unwrap_or_default() {
            cursor = event.seq;
            if fits(&event) {
                return event;
            }
        }
        assert!(
            Instant::now() < ends,
            "no such event: {}",
            run_dir.display()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}
