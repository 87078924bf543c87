use std::path::Path;

use host_core::Event;
use host_store::Reader;

/// All events of a run, those that no longer count included.
pub(crate) fn events_of(run_dir: &Path) -> Vec<Event> {
    let reader = Reader::open(run_dir).expect("a store");
    reader.events_after(0, 1_000_000).expect("events")
}

/// A metric's values by step, as they count. Bits, since NaN equals nothing.
pub(crate) fn curve(run_dir: &Path, metric: &str) -> Vec<(u64, u64)> {
    let reader = Reader::open(run_dir).expect("a store");
    let points = reader.history(metric, 1_000_000).expect("a history");
    let points = points.unwrap_or_else(|| panic!("no metric {metric}"));
    let bits = |point: &host_store::Point| (point.step.0, point.value.to_bits());
    points.iter().map(bits).collect()
}
