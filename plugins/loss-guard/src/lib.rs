//! Looks after the loss: when it spikes, or is infinite or NaN, the training stops, rolls back or
//! skips a step.
//!
//! ```toml
//! [[plugin]]
//! id = "loss-guard"
//! metric = "loss/train"   # the default
//! spike_factor = 2.0      # the default; a spike is above so many times the median
//! window = 64             # the default; of the last so many values
//! action = "roll_back"    # or "skip", or "stop", the default
//! max_roll_backs = 3      # the default; after so many the next is a stop
//! ```
//!
//! - **stop** ends the training, with a checkpoint.
//! - **roll_back** makes weights and optimizer those of the last checkpoint and goes on past the batches
//!   that led to the spike: the same batches would lead there again.
//! - **skip** leaves out the next step's update. The step that spiked has been learnt from already
//!   when its loss is known; this only keeps the next from building on it.
//!
//! No value is a spike before there are `window` of them, since a young loss jumps about, nor while the
//! median is not above 0, where a factor says nothing. A spike takes part in later medians like any
//! other value: one of many does not move them, and a loss that has changed its level for good
//! is no spike for ever. A run that has gone back is judged by what its loss was like there, so the
//! window may have to fill again.
//!
//! The host has a setting of its own for losses that are not finite, `on_nonfinite`. By default it ends
//! the run with an error before anybody is asked; with `skip` or `continue` it leaves them to this
//! plugin.

#![forbid(unsafe_code)]

mod window;

use host_plugin_sdk::{
    Error, Event, Host, Observer, Request, Requests, Result, WatchedMetric, export_plugin,
};
use serde::Deserialize;

use crate::window::Window;

/// First byte of a state; another layout gets another number.
const STATE_VERSION: u8 = 2;
/// Version, number of roll-backs, number of values; the window's steps and values follow.
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

/// What is asked for when the loss goes wrong.
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
    /// Asked for so far.
    roll_backs: u64,
    /// Values up to this step are what a request has already dealt with. They arrive all the same:
    /// a request waits for the step boundary, and the loss of a step may be read later than that.
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
            // What was asked for before is carried out after this, or was lost with the process.
            Event::RunStarted { .. } => self.dealt_with = None,
            // Steps are counted from an earlier one again, so all values that come now are new.
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
                    "a state of loss-guard of version {version}, this is version {STATE_VERSION}"
                )));
            }
            _ => return Err(bad_size(state)),
        }
        let (words, rest) = state[1..].as_chunks::<8>();
        let Some(([roll_backs, count], words)) = words.split_first_chunk() else {
            return Err(bad_size(state));
        };
        let (values, odd) = words.as_chunks::<2>();
        // The count finds out a state that was cut off between two values.
        let is_whole =
            rest.is_empty() && odd.is_empty() && u64::from_le_bytes(*count) == values.len() as u64;
        if !is_whole {
            return Err(bad_size(state));
        }
        self.roll_backs = u64::from_le_bytes(*roll_backs);
        // A window that is smaller now keeps the last values.
        self.window = Window::new(self.config.window);
        for &[step, value] in values {
            self.window
                .push(u64::from_le_bytes(step), f64::from_le_bytes(value));
        }
        Ok(())
    }
}

impl LossGuard {
    /// What is wrong with a value, if anything.
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
                "{name} is {} at step {step}, above {spike_factor} times {}, the median of the last {window}",
                short(value),
                short(median)
            )
        })
    }

    fn ask(&mut self, fault: &str, requests: &mut Requests<'_>) -> Result<()> {
        // Until it is carried out: see `dealt_with`.
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
                    0 => "no roll-back is allowed".to_owned(),
                    1 => "after 1 roll-back".to_owned(),
                    n => format!("after {n} roll-backs"),
                };
                requests.ask(Request::Stop, &format!("{fault}; {tried}"))
            }
        }
    }

    /// Whether the request, whoever made it, deals with what this guard would ask for.
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
        "a state of loss-guard has {STATE_HEAD} bytes and 16 for each value, this has {}",
        state.len()
    ))
}

/// A value with five digits, for people.
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
