//! Stops the training when a metric no longer improves.
//!
//! ```toml
//! [[plugin]]
//! id = "early-stopping"
//! metric = "loss/eval"        # the default; any metric of the run
//! greater_is_better = false   # the default; true for accuracies
//! patience = 3                # the default; consecutive measurements without an improvement
//! min_delta = 0.0             # the default; an improvement must be larger than this
//! stopping_threshold = 1.5    # stop when the metric is better than this; not set by default
//! check_finite = true         # the default; infinity or NaN stops at once
//! ```
//!
//! Each measurement of the metric counts. For `loss/eval`, the measurements are the evaluations, which take
//! place every `save_checkpoint_steps` steps. Names and meaning are from Lightning's `EarlyStopping`
//! (`patience`, `min_delta`, `stopping_threshold`, `check_finite`; Keras has the first two as well) and from
//! transformers (`greater_is_better`). Every checkpoint contains the best value and the count, so a resumed
//! run stops at the same step.

#![forbid(unsafe_code)]

use host_plugin_sdk::{
    Error, Event, Host, Observer, Request, Requests, Result, WatchedMetric, export_plugin,
};
use serde::Deserialize;

/// First byte of an exported state. It must change when the layout changes.
const STATE_VERSION: u8 = 1;
/// Size of an exported state: version, best value, step of the best value, measurements without an
/// improvement.
const STATE_BYTES: usize = 1 + 8 + 8 + 8;

/// The settings; `config.schema.json` describes them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    metric: String,
    greater_is_better: bool,
    patience: u64,
    min_delta: f64,
    stopping_threshold: Option<f64>,
    check_finite: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            metric: "loss/eval".to_owned(),
            greater_is_better: false,
            patience: 3,
            min_delta: 0.0,
            stopping_threshold: None,
            check_finite: true,
        }
    }
}

/// Watches one metric.
#[derive(Debug)]
pub struct EarlyStopping {
    metric: WatchedMetric,
    config: Config,
    best: Best,
    /// Consecutive measurements without an improvement.
    waited: u64,
}

/// The best value so far.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Best {
    /// Before the first measurement, the worst possible value.
    value: f64,
    step: u64,
}

impl Observer for EarlyStopping {
    type Config = Config;

    fn create(config: Config, host: Host) -> Result<Self> {
        if config.patience == 0 {
            return Err(Error::new("patience is 0, it must be at least 1"));
        }
        if !(config.min_delta.is_finite() && config.min_delta >= 0.0) {
            let min_delta = config.min_delta;
            return Err(Error::new(format!(
                "min_delta is {min_delta}, it must be at least 0"
            )));
        }
        let worst = match config.greater_is_better {
            true => f64::NEG_INFINITY,
            false => f64::INFINITY,
        };
        Ok(Self {
            metric: WatchedMetric::new(config.metric.clone(), host),
            config,
            best: Best {
                value: worst,
                step: 0,
            },
            waited: 0,
        })
    }

    fn observe(&mut self, step: u64, event: &Event<'_>, requests: &mut Requests<'_>) -> Result<()> {
        match self.metric.value(event) {
            Some(value) => match self.reason_to_stop(step, value) {
                Some(reason) => requests.ask(Request::Stop, &reason),
                None => Ok(()),
            },
            None => Ok(()),
        }
    }

    fn export_state(&self) -> Vec<u8> {
        let mut state = Vec::with_capacity(STATE_BYTES);
        state.push(STATE_VERSION);
        state.extend(self.best.value.to_le_bytes());
        state.extend(self.best.step.to_le_bytes());
        state.extend(self.waited.to_le_bytes());
        state
    }

