//! An observer that stops training when `metric` is at or below `target`.

#![forbid(unsafe_code)]

use host_plugin_sdk::{Event, Host, Observer, Request, Requests, Result, export_plugin};
use serde::Deserialize;

/// The settings, which `config.schema.json` describes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(default = "default_metric")]
    metric: String,
    #[serde(default = "default_target")]
    target: f64,
}

fn default_metric() -> String {
    "loss/eval".to_owned()
}

fn default_target() -> f64 {
    1.0
}

/// Stops training at the target. It keeps no state between events, so it does not export a state.
#[derive(Debug)]
pub struct Target(Config);

impl Observer for Target {
    type Config = Config;

    fn create(config: Config, _host: Host) -> Result<Self> {
        Ok(Self(config))
    }

    // Training waits for this call, so keep it short.
    fn observe(
        &mut self,
        _step: u64,
        event: &Event<'_>,
        requests: &mut Requests<'_>,
    ) -> Result<()> {
        let Config { metric, target } = &self.0;
        match event.metric(metric) {
            Some(value) if value <= *target => {
                let reason = format!("{metric} is {value}, the target is {target}");
                requests.ask(Request::Stop, &reason)
            }
            _ => Ok(()),
        }
    }
}

export_plugin! {
    description: "Stops training when a metric is at or below a target",
    observer: Target,
    events: ["metrics"],
    config: "config.schema.json",
}

#[cfg(test)]
mod tests {
    use host_plugin_sdk::fake::Plugin;

    use super::*;

    #[test]
    fn stops_at_the_target_and_not_before() {
        let plugin = Plugin::load(&PLUGIN);
        let mut observer = plugin.observer(r#"{"target": 2.0}"#).expect("created");
        let mut asked = |name, value| {
            let values = vec![(name, value)];
            let event = Event::Metrics { values };
            observer.observe(100, &event).expect("observed")
        };
        assert_eq!(asked("loss/eval", 2.5), []);
        assert_eq!(asked("loss/eval", f64::NAN), []);
        assert_eq!(asked("loss/train", 1.0), []);
        assert_eq!(asked("loss/eval", 2.0)[0].0, Request::Stop);
    }
}
