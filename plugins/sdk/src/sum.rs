use std::ops::{Add, AddAssign};

/// A sum of `f64` values that tracks its rounding error. Used for the states of metrics.
///
/// A plain sum over a million batches depends on their order and can have a relative error of 1e-10, but
/// merged states must agree within 1e-12. The relative error of this sum is about the square of the relative
/// error of an `f64`. Infinity and NaN are preserved.
///
/// ```
/// use host_plugin_sdk::Sum;
///
/// let mut sum = Sum::from(1e16);
/// for _ in 0..1000 {
///     sum += 0.25; // too small to change an f64 of 1e16
/// }
/// assert_eq!(sum.value(), 1e16 + 250.0);
/// assert_eq!(Sum::from_le_bytes(sum.to_le_bytes()).value(), sum.value());
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    sum: f64,
    /// The exact sum minus `sum`; 0 if `sum` is not finite.
    error: f64,
}

impl Sum {
    /// Returns the sum, rounded to an `f64`.
    pub fn value(self) -> f64 {
        self.sum + self.error
    }

    /// Returns the sum and its error as bytes, for a metric's state.
    pub fn to_le_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.sum.to_le_bytes());
        bytes[8..].copy_from_slice(&self.error.to_le_bytes());
        bytes
    }

    /// Creates a sum from the bytes of [`to_le_bytes`](Self::to_le_bytes).
    pub fn from_le_bytes(bytes: [u8; 16]) -> Self {
        let (parts, _) = bytes.as_chunks::<8>();
        let part = |index: usize| Self::from(f64::from_le_bytes(parts[index]));
        // Adds the two parts again, so that `error` is a valid rounding error even if the bytes are
        // arbitrary.
        part(0) + part(1)
    }
}

impl From<f64> for Sum {
    fn from(sum: f64) -> Self {
        Self { sum, error: 0.0 }
    }
}

impl Add for Sum {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let (sum, error) = two_sum(self.sum, other.sum);
        let (sum, error) = two_sum(sum, error + self.error + other.error);
        if sum.is_finite() {
            Self { sum, error }
        } else {
            // The error of an infinite sum would be NaN.
            Self::from(self.sum + other.sum)
        }
    }
}

impl AddAssign for Sum {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl AddAssign<f64> for Sum {
    fn add_assign(&mut self, number: f64) {
        *self += Self::from(number);
    }
}

/// Knuth's TwoSum: returns the rounded `a + b` and its rounding error.
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let b_in_sum = sum - a;
    let error = (a - (sum - b_in_sum)) + (b - b_in_sum);
    (sum, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_summands_are_not_lost() {
        let mut sum = Sum::from(1e16);
        for _ in 0..1000 {
            sum += 0.25;
        }
        assert_eq!(sum.value(), 1e16 + 250.0);
        assert_eq!(Sum::from_le_bytes(sum.to_le_bytes()).value(), sum.value());
    }

    #[test]
    fn infinity_and_nan_are_preserved() {
        let infinity = Sum::from(f64::INFINITY);
        let one = Sum::from(1.0);
        assert_eq!((infinity + one).value(), f64::INFINITY);
        assert_eq!((one + infinity + one).value(), f64::INFINITY);
        assert!((infinity + Sum::from(f64::NEG_INFINITY)).value().is_nan());
        assert!((one + Sum::from(f64::NAN) + one).value().is_nan());
        let huge = Sum::from(f64::MAX);
        assert_eq!((huge + huge).value(), f64::INFINITY);
    }
}
