use std::sync::Arc;

use host_core::{Result, Step};

use crate::{Point, Reader};

/// A whole series of one run, without superseded points.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// Number of points; at least one.
    pub count: u64,
    /// The last point.
    pub last: Point,
    /// The first point with the lowest value; `None` if all values are NaN.
    pub lowest: Option<Point>,
    /// The first point with the highest value; `None` if all values are NaN.
    pub highest: Option<Point>,
    /// The last value of each step, sorted by step.
    values: Vec<(Step, f64)>,
}

/// A metric of several runs side by side.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricComparison {
    /// The metric's name.
    pub name: Arc<str>,
    /// Steps at which every run with this metric has a value. If there are too many, they are thinned evenly,
    /// but the last step is kept.
    pub steps: Vec<Step>,
    /// One entry per run, in the order of the runs; `None` for a run without the metric.
    pub runs: Vec<Option<RunMetric>>,
}

/// One run's part of a comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct RunMetric {
    /// Number of points; at least one.
    pub count: u64,
    /// The last point.
    pub last: Point,
    /// The point with the lowest value; `None` if all values are NaN.
    pub lowest: Option<Point>,
    /// The point with the highest value; `None` if all values are NaN.
    pub highest: Option<Point>,
    /// The values at the comparison's steps.
    pub values: Vec<f64>,
}

impl Reader {
    /// Returns a whole series. Returns `None` if it has no points, or if all its points are superseded.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read.
    pub fn curve(&self, series: &str) -> Result<Option<Curve>> {
        let mut curve: Option<Curve> = None;
        self.points(
            |name| name == series,
            |_, point| {
                match &mut curve {
                    Some(curve) => curve.push(point),
                    None => curve = Some(Curve::new(point)),
                }
                Ok(())
            },
        )?;
        Ok(curve.map(Curve::by_step))
    }
}

impl Curve {
    fn new(point: Point) -> Self {
        let number = (!point.value.is_nan()).then_some(point);
        Self {
            count: 1,
            last: point,
            lowest: number,
            highest: number,
            values: vec![(point.step, point.value)],
        }
    }

    fn push(&mut self, point: Point) {
        self.count += 1;
        self.last = point;
        if !point.value.is_nan() {
            if self.lowest.is_none_or(|lowest| point.value < lowest.value) {
                self.lowest = Some(point);
            }
            if self.highest.is_none_or(|high| point.value > high.value) {
                self.highest = Some(point);
            }
        }
        match self.values.last_mut() {
            Some(last) if last.0 == point.step => last.1 = point.value,
            _ => self.values.push((point.step, point.value)),
        }
    }

    /// Sorts the values by step and keeps the last value of each step. The values are nearly always sorted
    /// already.
    fn by_step(mut self) -> Self {
        if !self.values.is_sorted_by(|a, b| a.0 < b.0) {
            self.values.sort_by_key(|&(step, _)| step);
            // `dedup_by_key` keeps the first value of a step, but the last value is needed.
            self.values.reverse();
            self.values.dedup_by_key(|&mut (step, _)| step);
            self.values.reverse();
        }
        self
    }

    /// Returns the values at these steps. The curve must have a value at each of these steps.
    fn at(&self, steps: &[Step]) -> Vec<f64> {
        let mut values = self.values.iter();
        let mut at = |step: &Step| values.find(|(at, _)| at == step).map(|&(_, value)| value);
        steps.iter().filter_map(&mut at).collect()
    }
}

impl MetricComparison {
    /// Compares the curves of a metric at no more than `max_points` of their common steps.
    pub fn new(name: Arc<str>, curves: Vec<Option<Curve>>, max_points: usize) -> Self {
        let steps = thinned(common_steps(&curves), max_points);
        let beside = |curve: Curve| RunMetric {
            values: curve.at(&steps),
            count: curve.count,
            last: curve.last,
            lowest: curve.lowest,
            highest: curve.highest,
        };
        let runs = curves.into_iter().map(|curve| curve.map(beside)).collect();
        Self { name, steps, runs }
    }
}

fn common_steps(curves: &[Option<Curve>]) -> Vec<Step> {
    let mut curves = curves.iter().flatten();
    let Some(first) = curves.next() else {
        return Vec::new();
    };
    let mut steps: Vec<Step> = first.values.iter().map(|&(step, _)| step).collect();
    for curve in curves {
        let mut values = curve.values.iter().peekable();
        steps.retain(|step| {
            while values.next_if(|(at, _)| at < step).is_some() {}
            values.peek().is_some_and(|(at, _)| at == step)
        });
    }
    steps
}

