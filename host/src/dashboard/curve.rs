//! The history of a metric, in bounded memory.

use host_core::Step;
use host_store::{Point, Series};

/// Maximum number of points of a curve. A longer curve is thinned: of each group of points, the lowest and
/// the highest are kept. A plot still looks the same if the plot's number of columns is at most a quarter of
/// this maximum.
const ROOM: usize = 2048;

/// The points that were read for a metric, in the order of their events.
#[derive(Clone, Debug, Default)]
pub(super) struct Curve {
    points: Vec<Point>,
    /// The newest point. It can be known before the history is read.
    last: Option<Point>,
}

impl Curve {
    /// Creates a curve of which only the last point is known.
    pub(super) fn of(series: &Series) -> Self {
        Self {
            points: Vec::new(),
            last: Some(series.last),
        }
    }

    /// Returns the points. Empty if only the last point is known.
    pub(super) fn points(&self) -> &[Point] {
        &self.points
    }

    /// Returns the newest point.
    pub(super) fn last(&self) -> Option<Point> {
        self.last
    }

    /// Adds a point, unless it is already included.
    pub(super) fn push(&mut self, point: Point) {
        let is_new = |last: Option<&Point>| last.is_none_or(|last| last.seq < point.seq);
        if is_new(self.last.as_ref()) {
            self.last = Some(point);
        }
        if is_new(self.points.last()) {
            self.points.push(point);
            if self.points.len() > ROOM {
                self.points = thinned(&self.points);
            }
        }
    }

    /// Inserts the history before the points that arrived since it was read.
    pub(super) fn put_history(&mut self, mut history: Vec<Point>) {
        let end = history.last().map_or(0, |last| last.seq);
        history.extend(self.points.iter().filter(|point| point.seq > end));
        self.points = history;
        while self.points.len() > ROOM {
            self.points = thinned(&self.points);
        }
        if let Some(&last) = self.points.last() {
            self.last = Some(last);
        }
    }

    /// Removes the points after step `from` that were recorded before event `seq`.
    pub(super) fn supersede(&mut self, from: Step, seq: u64) {
        let counts = |point: &Point| point.step <= from || point.seq > seq;
        self.points.retain(counts);
        self.last = self.last.filter(counts).or(self.points.last().copied());
    }
}

/// Halves the number of points. Keeps the lowest and the highest of every four neighboring points. Always
/// keeps the last point.
fn thinned(points: &[Point]) -> Vec<Point> {
    let Some((&last, before)) = points.split_last() else {
        return Vec::new();
    };
    let mut kept = Vec::with_capacity(points.len() / 2 + 2);
    for stretch in before.chunks(4) {
        let by_value = |a: &&Point, b: &&Point| a.value.total_cmp(&b.value);
        let low = stretch.iter().min_by(by_value);
        let high = stretch.iter().max_by(by_value);
        if let (Some(&low), Some(&high)) = (low, high) {
            kept.push(if low.seq < high.seq { low } else { high });
            if low.seq != high.seq {
                kept.push(if low.seq < high.seq { high } else { low });
            }
        }
    }
    kept.push(last);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(seq: u64, value: f64) -> Point {
        Point {
            seq,
            step: Step(seq * 10),
            time_us: 0,
            value,
        }
    }

    #[test]
    fn a_long_curve_is_bounded_and_keeps_its_extremes_and_its_last_point() {
        let mut curve = Curve::default();
        for seq in 1..=100_000 {
            let value = match seq {
                31_234 => 99.0,
                61_235 => -99.0,
                _ => (seq % 7) as f64,
            };
            curve.push(point(seq, value));
        }
        let points = curve.points();
        assert!(points.len() <= ROOM && points.len() > ROOM / 4);
        assert!(points.is_sorted_by_key(|point| point.seq));
        for seq in [31_234, 61_235, 100_000] {
            assert!(points.iter().any(|point| point.seq == seq), "{seq}");
        }
    }

    #[test]
    fn a_history_is_merged_with_newer_points() {
        let mut curve = Curve::default();
        for seq in [5, 6, 7] {
            curve.push(point(seq, 1.0));
        }
        curve.put_history((1..=6).map(|seq| point(seq, 2.0)).collect());
        curve.push(point(7, 3.0));
        let seen: Vec<(u64, f64)> = curve.points().iter().map(|p| (p.seq, p.value)).collect();
        assert_eq!(
            seen,
            [
                (1, 2.0),
                (2, 2.0),
                (3, 2.0),
                (4, 2.0),
                (5, 2.0),
                (6, 2.0),
                (7, 1.0)
            ]
        );
    }

    #[test]
    fn a_resume_supersedes_only_earlier_points() {
        let mut curve = Curve::default();
        curve.put_history(vec![point(1, 1.0), point(2, 1.0), point(9, 1.0)]);
        curve.supersede(Step(10), 5);
        let seen: Vec<u64> = curve.points().iter().map(|point| point.seq).collect();
        assert_eq!(seen, [1, 9]);
        assert_eq!(curve.last().map(|point| point.seq), Some(9));
    }
}
