//! The ticks of an axis and their labels.

/// A value on an axis and its label.
pub(super) type Tick = (f64, String);

/// Returns ticks at round numbers between two values, which must differ. There are at most `most` + 1 ticks.
pub(super) fn linear_ticks(low: f64, high: f64, most: usize) -> Vec<Tick> {
    let step = round_step((high - low) / most.max(1) as f64);
    // A small tolerance, so that rounding does not lose a tick on the edge.
    let first = (low / step - 1e-9).ceil();
    let last = (high / step + 1e-9).floor();
    let count = (last - first + 1.0).clamp(0.0, 1000.0) as u32;
    (0..count)
        .map(|n| (first + f64::from(n)) * step)
        .map(|value| (value, label(value, step)))
        .collect()
}

/// Returns the ticks of a logarithmic axis between two values, which must be above zero. The ticks are at 1,
/// 2 and 5 times each power of ten. If these are more than `most` ticks, the ticks are only at powers of ten,
/// and some powers can be left out. There are at most `most` + 1 ticks.
pub(super) fn log_ticks(low: f64, high: f64, most: usize) -> Vec<Tick> {
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    let ticks = |every: usize, factors: &[f64]| -> Vec<Tick> {
        (first..=last)
            .step_by(every)
            .flat_map(|power| {
                factors
                    .iter()
                    .map(move |factor| factor * 10_f64.powi(power))
            })
            .filter(|value| (low * (1.0 - 1e-9)..=high * (1.0 + 1e-9)).contains(value))
            .map(|value| (value, label(value, value)))
            .collect()
    };
    let dense = ticks(1, &[1.0, 2.0, 5.0]);
    if dense.len() <= most {
        // A small range may contain fewer than two of these ticks. It then gets linear ticks.
        return match dense.len() {
            0..2 => linear_ticks(low, high, most),
            _ => dense,
        };
    }
    (1..=64)
        .map(|every| ticks(every, &[1.0]))
        .find(|ticks| ticks.len() <= most)
        .unwrap_or_default()
}

/// Rounds `least` up to a number that is 1, 2 or 5 times a power of ten.
fn round_step(least: f64) -> f64 {
    let power = 10_f64.powf(least.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|factor| factor * power >= least * (1.0 - 1e-9));
    factor.unwrap_or(10.0) * power
}

/// Formats a tick's label, as precisely as the distance to its neighbors requires. Examples of labels: `0.5`,
/// `3.42`, `1.5k`, `2e-4`.
fn label(value: f64, step: f64) -> String {
    let size = value.abs();
    if size < step * 1e-6 {
        return "0".to_owned();
    }
    let digits = |step: f64| (-(step * (1.0 + 1e-9)).log10().floor()).clamp(0.0, 12.0) as usize;
    if step < 0.99e-3 || size >= 1e15 {
        let exact = (size.log10().floor() - (step * (1.0 + 1e-9)).log10().floor()).max(0.0);
        return format!("{value:.*e}", exact as usize);
    }
    let units = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    match units
        .into_iter()
        .find(|(unit, _)| size >= *unit && size >= 10_000.0)
    {
        Some((unit, name)) => format!("{:.*}{name}", digits(step / unit), value / unit),
        None => format!("{value:.*}", digits(step)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(ticks: Vec<Tick>) -> Vec<String> {
        ticks.into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_are_at_round_numbers_within_the_axis() {
        assert_eq!(
            labels(linear_ticks(2.9, 8.1, 6)),
            ["3", "4", "5", "6", "7", "8"]
        );
        assert_eq!(
            labels(linear_ticks(-0.3, 0.4, 4)),
            ["-0.2", "0.0", "0.2", "0.4"].map(|s| if s == "0.0" { "0" } else { s })
        );
        assert_eq!(
            labels(linear_ticks(3.412, 3.431, 4)),
            ["3.415", "3.420", "3.425", "3.430"]
        );
        assert_eq!(
            labels(linear_ticks(0.0, 2_000_000.0, 5)),
            ["0", "500k", "1.0M", "1.5M", "2.0M"]
        );
        assert_eq!(
            labels(linear_ticks(0.0, 6e-4, 3)),
            ["0", "2e-4", "4e-4", "6e-4"]
                .map(|s| s)
                .into_iter()
                .collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_logarithmic_axis_has_powers_of_ten_and_more_if_they_are_few() {
        assert_eq!(labels(log_ticks(40.0, 30_000.0, 5)), ["100", "1000", "10k"]);
        assert_eq!(labels(log_ticks(3.0, 60.0, 5)), ["5", "10", "20", "50"]);
        assert_eq!(labels(log_ticks(1e-12, 1.0, 4)).len(), 4);
        assert_eq!(labels(log_ticks(3.1, 3.9, 4)), ["3.2", "3.4", "3.6", "3.8"]);
    }

    #[test]
    fn there_are_never_too_many_ticks() {
        for most in 1..12 {
            for (low, high) in [(0.0, 1.0), (-7.3, 1234.5), (1e-9, 3e-9), (0.999, 1.001)] {
                let count = linear_ticks(low, high, most).len();
                assert!(count <= most + 1, "{count} of {most}: {low} to {high}");
            }
        }
    }
}
