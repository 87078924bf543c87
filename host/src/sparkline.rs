//! A curve in one line of text.

const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Draws at most `width` bars between the smallest and the largest value, each the mean of its share
/// of the values. Values that are not finite are left out.
pub(crate) fn sparkline(values: &[f64], width: usize) -> String {
    let values: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    let columns = width.min(values.len());
    let means: Vec<f64> = (0..columns)
        .map(|column| {
            let share =
                &values[column * values.len() / columns..(column + 1) * values.len() / columns];
            share.iter().sum::<f64>() / share.len() as f64
        })
        .collect();
    let low = means.iter().copied().fold(f64::INFINITY, f64::min);
    let high = means.iter().copied().fold(f64::NEG_INFINITY, f64::max);
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
    fn a_curve_spans_all_heights_and_skips_what_is_not_finite() {
        assert_eq!(sparkline(&[7.0, f64::NAN, 3.5, 0.0], 10), "█▅▁");
        assert_eq!(sparkline(&[1.0, 1.0], 10), "▁▁");
        assert_eq!(sparkline(&[], 10), "");
    }

    #[test]
    fn many_values_are_averaged_into_the_width() {
        let falling: Vec<f64> = (0..1000).rev().map(f64::from).collect();
        assert_eq!(sparkline(&falling, 8), "█▇▆▅▄▃▂▁");
    }
}
