//! Curves over the steps, in braille, with axes.

use host_store::Point;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Style};
use ratatui::symbols::Marker;
use ratatui::widgets::Widget;
use ratatui::widgets::canvas::{Canvas, Line, Points};

use super::axis::{Tick, linear_ticks, log_ticks};

/// By default, the vertical axis is logarithmic if the highest value is at least this many times the lowest
/// value.
const LOG_FROM: f64 = 100.0;

/// A metric's curve.
pub(super) struct Series {
    /// Pairs of step and value.
    pub(super) points: Vec<(f64, f64)>,
    pub(super) style: Style,
    /// Whether to draw the curve with dots instead of lines. This makes curves distinguishable even without
    /// colors.
    pub(super) is_dotted: bool,
}

/// Curves that share their axes.
pub(super) struct Chart {
    series: Vec<Series>,
    label: Style,
    is_log: bool,
    steps: (f64, f64),
    values: (f64, f64),
}

impl Chart {
    /// Creates a chart of these curves. If `log_scale` is `None`, the scale is chosen from the values. If a
    /// value is at or below zero, the vertical axis is linear even if `log_scale` is true. Returns `None` if
    /// there is no finite value.
    pub(super) fn new(series: Vec<Series>, log_scale: Option<bool>, label: Style) -> Option<Self> {
        let all = || {
            let points = series.iter().flat_map(|series| &series.points);
            points.filter(|(_, value)| value.is_finite())
        };
        let low = all().map(|(_, value)| *value).reduce(f64::min)?;
        let high = all().map(|(_, value)| *value).reduce(f64::max)?;
        let first = all().map(|(step, _)| *step).reduce(f64::min)?;
        let last = all().map(|(step, _)| *step).reduce(f64::max)?;
        let is_log = low > 0.0 && log_scale.unwrap_or(high / low >= LOG_FROM);
        let values = match low < high {
            true if is_log => (low, high),
            true => (low, high),
            // If all values are equal, they are drawn in the middle.
            false if low == 0.0 => (-1.0, 1.0),
            false => (low - low.abs() * 0.1, high + high.abs() * 0.1),
        };
        let steps = if first < last {
            (first, last)
        } else {
            (first - 1.0, last + 1.0)
        };
        Some(Self {
            series,
            label,
            is_log,
            steps,
            values,
        })
    }

    /// Returns true if the vertical axis is logarithmic.
    pub(super) fn is_log(&self) -> bool {
        self.is_log
    }

    fn height(&self, value: f64) -> f64 {
        if self.is_log { value.log10() } else { value }
    }

    fn value_ticks(&self, rows: u16) -> Vec<Tick> {
        let (low, high) = self.values;
        let most = usize::from(rows * 2 / 3).max(2);
        match self.is_log {
            true => log_ticks(low, high, most),
            false => linear_ticks(low, high, most),
        }
    }
}

impl Widget for &Chart {
    fn render(self, area: Rect, buf: &mut Buffer) {
        if area.width < 12 || area.height < 3 {
            return;
        }
        let rows = area.height - 1;
        let ticks = self.value_ticks(rows);
        let widest = ticks.iter().map(|(_, label)| label.len()).max();
        let gutter = (widest.unwrap_or(0) as u16 + 2).min(area.width / 2);
        let plot = Rect {
            x: area.x + gutter,
            width: area.width - gutter,
            height: rows,
            ..area
        };
        let heights = [self.height(self.values.0), self.height(self.values.1)];

        for row in 0..rows {
            buf.set_string(plot.x - 1, plot.y + row, "│", self.label);
        }
        for (value, label) in &ticks {
            let share = (self.height(*value) - heights[0]) / (heights[1] - heights[0]);
            let row = plot.bottom() - 1 - place(share, rows);
            let x = (plot.x - 1).saturating_sub(label.len() as u16);
            buf.set_string(x.max(area.x), row, label, self.label);
            buf.set_string(plot.x - 1, row, "┤", self.label);
        }
        self.render_steps(plot, buf);

        let canvas = Canvas::default()
            .marker(Marker::Braille)
            .x_bounds([self.steps.0, self.steps.1])
            .y_bounds(heights)
            .paint(|context| {
                for series in &self.series {
                    let color = series.style.fg.unwrap_or(Color::Reset);
                    let at = |&(step, value): &(f64, f64)| (step, self.height(value));
                    if series.is_dotted || series.points.len() == 1 {
                        context.marker(Marker::Dot);
                        let coords: Vec<(f64, f64)> = series.points.iter().map(at).collect();
                        context.draw(&Points::new(&coords, color));
                        context.marker(Marker::Braille);
                        continue;
                    }
                    for pair in series.points.windows(2) {
                        let ((x1, y1), (x2, y2)) = (at(&pair[0]), at(&pair[1]));
                        // Values that are not finite leave a gap.
                        if y1.is_finite() && y2.is_finite() {
                            context.draw(&Line::new(x1, y1, x2, y2, color));
                        }
                    }
                }
            });
        canvas.render(plot, buf);
    }
}

