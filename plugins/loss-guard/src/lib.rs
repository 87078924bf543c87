//! Watches the loss. If the loss spikes, or is infinite or NaN, training stops, rolls back or skips an
//! update.
//!
//! ```toml
//! [[plugin]]
//! id = "loss-guard"
//! metric = "loss/train"   # the default
//! spike_factor = 2.0      # the default; a spike is above this factor times the median
//! window = 64             # the default; number of values for the median
//! action = "roll_back"    # or "skip", or "stop", the default
//! max_roll_backs = 3      # the default; after that, the request is a stop
//! ```
//!
//! - **stop** ends the training, with a checkpoint.
//! - **roll_back** restores the weights and the optimizer from the last checkpoint. Training then does not
//!   repeat the batches that led to the spike, because they would cause it again. It continues with the next
//!   batches.
//! - **skip** skips the next step's update. The loss of a step is known only after its update was applied, so
//!   the update of the step that spiked cannot be prevented.
//!
//! Before there are `window` values, no value is a spike, because the loss is unsteady at the start. While
//! the median is not above 0, no value is a spike, because a factor would have no meaning.
//!
//! A spike is included in later medians like any other value. A single spike hardly changes them. After a
//! permanent change of level, values stop being spikes once the median has adapted. After a roll-back, the
//! window contains only values up to the step that the run went back to, so the window may have to fill
//! again.
//!
//! The host has its own setting `on_nonfinite` for losses that are not finite. By default, such a loss ends
//! the run with an error before observers are called. If `on_nonfinite` is `skip` or `continue`, this plugin
//! handles such losses.

#![forbid(unsafe_code)]

mod window;

use host_plugin_sdk::{
    Error, Event, Host, Observer, Request, Requests, Result, WatchedMetric, export_plugin,
};
use serde::Deserialize;

use crate::window::Window;

/// First byte of a state. Must be incremented when the layout changes.
const STATE_VERSION: u8 = 2;
/// Size of a state's header: version, number of roll-backs, number of values. The steps and values follow.
const STATE_HEAD: usize = 1 + 8 + 8;

/// The settings; `config.schema.json` describes them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    metric: String,
    spike_factor: f64,
    window: usize,
    action: Action,
    max_roll_backs: u64,
}

/// The request to make when the loss spikes or is not finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Action {
    Stop,
    RollBack,
    Skip,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            metric: "loss/train".to_owned(),
            spike_factor: 2.0,
            window: 64,
            action: Action::Stop,
            max_roll_backs: 3,
        }
    }
}

/// Watches one metric.
#[derive(Debug)]
pub struct LossGuard {
    metric: WatchedMetric,
    config: Config,
    window: Window,
    /// Number of roll-backs requested so far.
    roll_backs: u64,
    /// Values up to this step are ignored, because a request already covers them. Such values can still
    /// arrive: a request waits for the step boundary, and the loss of a step is sometimes read only after
    /// that boundary.
    dealt_with: Option<u64>,
}

impl Observer for LossGuard {
    type Config = Config;

    fn create(config: Config, host: Host) -> Result<Self> {
        if !(config.spike_factor.is_finite() && config.spike_factor > 1.0) {
            let factor = config.spike_factor;
            return Err(Error::new(format!(
                "spike_factor is {factor}, it must be above 1"
            )));
        }
        if config.window == 0 {
            return Err(Error::new("window is 0, it must be at least 1"));
        }
        Ok(Self {
            metric: WatchedMetric::new(config.metric.clone(), host),
            window: Window::new(config.window),
            config,
            roll_backs: 0,
            dealt_with: None,
        })
    }

    fn observe(&mut self, step: u64, event: &Event<'_>, requests: &mut Requests<'_>) -> Result<()> {
        match event {
            // An earlier request was lost with the previous process, or it is still pending. In the second
            // case, a later event reports that it is carried out, and `dealt_with` is set again.
            Event::RunStarted { .. } => self.dealt_with = None,
            // The run went back to an earlier step, so all values from now on are new.
            Event::Superseded { from_step, .. } => {
                self.dealt_with = None;
                self.window.forget_after(*from_step);
            }
            Event::Request { request, .. } if self.answers(*request) => {
                self.dealt_with = Some(step);
            }
            _ => {}
        }
        let Some(value) = self.metric.value(event) else {
            return Ok(());
        };
        if self.dealt_with.is_some_and(|until| step <= until) {
            return Ok(());
        }
        let fault = self.fault(step, value);
        self.window.push(step, value);
        match fault {
            Some(fault) => self.ask(&fault, requests),
            None => Ok(()),
        }
    }

