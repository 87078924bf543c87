use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use host_core::{Error, Kind, QueuePolicy, Result};
use serde_json::{Map, Value};

use crate::{Mode, OnError, PluginConfig};

/// Keys of a `[[plugin]]` table that are the host's; all others are the plugin's settings.
pub(crate) const RESERVED_KEYS: [&str; 6] =
    ["id", "path", "mode", "on_error", "time_limit_secs", "queue"];

/// Which plugin the user asks for, and with which settings.
#[derive(Clone, Debug, PartialEq)]
pub struct PluginSpec {
    /// Which library.
    pub target: Target,
    /// The plugin's settings, as they were written.
    pub config: PluginConfig,
    /// Where its code runs, if the user said so; the default depends on the plugin's kind.
    pub mode: Option<Mode>,
    /// What a failing call means, if the user said so; the default depends on the plugin's kind.
    pub on_error: Option<OnError>,
    /// The longest that one call may take, if the user said so: beyond it the call has failed.
    pub time_limit: Option<Duration>,
    /// What waits for it if it is a sink, if the user said so.
    pub queue: Option<QueuePolicy>,
}

/// How a plugin is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// By the id in its manifest, wherever the search path finds it.
    Id(String),
    /// By its file.
    Path(PathBuf),
}

impl FromStr for PluginSpec {
    type Err = Error;

    /// The command line's form: `ID` or `PATH`, then perhaps `:key=value,key=[a,b]`.
    fn from_str(text: &str) -> Result<Self> {
        let (target, settings) = text.split_once(':').unwrap_or((text, ""));
        let target = match target {
            "" => return Err(spec_error(format!("no plugin is named in {text:?}"))),
            path if path.contains('/') || path.ends_with(".so") => Target::Path(path.into()),
            id => Target::Id(id.to_owned()),
        };
        let mut mode = None;
        let mut on_error = None;
        let mut time_limit = None;
        let mut queue = None;
        let mut config: Vec<(String, String)> = Vec::new();
        for setting in split_at_commas(settings) {
            let Some((key, value)) = setting.split_once('=') else {
                return Err(spec_error(format!(
                    "{setting:?} is not key=value in {text:?}"
                )));
            };
            let (key, value) = (key.trim(), value.trim());
            if config.iter().any(|(known, _)| known == key) {
                return Err(spec_error(format!("{key} is given twice in {text:?}")));
            }
            match key {
                "mode" if mode.is_some() => {
                    return Err(spec_error(format!("mode is given twice in {text:?}")));
                }
                "mode" => mode = Some(value.parse()?),
                "on_error" if on_error.is_some() => {
                    return Err(spec_error(format!("on_error is given twice in {text:?}")));
                }
                "on_error" => on_error = Some(value.parse()?),
                "time_limit_secs" if time_limit.is_some() => {
                    return Err(spec_error(format!(
                        "time_limit_secs is given twice in {text:?}"
                    )));
                }
                "time_limit_secs" => time_limit = Some(limit_of(value.parse().ok(), value)?),
                "queue" if queue.is_some() => {
                    return Err(spec_error(format!("queue is given twice in {text:?}")));
                }
                "queue" => queue = Some(value.parse()?),
                "" | "id" | "path" => {
                    return Err(spec_error(format!("{key:?} is no setting in {text:?}")));
                }
                _ => config.push((key.to_owned(), value.to_owned())),
            }
        }
        Ok(Self {
            target,
            config: PluginConfig::Text(config),
            mode,
            on_error,
            time_limit,
            queue,
        })
    }
}

