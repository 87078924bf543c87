//! The progress of a training, from its events.

use host_core::{Event, EventBody, Request, Step};

use crate::show::number;

/// The latest values of a training, and the time until its end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meter {
    last_step: u64,
    step: u64,
    loss: Option<f64>,
    lr: Option<f64>,
    /// Exponential moving average.
    tokens_per_second: Option<f64>,
    curve: Curve,
    /// Time and number of the first finished step since the training's last start. Earlier times do not count,
    /// because an evaluation or the baselines can run before that step. Each later pause moves this time
    /// forward by its length, so that pauses are not counted.
    begun: Option<(i64, u64)>,
    paused_us: Option<i64>,
    /// The expected end.
    expected: Option<Expected>,
    now_us: i64,
}

/// When a training is expected to end.
#[derive(Clone, Copy, Debug)]
struct Expected {
    end_us: f64,
    at_us: i64,
}

/// The time constant with which the expected end follows the mean speed. It is a fraction of the time since
/// the start or, if that is shorter, of the time until the end. Without this smoothing, every evaluation
/// would make the expected end jump.
const FOLLOWS_IN: f64 = 0.5;

impl Meter {
    /// Creates a meter for a training of `last_step` steps. Pass 0 if this number is unknown.
    pub(crate) fn new(last_step: u64) -> Self {
        Self {
            last_step,
            ..Self::default()
        }
    }

    /// Records an event. Returns true if it finished a step.
    pub(crate) fn note(&mut self, event: &Event) -> bool {
        self.now_us = event.time_us;
        match &event.body {
            EventBody::RunStarted { .. } => {
                // The clock restarts, because the speed before a resume does not apply.
                self.step = event.step.0;
                (self.begun, self.paused_us, self.expected) = (None, None, None);
                false
            }
            EventBody::Superseded { from_step, .. } => {
                self.step = from_step.0;
                self.expected = None;
                false
            }
            EventBody::Request { request, .. } => {
                match request {
                    Request::Pause => self.paused_us = Some(event.time_us),
                    Request::Continue => self.go_on(event.time_us),
                    _ => {}
                }
                false
            }
            EventBody::Metrics { values } => {
                let mut is_step = false;
                for metric in values {
                    match &*metric.name {
                        "loss/train" => {
                            self.loss = Some(metric.value);
                            self.curve.push(metric.value);
                            is_step = true;
                        }
                        "lr" => self.lr = Some(metric.value),
                        "tokens_per_second" => {
                            let mean = self.tokens_per_second.unwrap_or(metric.value);
                            self.tokens_per_second = Some(mean + 0.1 * (metric.value - mean));
                        }
                        _ => {}
                    }
                }
                if is_step {
                    self.step = event.step.0;
                    self.begun.get_or_insert((event.time_us, event.step.0));
                    self.expect();
                }
                is_step
            }
            _ => false,
        }
    }

    /// Returns the last finished step.
    pub(crate) fn step(&self) -> Step {
        Step(self.step)
    }

    /// Returns the steps from which the speed is computed: their number, and their time in seconds without
    /// pauses.
    pub(crate) fn measured(&self) -> (u64, f64) {
        let (begun_us, begun_at) = self.begun.unwrap_or((self.now_us, self.step));
        let secs = (self.now_us - begun_us) as f64 / 1e6;
        (self.step.saturating_sub(begun_at), secs)
    }

    /// Returns the time of the newest event, in microseconds since 1970.
    pub(crate) fn time_us(&self) -> i64 {
        self.now_us
    }

    /// Ends a pause. The time of the pause does not count.
    fn go_on(&mut self, now_us: i64) {
        let Some(paused_us) = self.paused_us.take() else {
            return;
        };
        let pause_us = now_us - paused_us;
        if let Some((begun_us, _)) = &mut self.begun {
            *begun_us += pause_us;
        }
        if let Some(expected) = &mut self.expected {
            expected.end_us += pause_us as f64;
            expected.at_us += pause_us;
        }
    }

    /// Updates the expected end after a finished step.
    fn expect(&mut self) {
        let mean = || {
            let (begun_us, begun_at) = self.begun?;
            let done = self.step.checked_sub(begun_at).filter(|&done| done > 0)?;
            let left = self.last_step.checked_sub(self.step)?;
            let spent_us = (self.now_us - begun_us) as f64;
            let left_us = spent_us / done as f64 * left as f64;
            Some((spent_us.min(left_us), self.now_us as f64 + left_us))
        };
        let Some((shorter_us, mean_us)) = mean() else {
            self.expected = None;
            return;
        };
        let end_us = self.expected.map_or(mean_us, |before| {
            let passed_us = (self.now_us - before.at_us) as f64;
            let kept = (-passed_us / (FOLLOWS_IN * shorter_us).max(1.0)).exp();
            mean_us + kept * (before.end_us - mean_us)
        });
        let at_us = self.now_us;
        self.expected = Some(Expected { end_us, at_us });
    }

    /// Returns the seconds until the expected end, which follows from the mean speed so far. The mean
    /// includes the time of evaluations and checkpoints, but not of pauses.
    pub(crate) fn seconds_left(&self) -> Option<f64> {
        let end_us = self.expected?.end_us;
        Some((end_us - self.now_us as f64).max(0.0) / 1e6)
    }

