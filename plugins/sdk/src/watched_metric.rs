use std::collections::BTreeSet;

use crate::{Event, Host};

/// Maximum number of names in the warning.
const MOST_NAMES: usize = 30;

/// Extracts one metric from a run's events. The user sets the metric's name.
///
/// If the metric was not measured before the first checkpoint, a warning lists the names of the measured
/// metrics. Without the warning, a typo in the name would go unnoticed. The warning requires that the
/// observer receives the events `metrics` and `checkpoint_written`.
///
/// ```
/// use host_plugin_sdk::{Event, WatchedMetric, fake};
///
/// let (host, log) = fake::host();
/// let mut watched = WatchedMetric::new("loss/evl", host);
/// assert_eq!(watched.name(), "loss/evl");
/// let measured = Event::Metrics { values: vec![("lr", 0.5), ("loss/eval", 2.5)] };
/// assert_eq!(watched.value(&measured), None);
/// assert_eq!(watched.value(&Event::CheckpointWritten { name: "step-000100", bytes: 1 }), None);
/// assert_eq!(log(), ["warn: no metric named loss/evl so far; measured metrics: loss/eval, lr"]);
/// ```
#[derive(Debug)]
pub struct WatchedMetric {
    name: String,
    host: Host,
    /// The names of the measured metrics, for the warning. `None` when no warning can follow: the watched
    /// metric was measured, or the warning was already logged.
    others: Option<BTreeSet<String>>,
}

impl WatchedMetric {
    /// Creates a watcher of the metric with this name.
    pub fn new(name: impl Into<String>, host: Host) -> Self {
        Self {
            name: name.into(),
            host,
            others: Some(BTreeSet::new()),
        }
    }

    /// Returns the metric's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the metric's value if the event contains it. Pass each event exactly once.
    pub fn value(&mut self, event: &Event<'_>) -> Option<f64> {
        let value = event.metric(&self.name);
        if value.is_some() {
            self.others = None;
        }
        match (event, &mut self.others) {
            (Event::Metrics { values }, Some(others)) => {
                let room = MOST_NAMES.saturating_sub(others.len());
                let names = values.iter().map(|&(name, _)| name.to_owned());
                others.extend(names.take(room));
            }
            (Event::CheckpointWritten { .. }, others) => {
                if let Some(others) = others.take() {
                    let others: Vec<String> = others.into_iter().collect();
                    self.host.warn(&format!(
                        "no metric named {} so far; measured metrics: {}",
                        self.name,
                        others.join(", ")
                    ));
                }
            }
            _ => {}
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;

    fn metrics<'a>(values: &[(&'a str, f64)]) -> Event<'a> {
        Event::Metrics {
            values: values.to_vec(),
        }
    }

    const CHECKPOINT: Event<'_> = Event::CheckpointWritten {
        name: "step-000100",
        bytes: 1,
    };

    #[test]
    fn a_metric_that_is_not_measured_causes_one_warning() {
        let (host, log) = fake::host();
        let mut typo = WatchedMetric::new("los/eval", host);
        assert_eq!(
            typo.value(&metrics(&[("lr", 0.5), ("loss/eval", 1.0)])),
            None
        );
        for _ in 0..2 {
            assert_eq!(typo.value(&CHECKPOINT), None);
        }
        assert_eq!(
            log(),
            ["warn: no metric named los/eval so far; measured metrics: loss/eval, lr"]
        );
    }

    #[test]
    fn a_metric_that_was_measured_once_causes_no_warning() {
        let (host, log) = fake::host();
        let mut loss = WatchedMetric::new("loss/eval", host);
        assert_eq!(loss.value(&metrics(&[("loss/eval", 1.0)])), Some(1.0));
        assert_eq!(loss.value(&metrics(&[("lr", 0.5)])), None);
        assert_eq!(loss.value(&CHECKPOINT), None);
        assert_eq!(log().len(), 0);
    }
}