impl PluginSpec {
    /// A `[[plugin]]` table: `id` or `path`, perhaps `mode`, `on_error`, `time_limit_secs` and `queue`,
    /// and the plugin's settings beside them.
    ///
    /// # Errors
    /// Not exactly one of `id` and `path` is given, or one of the host's keys has a wrong value.
    pub fn from_table(mut table: Map<String, Value>) -> Result<Self> {
        let text = |key: &str, value: Value| match value {
            Value::String(text) if !text.is_empty() => Ok(text),
            other => Err(table_error(format!(
                "{key} of a [[plugin]] must be text, not {other}"
            ))),
        };
        let target = match (table.shift_remove("id"), table.shift_remove("path")) {
            (Some(id), None) => Target::Id(text("id", id)?),
            (None, Some(path)) => Target::Path(text("path", path)?.into()),
            (None, None) => {
                return Err(table_error(
                    "a [[plugin]] has neither id nor path".to_owned(),
                ));
            }
            (Some(_), Some(_)) => {
                return Err(table_error("a [[plugin]] has both id and path".to_owned()));
            }
        };
        let mode = table
            .shift_remove("mode")
            .map(|value| text("mode", value)?.parse())
            .transpose()?;
        let on_error = table
            .shift_remove("on_error")
            .map(|value| OnError::from_value(&value))
            .transpose()?;
        let time_limit = table
            .shift_remove("time_limit_secs")
            .map(|value| limit_of(value.as_f64(), &value.to_string()))
            .transpose()?;
        let queue = table
            .shift_remove("queue")
            .map(|value| text("queue", value)?.parse())
            .transpose()?;
        Ok(Self {
            target,
            config: PluginConfig::Values(table),
            mode,
            on_error,
            time_limit,
            queue,
        })
    }
}

/// Splits at the commas that are in no brackets. Nothing at all gives no piece.
pub(crate) fn split_at_commas(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0u32;
    let mut rest = (!text.trim().is_empty()).then_some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let end = text.char_indices().find_map(|(at, c)| {
            match c {
                '[' => depth += 1,
                ']' => depth = depth.saturating_sub(1),
                ',' if depth == 0 => return Some(at),
                _ => {}
            }
            None
        });
        let (piece, left) = match end {
            Some(at) => (&text[..at], Some(&text[at + 1..])),
            None => (text, None),
        };
        rest = left;
        Some(piece)
    })
}

/// A time limit in seconds, where it is one.
fn limit_of(secs: Option<f64>, text: &str) -> Result<Duration> {
    secs.filter(|&secs| secs > 0.0)
        .and_then(|secs| Duration::try_from_secs_f64(secs).ok())
        .ok_or_else(|| {
            Error::new(Kind::Config, format!("time_limit_secs cannot be {text}"))
                .hint("give the seconds that one call may take, as in 0.5 or 60")
        })
}

fn spec_error(message: String) -> Error {
    Error::new(Kind::Config, message).hint(
        "write ID:key=value,key=[a,b] or PATH:key=value; what holds a comma of its own goes in a [[plugin]] table",
    )
}