impl Chart {
    /// Draws the step labels below the plot.
    fn render_steps(&self, plot: Rect, buf: &mut Buffer) {
        let (first, last) = self.steps;
        let mut free_from = plot.x;
        for (step, label) in linear_ticks(first, last, usize::from(plot.width / 10).max(1)) {
            if step.fract() != 0.0 {
                continue;
            }
            let column = plot.x + place((step - first) / (last - first), plot.width);
            let width = label.len() as u16;
            let x = column.saturating_sub(width / 2).max(plot.x);
            let x = x.min(plot.right().saturating_sub(width));
            if x >= free_from {
                buf.set_string(x, plot.bottom(), &label, self.label);
                free_from = x + width + 1;
            }
        }
    }
}

/// Reduces a curve to at most `most` points (step, value). If the curve has more points, its steps are
/// divided into equal ranges, and the points of each range are replaced with one point: the mean of their
/// steps, and the mean of their finite values. If no value in a range is finite, this mean is NaN, which is
/// drawn as a gap.
pub(super) fn means(points: &[Point], most: usize) -> Vec<(f64, f64)> {
    let exact = || {
        points
            .iter()
            .map(|point| (point.step.0 as f64, point.value))
    };
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return Vec::new();
    };
    let steps = (last.step.0.saturating_sub(first.step.0) + 1) as f64;
    if points.len() <= most || most == 0 {
        return exact().collect();
    }
    let column = |point: &Point| {
        let at = point.step.0.saturating_sub(first.step.0) as f64;
        (at / steps * most as f64) as usize
    };
    let columns = points.chunk_by(|a, b| column(a) == column(b));
    let mean = |of: &dyn Fn(&Point) -> f64, points: &[&Point]| {
        points.iter().map(|point| of(point)).sum::<f64>() / points.len() as f64
    };
    columns
        .map(|points| {
            let all: Vec<&Point> = points.iter().collect();
            let finite: Vec<&Point> = all
                .iter()
                .copied()
                .filter(|p| p.value.is_finite())
                .collect();
            let step = mean(&|point| point.step.0 as f64, &all);
            // NaN if no value is finite.
            (step, mean(&|point| point.value, &finite))
        })
        .collect()
}

/// Converts a position to the index of a cell. Position 0 is the first of the `cells` cells, and position 1
/// is the last.
fn place(share: f64, cells: u16) -> u16 {
    let last = f64::from(cells.saturating_sub(1));
    (share * last).round().clamp(0.0, last) as u16
}

#[cfg(test)]
mod tests {
    use super::super::view::tests::{assert_golden, text};
    use super::*;
    use host_core::Step;

    fn points(values: impl IntoIterator<Item = f64>) -> Vec<Point> {
        (0..)
            .zip(values)
            .map(|(n, value)| Point {
                seq: n + 1,
                step: Step(n * 100),
                time_us: 0,
                value,
            })
            .collect()
    }

    fn drawn(values: &[Point], log_scale: Option<bool>) -> String {
        let series = vec![Series {
            points: means(values, 1000),
            style: Style::new(),
            is_dotted: false,
        }];
        let chart = Chart::new(series, log_scale, Style::new()).expect("finite values");
        let area = Rect::new(0, 0, 40, 8);
        let mut buf = Buffer::empty(area);
        chart.render(area, &mut buf);
        text(&buf)
    }

    #[test]
    fn a_falling_line_falls_from_corner_to_corner() {
        let values = points((0..11).map(|n| 10.0 - f64::from(n)));
        assert_golden("line", &drawn(&values, None));
    }

    #[test]
    fn an_exponential_is_a_line_on_a_logarithmic_axis() {
        let values = points((0..11).map(|n| 10_f64.powf(5.0 - f64::from(n) * 0.4)));
        assert_golden("logarithms", &drawn(&values, None));
        assert_ne!(drawn(&values, Some(false)), drawn(&values, None));
    }

    #[test]
    fn values_that_are_not_finite_leave_a_gap() {
        let values = [1.0, 2.0, f64::NAN, f64::INFINITY, 2.0, 1.0];
        assert!(drawn(&points(values), None).contains('┤'));
        assert!(drawn(&points([5.0]), None).contains('•'));
        assert!(drawn(&points([0.0, 0.0]), Some(true)).contains('0'));
        assert!(Chart::new(Vec::new(), None, Style::new()).is_none());
    }

    #[test]
    fn a_dense_curve_is_reduced_to_means() {
        let values = points((0..1000).map(|n| f64::from(n % 2)));
        let means = means(&values, 100);
        assert_eq!(means.len(), 100);
        assert!(means.iter().all(|(_, value)| *value == 0.5), "{means:?}");
        assert!(means.is_sorted_by_key(|(step, _)| *step));
        let gap = points([1.0, f64::NAN, f64::NAN, 1.0]);
        assert!(super::means(&gap, 2).iter().all(|(_, value)| *value == 1.0));
    }

    #[test]
    fn a_chart_can_be_drawn_at_any_size() {
        let values = points([3.0, 2.0, 1.0]);
        for (width, height) in [(0, 0), (1, 1), (12, 3), (13, 2), (200, 3)] {
            let series = vec![Series {
                points: means(&values, 1000),
                style: Style::new(),
                is_dotted: false,
            }];
            let chart = Chart::new(series, None, Style::new()).expect("finite values");
            let area = Rect::new(0, 0, width, height);
            chart.render(area, &mut Buffer::empty(area));
        }
    }
}
