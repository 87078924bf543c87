//! Numbers formatted for people.

/// Formats a measured value with at most five significant digits: `3.4127`, `2.00e-4`, `inf`.
pub(crate) fn value(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() {
        return value.to_string();
    }
    if value == 0.0 {
        return "0".to_owned();
    }
    if value.fract() == 0.0 && size < 1e9 {
        return format!("{value:.0}");
    }
    match size {
        1e6.. => format!("{value:.4e}"),
        1e4.. => format!("{value:.0}"),
        1e3.. => format!("{value:.1}"),
        1e2.. => format!("{value:.2}"),
        1e1.. => format!("{value:.3}"),
        1e-3.. => format!("{value:.4}"),
        _ => format!("{value:.2e}"),
    }
}

/// Formats a count with three significant digits: `950`, `12.3k`, `4.57M`.
pub(crate) fn count(count: f64) -> String {
    scaled(count, 1000.0, &["", "k", "M", "G", "T"])
}

/// Formats a size in bytes: `950 B`, `12.3 MB`.
pub(crate) fn bytes(bytes: u64) -> String {
    scaled(bytes as f64, 1000.0, &[" B", " kB", " MB", " GB", " TB"])
}

fn scaled(mut number: f64, base: f64, units: &[&str]) -> String {
    let mut unit = 0;
    // From 999.5 on, a number would be rounded to 1000 of the smaller unit.
    while number >= base - 0.5 && unit + 1 < units.len() {
        number /= base;
        unit += 1;
    }
    let digits = match number {
        _ if unit == 0 => 0,
        n if n >= 99.95 => 0,
        n if n >= 9.995 => 1,
        _ => 2,
    };
    format!("{number:.digits$}{}", units[unit])
}

/// Formats a percentage: `47 %`, `4.9 %`, `0.05 %`.
pub(crate) fn percent(percent: f64) -> String {
    let digits = match percent.abs() {
        0.0 => 0,
        9.95.. => 0,
        0.095.. => 1,
        _ => 2,
    };
    format!("{percent:.digits$} %")
}

/// Formats a time span: `0.4s`, `52s`, `3m10s`, `2h05m`, `3d04h`.
pub(crate) fn duration(secs: f64) -> String {
    if !secs.is_finite() || secs < 0.0 {
        return "?".to_owned();
    }
    if secs < 9.95 {
        return format!("{secs:.1}s");
    }
    let whole = secs.round() as u64;
    let (minutes, hours, days) = (whole / 60, whole / 3600, whole / 86400);
    match whole {
        0..60 => format!("{whole}s"),
        60..3600 => format!("{minutes}m{:02}s", whole % 60),
        3600..86400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

/// Formats the time of a call or a step: `12 µs`, `3.4 ms`, `0.42 s`, `12 s`. A time of one minute or more is
/// formatted by [`duration`].
pub(crate) fn latency(secs: f64) -> String {
    let (number, unit) = match secs {
        60.0.. => return duration(secs),
        0.1.. => (secs, "s"),
        1e-4.. => (secs * 1e3, "ms"),
        0.0.. => (secs * 1e6, "µs"),
        _ => return "?".to_owned(),
    };
    let digits = match number {
        9.95.. => 0,
        0.995.. => 1,
        0.0 => 0,
        _ => 2,
    };
    format!("{number:.digits$} {unit}")
}

/// Formats an integer with thousands separators: `4,571,904`.
pub(crate) fn grouped(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if number < 0 { format!("-{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_five_digits_at_most() {
        let shown = [
            3.41268,
            67.4212,
            1234.56,
            54321.9,
            2e-4,
            0.0,
            64.0,
            0.0125,
            -1.5,
            1.23456789e12,
        ]
        .map(value);
        assert_eq!(
            shown,
            [
                "3.4127",
                "67.421",
                "1234.6",
                "54322",
                "2.00e-4",
                "0",
                "64",
                "0.0125",
                "-1.5000",
                "1.2346e12"
            ]
        );
        assert_eq!(value(f64::INFINITY), "inf");
        assert_eq!(value(f64::NAN), "NaN");
    }

    #[test]
    fn counts_and_sizes_change_unit_before_they_reach_a_thousand() {
        assert_eq!(
            [950.0, 999.7, 12_345.0, 4_571_904.0].map(count),
            ["950", "1.00k", "12.3k", "4.57M"]
        );
        assert_eq!([0, 999, 18_400_000].map(bytes), ["0 B", "999 B", "18.4 MB"]);
    }

    #[test]
    fn a_small_percentage_is_not_zero() {
        let shown = [0.0, 0.012, 0.49, 4.9, 9.97, 46.8, 187.0].map(percent);
        assert_eq!(
            shown,
            ["0 %", "0.01 %", "0.5 %", "4.9 %", "10 %", "47 %", "187 %"]
        );
    }

    #[test]
    fn time_spans_have_two_units_at_most() {
        let shown = [0.42, 9.96, 52.0, 190.0, 7500.0, 273_600.0].map(duration);
        assert_eq!(shown, ["0.4s", "10s", "52s", "3m10s", "2h05m", "3d04h"]);
        assert_eq!(duration(f64::INFINITY), "?");
    }

    #[test]
    fn latencies_have_two_digits_or_three() {
        let shown = [0.0, 4.2e-6, 1.2e-5, 3.44e-3, 0.0521, 0.42, 1.23, 12.3, 75.0].map(latency);
        assert_eq!(
            shown,
            [
                "0 µs", "4.2 µs", "12 µs", "3.4 ms", "52 ms", "0.42 s", "1.2 s", "12 s", "1m15s"
            ]
        );
        assert_eq!(latency(f64::NAN), "?");
    }

    #[test]
    fn thousands_are_separated() {
        assert_eq!(
            [0, 999, 1000, 4_571_904].map(grouped),
            ["0", "999", "1,000", "4,571,904"]
        );
        assert_eq!(grouped(-1234), "-1,234");
    }
}
