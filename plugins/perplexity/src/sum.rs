use std::ops::Add;

/// A sum of `f64` that carries its own rounding error along.
///
/// A plain sum of a million batches may be off by 1e-10 and depends on the order; ranks that merge
/// must agree to 1e-12. The error of this one is about the square of an `f64`'s.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sum {
    sum: f64,
    /// What `sum` lacks; 0 if `sum` is not finite.
    error: f64,
}

impl Sum {
    /// The sum, rounded once.
    pub(crate) fn value(self) -> f64 {
        self.sum + self.error
    }

    /// What [`from_parts`](Self::from_parts) takes.
    pub(crate) fn parts(self) -> (f64, f64) {
        (self.sum, self.error)
    }

    /// The sum that these are the parts of.
    pub(crate) fn from_parts(sum: f64, error: f64) -> Self {
        Self::from(sum) + Self::from(error)
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
            sum = sum + Sum::from(0.25);
        }
        assert_eq!(sum.value(), 1e16 + 250.0);
        let (whole, error) = sum.parts();
        assert_eq!(Sum::from_parts(whole, error).value(), sum.value());
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