    fn import_state(&mut self, state: &[u8]) -> Result<()> {
        match state.first() {
            Some(&STATE_VERSION) if state.len() == STATE_BYTES => {}
            Some(&STATE_VERSION) | None => {
                return Err(Error::new(format!(
                    "a state of early-stopping has {STATE_BYTES} bytes, but this one has {}",
                    state.len()
                )));
            }
            Some(version) => {
                return Err(Error::unsupported(format!(
                    "the state of early-stopping has version {version}, but this plugin reads version {STATE_VERSION}"
                )));
            }
        }
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&state[1 + 8 * at..][..8]);
            bytes
        };
        self.best = Best {
            value: f64::from_le_bytes(word(0)),
            step: u64::from_le_bytes(word(1)),
        };
        self.waited = u64::from_le_bytes(word(2));
        Ok(())
    }
}

impl EarlyStopping {
    /// Records a measurement. Returns the reason to stop training, if there is one. If `check_finite` is set,
    /// an infinite or NaN value changes neither the best value nor the count.
    fn reason_to_stop(&mut self, step: u64, value: f64) -> Option<String> {
        let Config {
            patience,
            min_delta,
            stopping_threshold,
            check_finite,
            ..
        } = self.config;
        let name = self.metric.name();
        let best = self.best;
        if check_finite && !value.is_finite() {
            return Some(format!("{name} is {value} at step {step}"));
        }
        if let Some(threshold) = stopping_threshold.filter(|&limit| self.is_better(value, limit)) {
            return Some(format!(
                "{name} is {}, better than {threshold}, at step {step}",
                short(value)
            ));
        }
        let closer = match self.config.greater_is_better {
            true => value - min_delta,
            false => value + min_delta,
        };
        if self.is_better(closer, best.value) {
            self.best = Best { value, step };
            self.waited = 0;
            return None;
        }
        self.waited = self.waited.saturating_add(1);
        (self.waited >= patience).then(|| {
            let by = match min_delta > 0.0 {
                true => format!(" by more than {min_delta}"),
                false => String::new(),
            };
            let evaluations = match self.waited {
                1 => "1 evaluation".to_owned(),
                n => format!("{n} evaluations"),
            };
            format!(
                "{name} has not improved on {}{by} for {evaluations} (best at step {})",
                short(best.value),
                best.step
            )
        })
    }

    /// Whether `value` is better than `than`. False if either of them is NaN.
    fn is_better(&self, value: f64, than: f64) -> bool {
        match self.config.greater_is_better {
            true => value > than,
            false => value < than,
        }
    }
}

/// Formats a value with five significant digits for a message.
fn short(value: f64) -> String {
    let rounded: f64 = format!("{value:.4e}").parse().unwrap_or(value);
    let text = format!("{rounded:?}");
    text.strip_suffix(".0").unwrap_or(&text).to_owned()
}

export_plugin! {
    description: "Stops when a metric no longer improves",
    observer: EarlyStopping,
    events: ["metrics", "checkpoint_written"],
    config: "config.schema.json",
}

#[cfg(test)]
mod tests {
    use host_plugin_sdk::fake;
    use serde_json::{Value, json};

    use super::*;

    fn observer(config: Value) -> fake::Observer {
        let plugin = fake::Plugin::load(&PLUGIN);
        plugin.observer(&config.to_string()).expect("created")
    }

    /// Passes values of `loss/eval` to the plugin, one every 100 steps, starting at step 100. Returns the
    /// index of the value at which the plugin first requested a stop, and the reason.
    fn stop(config: Value, values: &[f64]) -> Option<(usize, String)> {
        stop_of(&mut observer(config), "loss/eval", values)
    }

    fn stop_of(
        observer: &mut fake::Observer,
        name: &str,
        values: &[f64],
    ) -> Option<(usize, String)> {
        values.iter().enumerate().find_map(|(at, &value)| {
            let event = Event::Metrics {
                values: vec![("lr", 0.5), (name, value)],
            };
            let step = 100 * (at as u64 + 1);
            let asked = observer.observe(step, &event).expect("observed");
            let (request, reason) = asked.into_iter().next()?;
            assert_eq!(request, Request::Stop);
            Some((at, reason))
        })
    }

