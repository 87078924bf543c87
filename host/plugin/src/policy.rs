//! The keys of a `[[plugin]]` table that are reserved for the host. They define how the host runs the plugin.

use std::time::Duration;

use host_core::{Error, ErrorKind, QueuePolicy, Result};
use serde_json::{Map, Value, json};

use crate::{Mode, OnError};

/// The user's choices for running a plugin. The defaults depend on the plugin's kind.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Policy {
    /// Where the plugin's code runs.
    pub mode: Option<Mode>,
    /// What happens if a call fails.
    pub on_error: Option<OnError>,
    /// The time limit of a call. A call that takes longer fails.
    pub time_limit: Option<Duration>,
    /// Which checkpoints are queued for the plugin, if it is a sink.
    pub queue: Option<QueuePolicy>,
}

impl Policy {
    /// The reserved keys, as users write them.
    pub(crate) const KEYS: [&str; 4] = ["mode", "on_error", "time_limit_secs", "queue"];

    /// Sets a reserved key to a value from the command line. Returns false if the key is not reserved.
    ///
    /// # Errors
    /// Returns an error if the value is invalid.
    pub(crate) fn set(&mut self, key: &str, value: &str) -> Result<bool> {
        match key {
            "mode" => self.mode = Some(value.parse()?),
            "on_error" => self.on_error = Some(value.parse()?),
            "time_limit_secs" => self.time_limit = Some(time_limit(value.parse().ok(), value)?),
            "queue" => self.queue = Some(value.parse()?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Removes the reserved keys from a `[[plugin]]` table and parses them.
    ///
    /// # Errors
    /// Returns an error if a value is invalid.
    pub(crate) fn take_from(table: &mut Map<String, Value>) -> Result<Self> {
        let [mode, on_error, limit, queue] = Self::KEYS.map(|key| table.shift_remove(key));
        Ok(Self {
            mode: mode
                .map(|value| text_of("mode", value)?.parse())
                .transpose()?,
            on_error: on_error
                .map(|value| OnError::from_value(&value))
                .transpose()?,
            time_limit: limit
                .map(|value| time_limit(value.as_f64(), &value.to_string()))
                .transpose()?,
            queue: queue
                .map(|value| text_of("queue", value)?.parse())
                .transpose()?,
        })
    }

    /// Returns the keys that are set, as a table that
    /// [`PluginSpec::from_table`](crate::PluginSpec::from_table) can read.
    pub fn to_table(self) -> Map<String, Value> {
        let on_error = self.on_error.map(|on_error| match on_error {
            OnError::Fail => json!("fail"),
            OnError::Warn => json!("warn"),
            OnError::DisableAfter(n) => json!({ "disable_after": n }),
        });
        let values = [
            self.mode.map(|mode| mode.name().into()),
            on_error,
            self.time_limit.map(|limit| limit.as_secs_f64().into()),
            self.queue.map(|queue| queue.name().into()),
        ];
        let keys = Self::KEYS.map(str::to_owned).into_iter();
        keys.zip(values)
            .filter_map(|(key, value)| Some((key, value?)))
            .collect()
    }
}

/// Returns the text of a key in a `[[plugin]]` table.
///
/// # Errors
/// Returns an error if the value is not a string, or is empty.
pub(crate) fn text_of(key: &str, value: Value) -> Result<String> {
    match value {
        Value::String(text) if !text.is_empty() => Ok(text),
        other => Err(table_error(format!(
            "{key} of a [[plugin]] must be text, not {other}"
        ))),
    }
}

pub(crate) fn table_error(message: String) -> Error {
    Error::new(ErrorKind::Config, message)
        .hint("set id = \"local-disk\" or path = \"./libmine.so\" in the [[plugin]] table, and put the plugin's settings in the same table")
}

/// Parses a time limit in seconds.
fn time_limit(secs: Option<f64>, text: &str) -> Result<Duration> {
    secs.filter(|&secs| secs > 0.0)
        .and_then(|secs| Duration::try_from_secs_f64(secs).ok())
        .ok_or_else(|| {
            Error::new(
                ErrorKind::Config,
                format!("invalid time_limit_secs: {text}"),
            )
            .hint("write the maximum duration of one call in seconds, for example 0.5 or 60")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_can_be_set_and_no_other() {
        for (key, value) in [
            ("mode", "process"),
            ("on_error", "fail"),
            ("time_limit_secs", "1"),
            ("queue", "latest"),
        ] {
            let mut policy = Policy::default();
            assert!(policy.set(key, value).expect(key));
            assert_eq!(policy.to_table().keys().collect::<Vec<_>>(), [key]);
        }
        let mut policy = Policy::default();
        assert!(!policy.set("dir", "x").expect("not a key of the host"));
        assert_eq!(policy, Policy::default());
    }

    #[test]
    fn a_policy_survives_a_round_trip() {
        for policy in [
            Policy::default(),
            Policy {
                mode: Some(Mode::Process),
                on_error: Some(OnError::DisableAfter(3)),
                time_limit: Some(Duration::from_millis(2500)),
                queue: Some(QueuePolicy::Latest),
            },
            Policy {
                on_error: Some(OnError::Warn),
                ..Policy::default()
            },
        ] {
            let mut table = policy.to_table();
            assert_eq!(Policy::take_from(&mut table).expect("a policy"), policy);
            assert!(table.is_empty());
        }
    }
}
