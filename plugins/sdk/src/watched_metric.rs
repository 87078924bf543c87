use std::collections::BTreeSet;

use crate::{Event, Host};

/// Names that are told where the watched one is not measured.
const MOST_NAMES: usize = 30;

/// One metric among all events, by the name that a user gave.
///
/// A name with a typo would watch over nothing, without a word. So once a checkpoint stands and the
/// metric has never been measured, a line in the log says so, with the names that were. For that
/// the observer has to see `metrics` and `checkpoint_written`.
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
/// assert_eq!(log(), ["warn: no metric is called loss/evl so far; there are: loss/eval, lr"]);
/// ```
#[derive(Debug)]
pub struct WatchedMetric {
    name: String,
    host: Host,
    /// What was measured instead; none once the metric was, or its absence was told.
    others: Option<BTreeSet<String>>,
}

impl WatchedMetric {
    /// Watches the metric of this name.
    pub fn new(name: impl Into<String>, host: Host) -> Self {
        Self {
            name: name.into(),
            host,
            others: Some(BTreeSet::new()),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its value, if the event has one. Each event is to be shown once.
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
                        "no metric is called {} so far; there are: {}",
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
    fn a_metric_that_nobody_measures_is_told_once() {
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
            ["warn: no metric is called los/eval so far; there are: loss/eval, lr"]
        );
    }

    #[test]
    fn a_metric_that_was_measured_once_is_there() {
        let (host, log) = fake::host();
        let mut loss = WatchedMetric::new("loss/eval", host);
        assert_eq!(loss.value(&metrics(&[("loss/eval", 1.0)])), Some(1.0));
        assert_eq!(loss.value(&metrics(&[("lr", 0.5)])), None);
        assert_eq!(loss.value(&CHECKPOINT), None);
        assert_eq!(log().len(), 0);
    }
}
