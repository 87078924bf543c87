use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often a plugin was called, how that went and how long it took. `[any]`
///
/// Times are kept in a fixed histogram of four steps for each power of two, so a percentile is right
/// to about an eighth and recording costs a few additions.
#[derive(Debug)]
pub struct CallStats {
    failures: AtomicU64,
    total_ns: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

/// [`CallStats`] at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallSummary {
    /// Calls that have returned.
    pub calls: u64,
    /// Those of them that failed.
    pub failures: u64,
    /// Time in all of them.
    pub total: Duration,
    /// Half of the calls took at most this long.
    pub p50: Duration,
    /// 99 of 100 calls took at most this long.
    pub p99: Duration,
}

/// Steps for each power of two, as a power of two.
const STEP_BITS: u32 = 2;
const STEPS: usize = 1 << STEP_BITS;
const BUCKETS: usize = (u64::BITS - STEP_BITS + 1) as usize * STEPS;

impl Default for CallStats {
    fn default() -> Self {
        Self {
            failures: AtomicU64::new(0),
            total_ns: AtomicU64::new(0),
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }
}

impl CallStats {
    pub(crate) fn record(&self, took: Duration, failed: bool) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.total_ns.fetch_add(ns, Ordering::Relaxed);
        self.failures
            .fetch_add(u64::from(failed), Ordering::Relaxed);
        self.buckets[bucket(ns)].fetch_add(1, Ordering::Relaxed);
    }

    /// The numbers as they are now.
    pub fn summary(&self) -> CallSummary {
        let counts = self.buckets.each_ref().map(|n| n.load(Ordering::Relaxed));
        let calls: u64 = counts.iter().sum();
        let percentile = |percent: u64| {
            let rank = (calls * percent).div_ceil(100).max(1);
            let mut below = 0;
            let at = counts.iter().position(|n| {
                below += n;
                below >= rank
            });
            Duration::from_nanos(at.map_or(0, middle))
        };
        CallSummary {
            calls,
            failures: self.failures.load(Ordering::Relaxed),
            total: Duration::from_nanos(self.total_ns.load(Ordering::Relaxed)),
            p50: percentile(50),
            p99: percentile(99),
        }
    }
}

fn bucket(ns: u64) -> usize {
    if ns < STEPS as u64 {
        return ns as usize;
    }
    let shift = ns.ilog2() - STEP_BITS;
    (shift as usize) * STEPS + (ns >> shift) as usize
}

/// The middle of a bucket's times.
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
    fn every_time_has_a_bucket_whose_middle_is_near() {
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
    fn the_summary_counts_and_ranks() {
        let stats = CallStats::default();
        assert_eq!(stats.summary(), CallSummary::default());
        for _ in 0..98 {
            stats.record(Duration::from_micros(10), false);
        }
        stats.record(Duration::from_millis(5), true);
        stats.record(Duration::from_millis(5), true);
        let summary = stats.summary();
        assert_eq!((summary.calls, summary.failures), (100, 2));
        assert_eq!(summary.total, Duration::from_micros(10_980));
        assert!(summary.p50.abs_diff(Duration::from_micros(10)) < Duration::from_micros(2));
        assert!(summary.p99.abs_diff(Duration::from_millis(5)) < Duration::from_millis(1));
    }
}
