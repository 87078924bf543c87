//! A run's events as plain lines: what happened, and now and then where the training stands.

use host_core::Event;

use crate::event_line::event_line;
use crate::meter::Meter;

/// A line about the training comes at most this often.
const LINE_EVERY_US: i64 = 10_000_000;

/// Makes lines of events, which come in order.
#[derive(Debug)]
pub(crate) struct Narration {
    meter: Meter,
    /// When the meter was last in a line.
    shown_us: i64,
}

impl Narration {
    /// Of a training of this many steps; 0 if that is not known.
    pub(crate) fn new(last_step: u64) -> Self {
        Self {
            meter: Meter::new(last_step),
            shown_us: 0,
        }
    }

    /// The steps up to this time are history: they have no lines. The next one has.
    pub(crate) fn catch_up(&mut self, time_us: i64) {
        self.shown_us = time_us.saturating_sub(LINE_EVERY_US) + 1;
    }

    /// Where the training stands.
    pub(crate) fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Takes note of an event; true if it finished a step.
    pub(crate) fn note(&mut self, event: &Event) -> bool {
        self.meter.note(event)
    }

    /// Takes note of an event, and says it in lines.
    pub(crate) fn lines(&mut self, event: &Event) -> impl Iterator<Item = String> {
        let is_due = self.note(event) && event.time_us - self.shown_us >= LINE_EVERY_US;
        let step = is_due.then(|| {
            self.shown_us = event.time_us;
            self.meter.line()
        });
        step.into_iter().chain(event_line(event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use host_core::{EventBody, MetricValue, Step};

    #[test]
    fn steps_have_a_line_every_ten_seconds_and_none_before_they_are_new() {
        let mut narration = Narration::new(100);
        let mut at = |secs: i64, step| {
            let values = vec![MetricValue::new("loss/train", 2.0)];
            let event = Event {
                seq: step,
                time_us: secs * 1_000_000,
                step: Step(step),
                body: EventBody::Metrics { values },
            };
            narration.lines(&event).count()
        };
        assert_eq!([at(100, 1), at(105, 2), at(111, 3)], [1, 0, 1]);
        narration.catch_up(200_000_000);
        let mut at = |secs: i64| {
            let values = vec![MetricValue::new("loss/train", 2.0)];
            let event = Event {
                seq: 1,
                time_us: secs * 1_000_000,
                step: Step(1),
                body: EventBody::Metrics { values },
            };
            narration.lines(&event).count()
        };
        assert_eq!([at(150), at(200), at(201), at(202)], [0, 0, 1, 0]);
    }
}
