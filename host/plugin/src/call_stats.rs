use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::PluginKind;

/// Counts, failures and durations of the calls into a plugin, summed over its instances. `[any]`
///
/// Durations are stored in histograms with four fixed buckets for each power of two. A percentile is
/// therefore accurate to about one eighth, and recording a duration takes only a few additions.
#[derive(Clone, Debug, Default)]
pub struct CallAccount(Arc<Mutex<Instances>>);

/// The counters of each instance.
type Instances = Vec<(PluginKind, Arc<CallStats>)>;

/// Counters for the calls into one instance and its replacements.
///
/// Only the owner of the instance writes, so a counter needs no atomic addition. Other threads can read at
/// any time.
#[derive(Debug)]
pub(crate) struct CallStats {
    failures: AtomicU64,
    total_ns: AtomicU64,
    restarts: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

/// A snapshot of a [`CallAccount`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallSummary {
    /// Calls that have returned.
    pub calls: u64,
    /// Calls that failed.
    pub failures: u64,
    /// Total time in calls.
    pub total: Duration,
    /// Total time in calls that the training loop waits for: calls into metrics and observers.
    pub in_loop: Duration,
    /// Median duration of a call.
    pub p50: Duration,
    /// 99th percentile of the duration of a call.
    pub p99: Duration,
    /// Number of restarts. A restart is either a new instance after a panic, or a new child process.
    pub restarts: u64,
}

/// The base-2 logarithm of the number of buckets for each power of two.
const STEP_BITS: u32 = 2;
const STEPS: usize = 1 << STEP_BITS;
const BUCKETS: usize = (u64::BITS - STEP_BITS + 1) as usize * STEPS;

impl CallAccount {
    /// Adds counters for the calls into a new plugin instance of this kind, and returns them.
    pub(crate) fn open(&self, kind: PluginKind) -> Arc<CallStats> {
        let stats = Arc::<CallStats>::default();
        let mut instances = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        instances.push((kind, Arc::clone(&stats)));
        stats
    }

    /// Returns the current totals.
    pub fn summary(&self) -> CallSummary {
        let instances = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut counts = [0; BUCKETS];
        let mut summary = CallSummary::default();
        for (kind, stats) in instances.iter() {
            for (count, bucket) in counts.iter_mut().zip(&stats.buckets) {
                *count += bucket.load(Ordering::Relaxed);
            }
            let total = Duration::from_nanos(stats.total_ns.load(Ordering::Relaxed));
            summary.total += total;
            if matches!(kind, PluginKind::Metric | PluginKind::Observer) {
                summary.in_loop += total;
            }
            summary.failures += stats.failures.load(Ordering::Relaxed);
            summary.restarts += stats.restarts.load(Ordering::Relaxed);
        }
        summary.calls = counts.iter().sum();
        summary.p50 = percentile(&counts, 50);
        summary.p99 = percentile(&counts, 99);
        summary
    }
}

impl Default for CallStats {
    fn default() -> Self {
        Self {
            failures: AtomicU64::new(0),
            total_ns: AtomicU64::new(0),
            restarts: AtomicU64::new(0),
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }
}

impl CallStats {
    /// Counts a call that has returned. Must be called only by the owner of the instance.
    pub(crate) fn record(&self, took: Duration, failed: bool) {
        // A u64 can hold five centuries in nanoseconds.
        let ns = took.as_secs() * 1_000_000_000 + u64::from(took.subsec_nanos());
        add(&self.total_ns, ns);
        add(&self.buckets[bucket(ns)], 1);
        if failed {
            add(&self.failures, 1);
        }
    }

    /// Counts a restart of the instance. Must be called only by the owner of the instance.
    pub(crate) fn restarted(&self) {
        add(&self.restarts, 1);
    }
}

/// Adds without an atomic read-modify-write: each counter has only one writer.
fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Relaxed);
}

fn percentile(counts: &[u64; BUCKETS], percent: u64) -> Duration {
    let rank = (counts.iter().sum::<u64>() * percent).div_ceil(100).max(1);
    let mut below = 0;
    let at = counts.iter().position(|n| {
        below += n;
        below >= rank
    });
    Duration::from_nanos(at.map_or(0, middle))
}

fn bucket(ns: u64) -> usize {
    if ns < STEPS as u64 {
        return ns as usize;
    }
    let shift = ns.ilog2() - STEP_BITS;
    (shift as usize) * STEPS + (ns >> shift) as usize
}

/// Returns the middle of a bucket's range.
fn middle(bucket: usize) -> u64 {
    if bucket < STEPS {
        return bucket as u64;
    }
    let shift = (bucket / STEPS - 1) as u32;
    let start = ((bucket % STEPS + STEPS) as u64) << shift;
    start + (1 << shift) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_is_near_the_middle_of_its_bucket() {
        for ns in (0..64)
            .flat_map(|power| [1u64 << power, (1 << power) + (1 << power) / 3])
            .chain([0, u64::MAX])
        {
            let middle = middle(bucket(ns));
            assert!(middle.abs_diff(ns) <= ns / 8 + 1, "{ns} {middle}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn the_summary_covers_all_instances() {
        let account = CallAccount::default();
        assert_eq!(account.summary(), CallSummary::default());
        let metric = account.open(PluginKind::Metric);
        let sink = account.open(PluginKind::CheckpointSink);
        for _ in 0..98 {
            metric.record(Duration::from_micros(10), false);
        }
        sink.record(Duration::from_millis(5), true);
        sink.record(Duration::from_millis(5), true);
        sink.restarted();
        let summary = account.summary();
        assert_eq!((summary.calls, summary.failures), (100, 2));
        assert_eq!(summary.restarts, 1);
        assert_eq!(summary.total, Duration::from_micros(10_980));
        assert_eq!(summary.in_loop, Duration::from_micros(980));
        assert!(summary.p50.abs_diff(Duration::from_micros(10)) < Duration::from_micros(2));
        assert!(summary.p99.abs_diff(Duration::from_millis(5)) < Duration::from_millis(1));
    }
}
