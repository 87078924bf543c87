//! Formats a run's events as plain lines. From time to time, adds a line about the progress.

use host_core::Event;

use crate::show::event_line::event_line;
use crate::show::meter::Meter;
use crate::show::number;

/// The minimum time between two lines about the progress.
const LINE_EVERY_US: i64 = 10_000_000;

/// The end of the training is forecast when the speed of this many steps is known, and these steps took this
/// many seconds.
const FORECAST_AFTER: (u64, f64) = (10, 10.0);

/// A forecast with fewer seconds left is not printed.
const SHORTEST_FORECAST: f64 = 60.0;

/// Formats events as lines. The events must arrive in order.
#[derive(Debug)]
pub(crate) struct Narration {
    meter: Meter,
    /// The time at which the last line about the progress was formatted.
    shown_us: i64,
    has_forecast: bool,
}

impl Narration {
    /// Creates the narration of a training. `last_step` is its number of steps, or 0 if that is unknown.
    pub(crate) fn new(last_step: u64) -> Self {
        Self {
            meter: Meter::new(last_step),
            shown_us: 0,
            has_forecast: false,
        }
    }

    /// Suppresses the lines about the progress up to this time. The first step after this time gets a line.
    pub(crate) fn catch_up(&mut self, time_us: i64) {
        self.shown_us = time_us.saturating_sub(LINE_EVERY_US) + 1;
    }

    /// Returns the progress of the training.
    pub(crate) fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Records an event. Returns true if the event marks the end of a step.
    pub(crate) fn note(&mut self, event: &Event) -> bool {
        self.meter.note(event)
    }

    /// The first call after [`FORECAST_AFTER`] returns a forecast of the training's end, unless the end is
    /// near. Every other call returns `None`.
    pub(crate) fn forecast(&mut self) -> Option<String> {
        let (steps, secs) = self.meter.measured();
        if self.has_forecast || steps < FORECAST_AFTER.0 || secs < FORECAST_AFTER.1 {
            return None;
        }
        self.has_forecast = true;
        let left = self.meter.seconds_left();
        let secs = left.filter(|secs| *secs >= SHORTEST_FORECAST)?;
        let left = number::duration(secs);
        Some(match end_time(self.meter.time_us(), secs) {
            Some(time) => format!("the training ends in about {left}, at {time}"),
            None => format!("the training ends in about {left}"),
        })
    }

    /// Records an event and formats it as lines.
    pub(crate) fn lines(&mut self, event: &Event) -> impl Iterator<Item = String> {
        let is_due = self.note(event) && event.time_us - self.shown_us >= LINE_EVERY_US;
        let step = is_due.then(|| {
            self.shown_us = event.time_us;
            self.meter.line()
        });
        step.into_iter().chain(event_line(event))
    }
}

/// Adds `secs` seconds to `now_us` and formats the result as local time. If that time is not on the day of
/// `now_us`, the text includes the date.
fn end_time(now_us: i64, secs: f64) -> Option<String> {
    let now = jiff::Timestamp::from_microsecond(now_us).ok()?;
    let end_us = now_us.checked_add((secs * 1e6) as i64)?;
    let end = jiff::Timestamp::from_microsecond(end_us).ok()?;
    let zone = jiff::tz::TimeZone::system();
    let (now, end) = (
        now.to_zoned_datetime(zone.clone()),
        end.to_zoned_datetime(zone),
    );
    let format = if now.date() == end.date() {
        "%H:%M"
    } else {
        "%Y-%m-%d %H:%M"
    };
    Some(end.strftime(format).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use host_core::{EventBody, MetricValue, Step};

    #[test]
    fn the_end_is_forecast_once_after_ten_steps_and_ten_seconds() {
        // The forecasts of a training whose first step ends after a long evaluation.
        let forecasts = |last_step: u64, step_us: i64| {
            let mut narration = Narration::new(last_step);
            let event = |step: u64, body| Event {
                seq: step,
                time_us: 60_000_000 + step_us * i64::try_from(step).expect("small"),
                step: Step(step),
                body,
            };
            let start = Event {
                time_us: 0,
                ..event(0, EventBody::RunStarted { generation: 0 })
            };
            narration.note(&start);
            let mut lines = Vec::new();
            for step in 1..=last_step.min(40) {
                let values = vec![MetricValue::new("loss/train", 2.0)];
                narration.note(&event(step, EventBody::Metrics { values }));
                lines.extend(narration.forecast().map(|line| format!("{step}: {line}")));
            }
            lines
        };
        for (step_us, start) in [
            (1_000_000, "11: the training ends in about 16m29s, at "),
            (2_000_000, "11: the training ends in about 32m58s, at "),
            (400_000, "26: the training ends in about 6m30s, at "),
        ] {
            let lines = forecasts(1000, step_us);
            assert_eq!(lines.len(), 1, "{lines:?}");
            assert!(lines[0].starts_with(start), "{lines:?}");
        }
        assert_eq!(forecasts(40, 1_000_000), [""; 0], "the end is near");
    }

    #[test]
    fn an_end_on_another_day_has_its_date() {
        assert_eq!(end_time(0, 60.0).expect("a time").len(), "00:01".len());
        let days = end_time(0, 200_000.0).expect("a time");
        assert_eq!(days.len(), "1970-01-03 07:33".len(), "{days}");
    }

    #[test]
    fn steps_have_a_line_every_ten_seconds_and_none_before_catching_up() {
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