    fn export_state(&self) -> Vec<u8> {
        let mut state = vec![STATE_VERSION];
        state.extend(self.roll_backs.to_le_bytes());
        state.extend((self.window.values().count() as u64).to_le_bytes());
        for (step, value) in self.window.values() {
            state.extend(step.to_le_bytes());
            state.extend(value.to_le_bytes());
        }
        state
    }

    fn import_state(&mut self, state: &[u8]) -> Result<()> {
        match state.first() {
            Some(&STATE_VERSION) if state.len() >= STATE_HEAD => {}
            Some(&version) if version != STATE_VERSION => {
                return Err(Error::unsupported(format!(
                    "the state of loss-guard has version {version}, but this plugin reads version {STATE_VERSION}"
                )));
            }
            _ => return Err(bad_size(state)),
        }
        let (words, rest) = state[1..].as_chunks::<8>();
        let Some(([roll_backs, count], words)) = words.split_first_chunk() else {
            return Err(bad_size(state));
        };
        let (values, odd) = words.as_chunks::<2>();
        // The count shows whether the state was truncated between two values.
        let is_whole =
            rest.is_empty() && odd.is_empty() && u64::from_le_bytes(*count) == values.len() as u64;
        if !is_whole {
            return Err(bad_size(state));
        }
        self.roll_backs = u64::from_le_bytes(*roll_backs);
        // If the window is smaller than before, only the newest values are kept.
        self.window = Window::new(self.config.window);
        for &[step, value] in values {
            self.window
                .push(u64::from_le_bytes(step), f64::from_le_bytes(value));
        }
        Ok(())
    }
}

impl LossGuard {
    /// Returns the reason for a request if the value is a spike or not finite.
    fn fault(&mut self, step: u64, value: f64) -> Option<String> {
        let name = self.metric.name();
        if !value.is_finite() {
            return Some(format!("{name} is {value} at step {step}"));
        }
        let Config {
            spike_factor,
            window,
            ..
        } = self.config;
        let median = self.window.median().filter(|&median| median > 0.0)?;
        (value > spike_factor * median).then(|| {
            format!(
                "{name} is {} at step {step}, above {spike_factor} times {}, the median over a window of {window}",
                short(value),
                short(median)
            )
        })
    }

    fn ask(&mut self, fault: &str, requests: &mut Requests<'_>) -> Result<()> {
        // Values are ignored until the request is carried out: see `dealt_with`.
        self.dealt_with = Some(u64::MAX);
        match self.config.action {
            Action::Stop => requests.ask(Request::Stop, fault),
            Action::Skip => requests.ask(Request::SkipStep, fault),
            Action::RollBack if self.roll_backs < self.config.max_roll_backs => {
                self.roll_backs += 1;
                requests.ask(Request::RollBack, fault)
            }
            Action::RollBack => {
                let tried = match self.roll_backs {
                    0 => "roll-backs are disabled".to_owned(),
                    1 => "1 roll-back has already been requested".to_owned(),
                    n => format!("{n} roll-backs have already been requested"),
                };
                requests.ask(Request::Stop, &format!("{fault}; {tried}"))
            }
        }
    }

    /// Whether a request, from any plugin, has the effect that this guard would request.
    fn answers(&self, request: Request) -> bool {
        match self.config.action {
            Action::Stop => request == Request::Stop,
            Action::Skip => request == Request::SkipStep,
            Action::RollBack => matches!(request, Request::RollBack | Request::Stop),
        }
    }
}

fn bad_size(state: &[u8]) -> Error {
    Error::new(format!(
        "a state of loss-guard has {STATE_HEAD} bytes plus 16 for each value, but this one has {}",
        state.len()
    ))
}

/// Formats a value with five significant digits for a message.
fn short(value: f64) -> String {
    let rounded: f64 = format!("{value:.4e}").parse().unwrap_or(value);
    let text = format!("{rounded:?}");
    text.strip_suffix(".0").unwrap_or(&text).to_owned()
}

export_plugin! {
    description: "Stops, rolls back or skips when the loss spikes or is not finite",
    observer: LossGuard,
    events: ["run_started", "superseded", "metrics", "checkpoint_written", "request"],
    config: "config.schema.json",
}

#[cfg(test)]
mod tests;