fn table_error(message: String) -> Error {
    Error::new(Kind::Config, message)
        .hint("write id = \"local-disk\" or path = \"./libmine.so\", and the settings beside it")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn text(pairs: &[(&str, &str)]) -> PluginConfig {
        PluginConfig::Text(
            pairs
                .iter()
                .map(|&(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
        )
    }

    fn parse(spec: &str) -> PluginSpec {
        spec.parse().expect(spec)
    }

    #[test]
    fn a_spec_names_an_id_or_a_path() {
        for (spec, target) in [
            ("weight-decay", Target::Id("weight-decay".to_owned())),
            ("weight-decay:", Target::Id("weight-decay".to_owned())),
            ("./libmine.so", Target::Path("./libmine.so".into())),
            ("libmine.so", Target::Path("libmine.so".into())),
            ("/opt/mine", Target::Path("/opt/mine".into())),
        ] {
            assert_eq!(
                parse(spec),
                PluginSpec {
                    target,
                    config: text(&[]),
                    mode: None,
                    on_error: None,
                    time_limit: None,
                    queue: None,
                }
            );
        }
    }

    #[test]
    fn values_may_hold_colons_equal_signs_and_lists() {
        assert_eq!(
            parse("hub-git:repo=https://host/x.git?a=b,branch=main").config,
            text(&[("repo", "https://host/x.git?a=b"), ("branch", "main")])
        );
        assert_eq!(
            parse("weight-decay:no_decay=[bias,ln_1.weight],x=").config,
            text(&[("no_decay", "[bias,ln_1.weight]"), ("x", "")])
        );
    }

    #[test]
    fn the_policy_is_not_a_setting() {
        let spec = parse("./a.so:k=1,on_error=disable_after=3,queue=latest,mode=process");
        assert_eq!(spec.mode, Some(Mode::Process));
        assert_eq!(spec.on_error, Some(OnError::DisableAfter(3)));
        assert_eq!(spec.queue, Some(QueuePolicy::Latest));
        assert_eq!(spec.config, text(&[("k", "1")]));
    }

    #[test]
    fn a_time_limit_is_a_number_of_seconds_above_0() {
        let spec = parse("x:time_limit_secs=0.5,k=1");
        assert_eq!(spec.time_limit, Some(Duration::from_millis(500)));
        assert_eq!(spec.config, text(&[("k", "1")]));
        let table = |limit: Value| {
            let table = json!({"id": "x", "time_limit_secs": limit});
            PluginSpec::from_table(table.as_object().expect("a table").clone())
        };
        let limit = table(json!(60)).expect("a spec").time_limit;
        assert_eq!(limit, Some(Duration::from_secs(60)));
        for limit in ["0", "-1", "nan", "inf", "1e300", "long"] {
            let spec = format!("x:time_limit_secs={limit}");
            let error = spec.parse::<PluginSpec>().expect_err(limit);
            assert_eq!(
                error.message(),
                format!("time_limit_secs cannot be {limit}")
            );
        }
        assert!(table(json!("60")).is_err());
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_its_text() {
        for (spec, message) in [
            ("", "no plugin is named in \"\""),
            (":a=1", "no plugin is named in \":a=1\""),
            ("x:a", "\"a\" is not key=value in \"x:a\""),
            ("x:a=1,,b=2", "\"\" is not key=value in \"x:a=1,,b=2\""),
            ("x:a=1,a=2", "a is given twice in \"x:a=1,a=2\""),
            ("x:=1", "\"\" is no setting in \"x:=1\""),
            ("x:id=y", "\"id\" is no setting in \"x:id=y\""),
            ("x:mode=thread", "mode of a plugin cannot be \"thread\""),
            ("x:on_error=stop", "on_error cannot be stop"),
        ] {
            let error = spec.parse::<PluginSpec>().expect_err(spec);
            assert_eq!(error.message(), message);
            assert_eq!(error.kind(), Kind::Config);
            assert!(error.hint_text().is_some());
        }
    }

    #[test]
    fn a_table_has_the_settings_beside_the_hosts_keys() {
        let table = json!({
            "id": "local-disk", "dir": "/x", "keep": 3, "on_error": "warn", "mode": "in_process"
        });
        let spec = PluginSpec::from_table(table.as_object().expect("a table").clone());
        assert_eq!(
            spec.expect("a spec"),
            PluginSpec {
                target: Target::Id("local-disk".to_owned()),
                config: PluginConfig::Values(
                    json!({"dir": "/x", "keep": 3})
                        .as_object()
                        .expect("a table")
                        .clone()
                ),
                mode: Some(Mode::InProcess),
                on_error: Some(OnError::Warn),
                time_limit: None,
                queue: None,
            }
        );
    }

    #[test]
    fn a_table_names_one_plugin() {
        for (table, message) in [
            (json!({"dir": "x"}), "a [[plugin]] has neither id nor path"),
            (
                json!({"id": "a", "path": "b"}),
                "a [[plugin]] has both id and path",
            ),
            (
                json!({"id": "a", "queue": "newest"}),
                "queue of a plugin cannot be \"newest\"",
            ),
            (json!({"id": 3}), "id of a [[plugin]] must be text, not 3"),
            (
                json!({"id": "a", "mode": "thread"}),
                "mode of a plugin cannot be \"thread\"",
            ),
        ] {
            let table = table.as_object().expect("a table").clone();
            let error = PluginSpec::from_table(table).expect_err(message);
            assert_eq!(error.message(), message);
        }
    }
}
