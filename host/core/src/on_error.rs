use std::str::FromStr;

use serde_json::Value;

use crate::{Error, ErrorKind, Result};

/// The policy for failed calls into a plugin. [`Supervised`](crate::Supervised) applies it.
///
/// Some rules apply under every policy. Each failure is recorded as a
/// [`PluginFault`](crate::EventBody::PluginFault) event. A failed metric's values are omitted from the
/// evaluation, and never recorded as zero. An undelivered checkpoint stays queued.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// At the next step boundary, the run writes a checkpoint and ends with the plugin's error.
    Fail,
    /// The run continues, and the plugin is called again as usual.
    #[default]
    Warn,
    /// Like `Warn`, but the plugin is disabled after this many failures in a row.
    DisableAfter(u32),
}

impl FromStr for OnError {
    type Err = Error;

    /// Parses a value from the command line: `fail`, `warn` or `disable_after=N`.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "fail" => Ok(Self::Fail),
            "warn" => Ok(Self::Warn),
            _ => text
                .strip_prefix("disable_after=")
                .and_then(|n| n.parse().ok())
                .filter(|&n| n > 0)
                .map(Self::DisableAfter)
                .ok_or_else(|| refusal(text)),
        }
    }
}

impl OnError {
    /// Converts a value from TOML: `"fail"`, `"warn"` or `{ disable_after = N }`.
    ///
    /// # Errors
    /// Returns an error for any other value.
    pub fn from_value(value: &Value) -> Result<Self> {
        if let Some(text) = value.as_str() {
            return text.parse();
        }
        value
            .as_object()
            .filter(|table| table.len() == 1)
            .and_then(|table| table.get("disable_after")?.as_u64())
            .and_then(|n| u32::try_from(n).ok())
            .filter(|&n| n > 0)
            .map(Self::DisableAfter)
            .ok_or_else(|| refusal(&value.to_string()))
    }
}

fn refusal(text: &str) -> Error {
    Error::new(ErrorKind::Config, format!("on_error cannot be {text}")).hint(
        "use fail, warn or disable_after=N; in TOML \"fail\", \"warn\" or { disable_after = N }",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_forms_give_the_same_policy() {
        for (text, value, policy) in [
            ("fail", json!("fail"), OnError::Fail),
            ("warn", json!("warn"), OnError::Warn),
            (
                "disable_after=3",
                json!({"disable_after": 3}),
                OnError::DisableAfter(3),
            ),
        ] {
            assert_eq!(text.parse::<OnError>().expect("text"), policy);
            assert_eq!(OnError::from_value(&value).expect("value"), policy);
        }
    }

    #[test]
    fn anything_else_is_rejected() {
        for text in ["", "Fail", "disable_after=0", "disable_after=-1", "ignore"] {
            assert!(text.parse::<OnError>().is_err(), "{text}");
        }
        for value in [
            json!(3),
            json!({"disable_after": 0}),
            json!({"disable_after": 3, "x": 1}),
        ] {
            assert!(OnError::from_value(&value).is_err(), "{value}");
        }
    }
}
