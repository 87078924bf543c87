use std::collections::VecDeque;

/// The last finite values of a metric, each with its step.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    values: VecDeque<(u64, f64)>,
    capacity: usize,
    /// Buffer for the computation of the median. It is kept so that no step allocates memory.
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

    /// Adds a value, and removes the oldest if the window is full. Ignores a value that is not finite.
    pub(crate) fn push(&mut self, step: u64, value: f64) {
        if !value.is_finite() {
            return;
        }
        if self.values.len() == self.capacity {
            self.values.pop_front();
        }
        self.values.push_back((step, value));
    }

    /// Removes the values of all steps after this step, because a roll-back has superseded them.
    pub(crate) fn forget_after(&mut self, step: u64) {
        while self.values.back().is_some_and(|&(of, _)| of > step) {
            self.values.pop_back();
        }
    }

    /// Returns the values with their steps, the oldest first.
    pub(crate) fn values(&self) -> impl Iterator<Item = (u64, f64)> {
        self.values.iter().copied()
    }

    /// Returns the median. For an even number of values, this is the lower of the two middle values. `None`
    /// until the window is full.
    pub(crate) fn median(&mut self) -> Option<f64> {
        if self.values.len() < self.capacity {
            return None;
        }
        self.scratch.clear();
        self.scratch
            .extend(self.values.iter().map(|&(_, value)| value));
        let middle = (self.capacity - 1) / 2;
        let (_, median, _) = self.scratch.select_nth_unstable_by(middle, f64::total_cmp);
        Some(*median)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_window_returns_the_median_of_its_last_values() {
        let mut window = Window::new(4);
        for (step, (value, median)) in [
            (4.0, None),
            (1.0, None),
            (f64::NAN, None),
            (3.0, None),
            (2.0, Some(2.0)),
            (9.0, Some(2.0)),
            (9.0, Some(3.0)),
            (f64::INFINITY, Some(3.0)),
            (9.0, Some(9.0)),
        ]
        .into_iter()
        .enumerate()
        {
            window.push(step as u64, value);
            assert_eq!(window.median(), median, "{value}");
        }
        let values: Vec<(u64, f64)> = window.values().collect();
        assert_eq!(values, [(4, 2.0), (5, 9.0), (6, 9.0), (8, 9.0)]);
        window.forget_after(5);
        assert_eq!(window.values().count(), 2);
        assert_eq!(window.median(), None);
    }
}
