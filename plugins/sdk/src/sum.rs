use std::ops::{Add, AddAssign};

/// A sum of `f64` that carries its own rounding error along, for the state of a metric.
///
/// A plain sum of a million batches may be off by 1e-10 and depends on the order; states that merge
/// must agree to 1e-12. The error of this one is about the square of an `f64`'s. Infinity and NaN
/// stay what they are.
///
/// ```
/// use host_plugin_sdk::Sum;
///
/// let mut sum = Sum::from(1e16);
/// for _ in 0..1000 {
///     sum += 0.25; // each too small for 1e16 alone
/// }
/// assert_eq!(sum.value(), 1e16 + 250.0);
/// assert_eq!(Sum::from_le_bytes(sum.to_le_bytes()).value(), sum.value());
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    sum: f64,
    /// What `sum` lacks; 0 if `sum` is not finite.
    error: f64,
}

impl Sum {
    /// The sum, rounded once.
    pub fn value(self) -> f64 {
        self.sum + self.error
    }

    /// The sum and its error, for a state's bytes.
    pub fn to_le_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.sum.to_le_bytes());
        bytes[8..].copy_from_slice(&self.error.to_le_bytes());
        bytes
    }

    /// The sum that [`to_le_bytes`](Self::to_le_bytes) gave these of.
    pub fn from_le_bytes(bytes: [u8; 16]) -> Self {
        let (parts, _) = bytes.as_chunks::<8>();
        let part = |index: usize| Self::from(f64::from_le_bytes(parts[index]));
        // A sum again, so that whatever the bytes are, the error is one of rounding.
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
            // There is no error to infinity, and computing one gives NaN.
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

/// Knuth's exact sum: `a + b` is the first, rounded, plus the second.
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
    fn what_is_too_small_for_the_sum_is_not_lost() {
        let mut sum = Sum::from(1e16);
        for _ in 0..1000 {
            sum += 0.25;
        }
        assert_eq!(sum.value(), 1e16 + 250.0);
        assert_eq!(Sum::from_le_bytes(sum.to_le_bytes()).value(), sum.value());
    }

    #[test]
    fn infinity_and_nan_stay() {
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