    fn at(values: Option<(usize, String)>) -> Option<usize> {
        values.map(|(at, _)| at)
    }

    #[test]
    fn it_stops_after_patience_evaluations_without_an_improvement() {
        assert_eq!(
            stop(json!({}), &[3.0, 2.31, 2.5, 2.31, 2.4]),
            Some((
                4,
                "loss/eval has not improved on 2.31 for 3 evaluations (best at step 200)"
                    .to_owned()
            ))
        );
        assert_eq!(
            stop(json!({"patience": 1}), &[3.0, 2.0, 2.0]),
            Some((
                2,
                "loss/eval has not improved on 2 for 1 evaluation (best at step 200)".to_owned()
            ))
        );
    }

    #[test]
    fn an_improvement_resets_the_count() {
        let values = [3.0, 4.0, 4.0, 2.9, 4.0, 4.0, 2.8, 4.0, 4.0];
        assert_eq!(stop(json!({}), &values), None);
        assert_eq!(at(stop(json!({"patience": 2}), &values)), Some(2));
    }

    #[test]
    fn greater_is_better() {
        let config = json!({"greater_is_better": true, "metric": "token_accuracy", "patience": 2});
        let values = [0.1, 0.3, 0.2, 0.3];
        assert_eq!(
            stop_of(&mut observer(config), "token_accuracy", &values),
            Some((
                3,
                "token_accuracy has not improved on 0.3 for 2 evaluations (best at step 200)"
                    .to_owned()
            ))
        );
    }

    #[test]
    fn an_improvement_must_be_larger_than_min_delta() {
        let values = [3.0, 2.75, 2.5, 2.25];
        let config = |delta: f64| json!({"min_delta": delta, "patience": 2});
        assert_eq!(stop(config(0.24), &values), None);
        assert_eq!(
            stop(config(0.75), &values),
            Some((
                2,
                "loss/eval has not improved on 3 by more than 0.75 for 2 evaluations (best at step 100)"
                    .to_owned()
            )),
            "an improvement is measured from the best value"
        );
        let exact = stop(json!({"min_delta": 0.25, "patience": 1}), &values);
        assert_eq!(
            at(exact),
            Some(1),
            "a change of exactly min_delta is not an improvement"
        );
        let rising = json!({"min_delta": 0.25, "patience": 1, "greater_is_better": true});
        assert_eq!(at(stop(rising, &[1.0, 1.5, 1.75])), Some(2));
    }

    #[test]
    fn better_than_the_threshold_stops_at_once() {
        let config = json!({"stopping_threshold": 1.5});
        assert_eq!(
            stop(config, &[2.0, 1.5, 1.4999]),
            Some((
                2,
                "loss/eval is 1.4999, better than 1.5, at step 300".to_owned()
            ))
        );
        let rising = json!({"stopping_threshold": 1.5, "greater_is_better": true});
        assert_eq!(at(stop(rising, &[1.0, 1.5, 2.0])), Some(2));
    }

    #[test]
    fn a_value_that_is_not_finite_stops_or_is_no_improvement() {
        assert_eq!(
            stop(json!({}), &[2.0, f64::NAN]),
            Some((1, "loss/eval is NaN at step 200".to_owned()))
        );
        assert_eq!(at(stop(json!({}), &[f64::INFINITY])), Some(0));
        let unchecked = json!({"check_finite": false, "patience": 2});
        assert_eq!(at(stop(unchecked.clone(), &[f64::NAN, 1.0])), None);
        assert_eq!(
            at(stop(
                unchecked.clone(),
                &[2.0, f64::NAN, 1.0, f64::INFINITY]
            )),
            None
        );
        assert_eq!(
            at(stop(unchecked, &[2.0, f64::NAN, f64::INFINITY])),
            Some(2)
        );
    }