    /// Formats the known values: `loss 3.4127  lr 2.00e-4  12.3k tokens/s  3m10s left`.
    pub(crate) fn values(&self) -> String {
        let parts = [
            self.loss
                .map(|loss| format!("loss {}", number::value(loss))),
            self.lr.map(|lr| format!("lr {}", number::value(lr))),
            self.tokens_per_second
                .map(|speed| format!("{} tokens/s", number::count(speed))),
            self.seconds_left()
                .filter(|_| self.last_step > self.step)
                .map(|secs| format!("{} left", number::duration(secs))),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join("  ")
    }

    /// Returns the curve of the loss so far, reduced to at most `ROOM` values.
    pub(crate) fn curve(&self) -> &[f64] {
        &self.curve.values
    }

    /// Formats the step and the values: `step 120/2000  loss …`.
    pub(crate) fn line(&self) -> String {
        let of = match self.last_step {
            0 => String::new(),
            last => format!("/{last}"),
        };
        let at = format!("step {}{of}", self.step);
        format!("{at:<11}  {}", self.values()).trim_end().to_owned()
    }
}

/// A series with a bounded number of entries. When it is full, each pair of entries is replaced by its mean,
/// and each later entry is the mean of twice as many values as before.
#[derive(Clone, Debug)]
struct Curve {
    values: Vec<f64>,
    /// Number of values per entry.
    width: u32,
    sum: f64,
    count: u32,
}

/// Maximum number of entries of a curve; even.
const ROOM: usize = 256;

impl Default for Curve {
    fn default() -> Self {
        Self {
            values: Vec::new(),
            width: 1,
            sum: 0.0,
            count: 0,
        }
    }
}

impl Curve {
    fn push(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
        if self.count < self.width {
            return;
        }
        self.values.push(self.sum / f64::from(self.count));
        (self.sum, self.count) = (0.0, 0);
        if self.values.len() == ROOM {
            let halved = self
                .values
                .chunks(2)
                .map(|pair| pair.iter().sum::<f64>() / 2.0);
            self.values = halved.collect();
            self.width = self.width.saturating_mul(2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use host_core::MetricValue;

    fn step(step: u64, secs: i64) -> Event {
        Event {
            seq: 1,
            time_us: secs * 1_000_000,
            step: Step(step),
            body: EventBody::Metrics {
                values: vec![
                    MetricValue::new("loss/train", 3.5),
                    MetricValue::new("lr", 2e-4),
                    MetricValue::new("tokens_per_second", 12_345.0),
                ],
            },
        }
    }

    #[test]
    fn the_time_left_is_that_of_this_generation() {
        let mut meter = Meter::new(200);
        meter.note(&step(1, 0));
        let start = EventBody::RunStarted { generation: 1 };
        meter.note(&Event {
            body: start,
            ..step(100, 1000)
        });
        assert_eq!(meter.seconds_left(), None);
        meter.note(&step(101, 1002));
        assert!(meter.note(&step(110, 1020)));
        assert_eq!(meter.seconds_left(), Some(180.0));
        assert_eq!(
            meter.line(),
            "step 110/200  loss 3.5000  lr 2.00e-4  12.3k tokens/s  3m00s left"
        );
    }

    #[test]
    fn the_time_before_the_first_finished_step_does_not_count() {
        let mut meter = Meter::new(100);
        let values = |name| vec![MetricValue::new(name, 5.0)];
        for (secs, body) in [
            (0, EventBody::RunStarted { generation: 0 }),
            (
                60,
                EventBody::Metrics {
                    values: values("baseline/unigram_perplexity"),
                },
            ),
            (
                90,
                EventBody::Metrics {
                    values: values("loss/eval"),
                },
            ),
        ] {
            meter.note(&Event {
                body,
                ..step(0, secs)
            });
        }
        meter.note(&step(1, 92));
        assert_eq!(meter.seconds_left(), None);
        assert_eq!(meter.measured(), (0, 0.0));
        meter.note(&step(2, 94));
        assert_eq!(meter.seconds_left(), Some(196.0));
        assert_eq!(meter.measured(), (1, 2.0));
    }

    #[test]
    fn an_evaluation_or_a_pause_does_not_make_the_time_left_jump() {
        let mut meter = Meter::new(1000);
        for n in 0..=100 {
            meter.note(&step(n, n as i64));
        }
        assert_eq!(meter.seconds_left(), Some(900.0));
        // Without smoothing, the mean speed would give about 1080 s.
        meter.note(&step(101, 121));
        let left = meter.seconds_left().expect("known");
        assert!((880.0..950.0).contains(&left), "{left}");

        let asked = |request, secs| Event {
            body: EventBody::Request {
                by: "client:ann".to_owned(),
                request,
                reason: String::new(),
            },
            ..step(101, secs)
        };
        meter.note(&asked(Request::Pause, 121));
        meter.note(&asked(Request::Continue, 9121));
        let after = meter.seconds_left().expect("known");
        assert!((after - left).abs() < 1e-3, "{left} and then {after}");
        for n in 102..=900 {
            meter.note(&step(n, 9121 + (n as i64 - 101)));
        }
        let left = meter.seconds_left().expect("known");
        assert!((98.0..108.0).contains(&left), "{left}");
    }

    #[test]
    fn an_unknown_end_has_no_time_left() {
        let mut meter = Meter::new(0);
        meter.note(&step(1, 0));
        meter.note(&step(2, 1));
        assert_eq!(
            meter.line(),
            "step 2       loss 3.5000  lr 2.00e-4  12.3k tokens/s"
        );
    }

    #[test]
    fn a_curve_has_bounded_size_and_keeps_its_shape() {
        let mut curve = Curve::default();
        for n in 0..100_000 {
            curve.push(f64::from(n));
        }
        assert!(curve.values.len() < ROOM && curve.values.len() >= ROOM / 2);
        assert!(curve.values.is_sorted());
        assert!(curve.values[0] < 1000.0 && *curve.values.last().expect("values") > 99_000.0);
    }
}
