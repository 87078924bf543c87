//! A curve in one line of text.

const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Draws the values as at most `width` bars. Each bar shows the mean of one part of the values. The scale
/// goes from the lowest to the highest mean. Values that are not finite are left out.
pub(crate) fn sparkline(values: &[f64], width: usize) -> String {
    let means = means(values, width);
    bars(&means, extent(&means))
}

/// Draws several curves on the same scale. The scale goes from the lowest to the highest mean of all curves.
pub(crate) fn sparklines(curves: &[&[f64]], width: usize) -> Vec<String> {
    let means: Vec<Vec<f64>> = curves.iter().map(|curve| means(curve, width)).collect();
    let extent = extent(&means.concat());
    means.iter().map(|means| bars(means, extent)).collect()
}

fn means(values: &[f64], width: usize) -> Vec<f64> {
    let values: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    let columns = width.min(values.len());
    (0..columns)
        .map(|column| {
            let share =
                &values[column * values.len() / columns..(column + 1) * values.len() / columns];
            share.iter().sum::<f64>() / share.len() as f64
        })
        .collect()
}

fn extent(means: &[f64]) -> (f64, f64) {
    let low = means.iter().copied().fold(f64::INFINITY, f64::min);
    let high = means.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (low, high)
}

fn bars(means: &[f64], (low, high): (f64, f64)) -> String {
    means
        .iter()
        .map(|mean| {
            let height = if high > low {
                (mean - low) / (high - low)
            } else {
                0.0
            };
            BARS[(height * 7.0).round() as usize]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_spans_all_heights_and_skips_values_that_are_not_finite() {
        assert_eq!(sparkline(&[7.0, f64::NAN, 3.5, 0.0], 10), "█▅▁");
        assert_eq!(sparkline(&[1.0, 1.0], 10), "▁▁");
        assert_eq!(sparkline(&[], 10), "");
    }

    #[test]
    fn curves_side_by_side_have_one_scale() {
        let drawn = sparklines(&[&[0.0, 3.5], &[7.0, 3.5], &[]], 10);
        assert_eq!(drawn, ["▁▅", "█▅", ""]);
    }

    #[test]
    fn many_values_are_averaged_into_the_width() {
        let falling: Vec<f64> = (0..1000).rev().map(f64::from).collect();
        assert_eq!(sparkline(&falling, 8), "█▇▆▅▄▃▂▁");
    }
}