    #[test]
    fn the_state_survives_a_resume() {
        let values = [3.0, 2.5, 2.6, 2.7, 2.4, 2.5, 2.6, 2.7];
        let whole = stop(json!({}), &values).expect("stops");
        assert_eq!(whole.0, 7);
        for split in 1..=7 {
            let mut before = observer(json!({}));
            assert_eq!(
                stop_of(&mut before, "loss/eval", &values[..split]),
                None,
                "{split}"
            );
            let state = before.export_state().expect("exported");
            let mut after = observer(json!({}));
            after.import_state(&state).expect("imported");
            assert_eq!(after.export_state().expect("exported"), state);
            let stopped = stop_of(&mut after, "loss/eval", &values[split..]);
            assert_eq!(at(stopped), Some(7 - split));
        }
        // If a stopped run is resumed anyway, it stops again unless the metric improves.
        let mut stopped = observer(json!({}));
        assert!(stop_of(&mut stopped, "loss/eval", &values).is_some());
        let state = stopped.export_state().expect("exported");
        let mut resumed = observer(json!({}));
        resumed.import_state(&state).expect("imported");
        assert_eq!(at(stop_of(&mut resumed, "loss/eval", &[2.5])), Some(0));
        assert_eq!(at(stop_of(&mut resumed, "loss/eval", &[2.3, 2.5])), None);
    }

    #[test]
    fn invalid_states_are_refused_and_change_nothing() {
        let mut observer = observer(json!({}));
        assert_eq!(stop_of(&mut observer, "loss/eval", &[3.0, 4.0]), None);
        let state = observer.export_state().expect("exported");
        assert_eq!(state.len(), STATE_BYTES);
        for length in 0..state.len() {
            assert!(observer.import_state(&state[..length]).is_err(), "{length}");
        }
        let longer = [&state[..], &[0]].concat();
        assert!(observer.import_state(&longer).is_err());
        let newer = [&[STATE_VERSION + 1], &state[1..]].concat();
        let failure = observer.import_state(&newer).expect_err("newer");
        assert!(failure.is_unsupported());
        assert_eq!(
            failure.message,
            "the state of early-stopping has version 2, but this plugin reads version 1"
        );
        assert_eq!(observer.export_state().expect("exported"), state);
    }

    #[test]
    fn invalid_settings_are_refused() {
        let plugin = fake::Plugin::load(&PLUGIN);
        for (config, message) in [
            (r#"{"patience": 0}"#, "patience is 0, it must be at least 1"),
            (
                r#"{"min_delta": -1}"#,
                "min_delta is -1, it must be at least 0",
            ),
        ] {
            assert_eq!(plugin.observer(config).expect_err(config).message, message);
        }
    }

    #[test]
    fn the_defaults_of_schema_and_code_are_equal() {
        let plugin = fake::Plugin::load(&PLUGIN);
        let properties = &plugin.manifest()["config"]["properties"];
        let defaults: serde_json::Map<String, Value> = properties
            .as_object()
            .expect("properties")
            .iter()
            .filter_map(|(name, schema)| Some((name.clone(), schema.get("default")?.clone())))
            .collect();
        let said: Config = serde_json::from_value(Value::Object(defaults)).expect("settings");
        assert_eq!(format!("{said:?}"), format!("{:?}", Config::default()));
    }

    #[test]
    fn an_unknown_metric_is_warned_of() {
        let plugin = fake::Plugin::load(&PLUGIN);
        let mut typo = plugin
            .observer(r#"{"metric": "los/eval"}"#)
            .expect("created");
        assert_eq!(stop_of(&mut typo, "loss/eval", &[1.0, 1.0, 1.0, 1.0]), None);
        let checkpoint = Event::CheckpointWritten {
            name: "step-000100",
            bytes: 1,
        };
        typo.observe(100, &checkpoint).expect("observed");
        assert_eq!(
            plugin.log(),
            ["warn: no metric named los/eval so far; measured metrics: loss/eval, lr"]
        );
    }
}
