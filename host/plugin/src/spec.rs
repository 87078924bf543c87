use std::path::PathBuf;
use std::str::FromStr;

use host_core::{Error, ErrorKind, Result};
use serde_json::{Map, Value};

use crate::PluginConfig;
use crate::policy::{Policy, table_error, text_of};

/// The plugin that the user requests, with its settings.
#[derive(Clone, Debug, PartialEq)]
pub struct PluginSpec {
    /// Which library.
    pub target: Target,
    /// The plugin's settings, as the user wrote them.
    pub config: PluginConfig,
    /// The user's choices for running the plugin.
    pub policy: Policy,
}

/// How a plugin is requested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// By its id. The plugin is the library on the search path whose manifest has this id.
    Id(String),
    /// By its file.
    Path(PathBuf),
}

impl FromStr for PluginSpec {
    type Err = Error;

    /// Parses the command line's form: `ID` or `PATH`, optionally followed by `:key=value,key=[a,b]`.
    fn from_str(text: &str) -> Result<Self> {
        let (target, settings) = text.split_once(':').unwrap_or((text, ""));
        let target = match target {
            "" => return Err(spec_error(format!("no plugin in {text:?}"))),
            path if path.contains('/') || path.ends_with(".so") => Target::Path(path.into()),
            id => Target::Id(id.to_owned()),
        };
        let mut policy = Policy::default();
        let mut config: Vec<(String, String)> = Vec::new();
        let mut seen = Vec::new();
        for setting in split_at_commas(settings) {
            let Some((key, value)) = setting.split_once('=') else {
                return Err(spec_error(format!(
                    "{setting:?} is not key=value in {text:?}"
                )));
            };
            let (key, value) = (key.trim(), value.trim());
            if seen.contains(&key) {
                return Err(spec_error(format!("{key} is set twice in {text:?}")));
            }
            seen.push(key);
            if matches!(key, "" | "id" | "path") {
                return Err(spec_error(format!(
                    "{key:?} cannot be used as a setting in {text:?}"
                )));
            }
            if !policy.set(key, value)? {
                config.push((key.to_owned(), value.to_owned()));
            }
        }
        Ok(Self {
            target,
            config: PluginConfig::Text(config),
            policy,
        })
    }
}

impl PluginSpec {
    /// Creates the SPEC of the plugin with this id, these settings and the default policy.
    pub fn by_id(id: &str, config: PluginConfig) -> Self {
        Self {
            target: Target::Id(id.to_owned()),
            config,
            policy: Policy::default(),
        }
    }

    /// Reads a `[[plugin]]` table. It has `id` or `path`, and the plugin's own settings. The keys `mode`,
    /// `on_error`, `time_limit_secs` and `queue` are optional.
    ///
    /// # Errors
    /// Returns an error if neither or both of `id` and `path` are set, or if one of the host's keys has an
    /// invalid value.
    pub fn from_table(mut table: Map<String, Value>) -> Result<Self> {
        let target = match (table.shift_remove("id"), table.shift_remove("path")) {
            (Some(id), None) => Target::Id(text_of("id", id)?),
            (None, Some(path)) => Target::Path(text_of("path", path)?.into()),
            (None, None) => {
                return Err(table_error(
                    "a [[plugin]] table has neither id nor path".to_owned(),
                ));
            }
            (Some(_), Some(_)) => {
                return Err(table_error(
                    "a [[plugin]] table has both id and path".to_owned(),
                ));
            }
        };
        let policy = Policy::take_from(&mut table)?;
        Ok(Self {
            target,
            config: PluginConfig::Values(table),
            policy,
        })
    }
}

/// Splits at commas outside of brackets. A blank text has no parts.
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

fn spec_error(message: String) -> Error {
    Error::new(ErrorKind::Config, message).hint(
        "write ID:key=value,key=[a,b] or PATH:key=value; put values that contain a comma into a [[plugin]] table",
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Mode, OnError};
    use host_core::QueuePolicy;
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
                    policy: Policy::default(),
                }
            );
        }
    }

    #[test]
    fn values_may_contain_colons_equal_signs_and_lists() {
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
        assert_eq!(spec.policy.mode, Some(Mode::Process));
        assert_eq!(spec.policy.on_error, Some(OnError::DisableAfter(3)));
        assert_eq!(spec.policy.queue, Some(QueuePolicy::Latest));
        assert_eq!(spec.config, text(&[("k", "1")]));
    }

    #[test]
    fn a_time_limit_is_a_number_of_seconds_above_0() {
        let spec = parse("x:time_limit_secs=0.5,k=1");
        assert_eq!(spec.policy.time_limit, Some(Duration::from_millis(500)));
        assert_eq!(spec.config, text(&[("k", "1")]));
        let table = |limit: Value| {
            let table = json!({"id": "x", "time_limit_secs": limit});
            PluginSpec::from_table(table.as_object().expect("a table").clone())
        };
        let limit = table(json!(60)).expect("a spec").policy.time_limit;
        assert_eq!(limit, Some(Duration::from_secs(60)));
        for limit in ["0", "-1", "nan", "inf", "1e300", "long"] {
            let spec = format!("x:time_limit_secs={limit}");
            let error = spec.parse::<PluginSpec>().expect_err(limit);
            assert_eq!(error.message(), format!("invalid time_limit_secs: {limit}"));
        }
        assert!(table(json!("60")).is_err());
    }

    #[test]
    fn an_invalid_spec_is_rejected_with_its_text() {
        for (spec, message) in [
            ("", "no plugin in \"\""),
            (":a=1", "no plugin in \":a=1\""),
            ("x:a", "\"a\" is not key=value in \"x:a\""),
            ("x:a=1,,b=2", "\"\" is not key=value in \"x:a=1,,b=2\""),
            ("x:a=1,a=2", "a is set twice in \"x:a=1,a=2\""),
            ("x:=1", "\"\" cannot be used as a setting in \"x:=1\""),
            ("x:id=y", "\"id\" cannot be used as a setting in \"x:id=y\""),
            ("x:mode=thread", "unknown plugin mode: \"thread\""),
            ("x:on_error=stop", "on_error cannot be stop"),
        ] {
            let error = spec.parse::<PluginSpec>().expect_err(spec);
            assert_eq!(error.message(), message);
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.hint_text().is_some());
        }
    }

    #[test]
    fn a_table_has_the_settings_next_to_the_hosts_keys() {
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
                policy: Policy {
                    mode: Some(Mode::InProcess),
                    on_error: Some(OnError::Warn),
                    ..Policy::default()
                },
            }
        );
    }

    #[test]
    fn a_table_names_one_plugin() {
        for (table, message) in [
            (
                json!({"dir": "x"}),
                "a [[plugin]] table has neither id nor path",
            ),
            (
                json!({"id": "a", "path": "b"}),
                "a [[plugin]] table has both id and path",
            ),
            (
                json!({"id": "a", "queue": "newest"}),
                "queue cannot be \"newest\"",
            ),
            (json!({"id": 3}), "id of a [[plugin]] must be text, not 3"),
            (
                json!({"id": "a", "mode": "thread"}),
                "unknown plugin mode: \"thread\"",
            ),
        ] {
            let table = table.as_object().expect("a table").clone();
            let error = PluginSpec::from_table(table).expect_err(message);
            assert_eq!(error.message(), message);
        }
    }
}
