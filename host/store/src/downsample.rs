use crate::Point;

/// Reduces a history to a maximum number of points, chosen so that a plot of them looks like a plot of the
/// whole history. Keeps the lowest and the highest point of each bucket of neighboring points, and the last
/// point of the history. A history that does not exceed the maximum is not changed.
///
/// A NaN is kept in two cases only: if the whole bucket is NaN, or if it is the last point. If the maximum is
/// below three, only the last point is kept.
#[derive(Debug)]
pub(crate) struct Downsample {
    total: usize,
    buckets: usize,
    seen: usize,
    /// The lowest and the highest point of the current bucket.
    extremes: Option<(Point, Point)>,
    bucket: usize,
    last: Option<Point>,
    kept: Vec<Point>,
}

impl Downsample {
    /// Prepares to reduce a history of `total` points to at most `max_points`.
    pub(crate) fn new(total: usize, max_points: usize) -> Self {
        // Two points per bucket, and one for the last point.
        let buckets = match max_points {
            _ if total <= max_points => total,
            n => n.saturating_sub(1) / 2,
        };
        Self {
            total,
            buckets,
            seen: 0,
            extremes: None,
            bucket: 0,
            last: None,
            kept: Vec::with_capacity(total.min(max_points)),
        }
    }

    /// Adds the next point.
    pub(crate) fn push(&mut self, point: Point) {
        self.last = Some(point);
        if self.buckets == self.total {
            self.kept.push(point);
        } else if self.buckets > 0 {
            let bucket = self.seen * self.buckets / self.total;
            if bucket != self.bucket {
                self.close();
                self.bucket = bucket;
            }
            let (low, high) = self.extremes.get_or_insert((point, point));
            if point.value < low.value || low.value.is_nan() && !point.value.is_nan() {
                *low = point;
            }
            if point.value > high.value || high.value.is_nan() && !point.value.is_nan() {
                *high = point;
            }
        }
        self.seen += 1;
    }

    /// Returns the kept points, in order.
    pub(crate) fn finish(mut self) -> Vec<Point> {
        self.close();
        if let Some(last) = self.last
            && self.kept.last().is_none_or(|kept| kept.seq != last.seq)
        {
            self.kept.push(last);
        }
        self.kept
    }

    fn close(&mut self) {
        if let Some((low, high)) = self.extremes.take() {
            let (first, second) = if low.seq <= high.seq {
                (low, high)
            } else {
                (high, low)
            };
            self.kept.push(first);
            if second.seq != first.seq {
                self.kept.push(second);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thinned(values: &[f64], max_points: usize) -> Vec<f64> {
        let mut downsample = Downsample::new(values.len(), max_points);
        for (seq, &value) in (1..).zip(values) {
            downsample.push(Point {
                seq,
                step: host_core::Step(seq),
                time_us: 0,
                value,
            });
        }
        let kept = downsample.finish();
        assert!(kept.is_sorted_by(|a, b| a.seq < b.seq));
        kept.iter().map(|point| point.value).collect()
    }

    #[test]
    fn a_history_that_fits_is_unchanged() {
        assert_eq!(thinned(&[3.0, 1.0, 2.0], 3), [3.0, 1.0, 2.0]);
        assert_eq!(thinned(&[], 10), [0.0; 0]);
    }

    #[test]
    fn extremes_and_the_last_point_are_kept_for_every_size() {
        let values: Vec<f64> = (0..1000).map(|i| f64::from((i * 7919) % 1009)).collect();
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        for max_points in 1..=1001 {
            let kept = thinned(&values, max_points);
            assert!(kept.len() <= max_points, "{max_points}");
            assert_eq!(kept.last(), values.last());
            if max_points >= 3 {
                assert!(kept.contains(&low) && kept.contains(&high), "{max_points}");
            }
        }
    }

    #[test]
    fn nan_does_not_hide_extremes() {
        let nan = f64::NAN;
        let kept = thinned(&[nan, 1.0, nan, 5.0, nan, 2.0, nan, nan], 3);
        assert_eq!(kept[..2], [1.0, 5.0]);
        assert!(kept[2].is_nan());
        assert!(thinned(&[nan; 8], 3).iter().all(|value| value.is_nan()));
        assert_eq!(
            thinned(&[0.0, f64::INFINITY, 1.0, f64::NEG_INFINITY, 0.5], 3),
            [f64::INFINITY, f64::NEG_INFINITY, 0.5]
        );
    }
}