fn thinned(steps: Vec<Step>, max_points: usize) -> Vec<Step> {
    if steps.len() <= max_points {
        return steps;
    }
    match max_points {
        0 => Vec::new(),
        1 => steps.last().copied().into_iter().collect(),
        n => (0..n)
            .map(|i| steps[i * (steps.len() - 1) / (n - 1)])
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Writer;
    use crate::tests::{draft, metrics, record};

    fn curve(values: &[(u64, f64)]) -> Curve {
        let mut points = (1..).zip(values).map(|(seq, &(step, value))| Point {
            seq,
            step: Step(step),
            time_us: 0,
            value,
        });
        let mut curve = Curve::new(points.next().expect("a point"));
        points.for_each(|point| curve.push(point));
        curve.by_step()
    }

    fn steps(comparison: &MetricComparison) -> Vec<u64> {
        comparison.steps.iter().map(|step| step.0).collect()
    }

    #[test]
    fn curves_are_compared_at_the_steps_they_have_in_common() {
        let a = curve(&[(1, 5.0), (2, 4.0), (3, f64::NAN), (4, 2.0), (6, 1.0)]);
        // The points are out of order, and step 4 occurs twice: the last value of step 4 counts.
        let b = curve(&[(4, 9.0), (2, 7.0), (4, 8.0), (5, 6.0), (6, 5.0)]);
        let of_both = MetricComparison::new("loss".into(), vec![Some(a), None, Some(b)], 10);
        assert_eq!(steps(&of_both), [2, 4, 6]);
        let values = |run: usize| of_both.runs[run].as_ref().map(|run| run.values.clone());
        assert_eq!(values(0), Some(vec![4.0, 2.0, 1.0]));
        assert_eq!(values(1), None);
        assert_eq!(values(2), Some(vec![7.0, 8.0, 5.0]));
        let first = of_both.runs[0].as_ref().expect("a run");
        let step = |point: Option<Point>| point.expect("a number").step.0;
        assert_eq!((step(first.lowest), step(first.highest)), (6, 1));
        assert_eq!((first.count, first.last.value), (5, 1.0));
    }

    #[test]
    fn many_steps_are_thinned_evenly_and_the_last_is_kept() {
        let all = curve(&(0..1000).map(|n| (n, 0.5)).collect::<Vec<_>>());
        let thin = |max| {
            steps(&MetricComparison::new(
                "x".into(),
                vec![Some(all.clone())],
                max,
            ))
        };
        assert_eq!(thin(4), [0, 333, 666, 999]);
        assert_eq!(thin(1), [999]);
        assert_eq!(thin(0), [0; 0]);
        assert_eq!(thin(1000).len(), 1000);
        let none = MetricComparison::new("x".into(), vec![None], 10);
        assert_eq!(steps(&none), [0; 0]);
    }

    #[test]
    fn a_curve_has_no_superseded_points() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut writer = Writer::create(dir.path(), &record())
            .expect("a run")
            .fold_at(4);
        let losses = |steps: std::ops::Range<u64>, value| {
            steps.map(move |n| draft(n, metrics(&[("loss", value), ("lr", 1.0)])))
        };
        let back = host_core::EventBody::Superseded {
            from_step: Step(5),
            generation: 1,
        };
        let drafts = losses(1..10, 3.0)
            .chain([draft(5, back)])
            .chain(losses(6..8, 2.0));
        writer.append(drafts.collect()).expect("written");
        let reader = Reader::open(dir.path()).expect("a run");
        let curve = reader.curve("loss").expect("readable").expect("points");
        let values: Vec<(u64, f64)> = curve.values.iter().map(|(s, v)| (s.0, *v)).collect();
        let kept = (1..6).map(|n| (n, 3.0)).chain([(6, 2.0), (7, 2.0)]);
        assert_eq!(values, kept.collect::<Vec<_>>());
        assert_eq!(curve.count, 7);
        assert_eq!(reader.curve("no such").expect("readable"), None);

        // `Reader::points` visits the same points, one series after the other.
        let mut all = Vec::new();
        let each = |name: &str, point: Point| {
            all.push((name.to_owned(), point.step.0));
            Ok(())
        };
        reader.points(|_| true, each).expect("readable");
        let of = |name: &str| {
            (1..8)
                .map(move |n| (name.to_owned(), n))
                .collect::<Vec<_>>()
        };
        assert_eq!(all, [of("loss"), of("lr")].concat());
    }
}
