use std::collections::VecDeque;

/// The last finite values of a metric.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    values: VecDeque<f64>,
    capacity: usize,
    /// Where the median is looked for; kept, so that no step allocates.
    scratch: Vec<f64>,
}

impl Window {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            values: VecDeque::with_capacity(capacity),
            capacity,
            scratch: Vec::with_capacity(capacity),
        }
    }

    /// Adds a value in place of the oldest. One that is not finite is left out.
    pub(crate) fn push(&mut self, value: f64) {
        if !value.is_finite() {
            return;
        }
        if self.values.len() == self.capacity {
            self.values.pop_front();
        }
        self.values.push_back(value);
    }

    /// From the oldest on.
    pub(crate) fn values(&self) -> impl Iterator<Item = f64> {
        self.values.iter().copied()
    }

    /// The median, once the window is full; the lower of two.
    pub(crate) fn median(&mut self) -> Option<f64> {
        if self.values.len() < self.capacity {
            return None;
        }
        self.scratch.clear();
        self.scratch.extend(&self.values);
        let middle = (self.capacity - 1) / 2;
        let (_, median, _) = self.scratch.select_nth_unstable_by(middle, f64::total_cmp);
        Some(*median)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_of_the_last_values_once_it_is_full() {
        let mut window = Window::new(4);
        for (value, median) in [
            (4.0, None),
            (1.0, None),
            (f64::NAN, None),
            (3.0, None),
            (2.0, Some(2.0)),
            (9.0, Some(2.0)),
            (9.0, Some(3.0)),
            (f64::INFINITY, Some(3.0)),
            (9.0, Some(9.0)),
        ] {
            window.push(value);
            assert_eq!(window.median(), median, "{value}");
        }
        assert_eq!(window.values().collect::<Vec<_>>(), [2.0, 9.0, 9.0, 9.0]);
    }
}
