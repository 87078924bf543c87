use std::fmt;

use host_core::Need;
use host_plugin_abi as abi;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::Policy;
use crate::inspect::Refusal;
use crate::{EventKind, schema};

/// A plugin's manifest. The host reads it before any of the plugin's code runs.
#[derive(Clone, Debug, PartialEq)]
pub struct PluginManifest {
    /// The major and minor version of the ABI that the plugin was built against.
    pub abi: (u32, u32),
    /// The lowest minor version of the host's ABI that the plugin supports.
    pub min_host_minor: u32,
    /// The plugin's id: at most 64 lower-case letters, digits, `-` and `_`, beginning with a letter.
    pub id: String,
    /// The plugin's version, such as `1.2` or `1.2.3-rc.1+build`. It has at most 64 characters, and is only
    /// displayed and compared for equality.
    pub version: String,
    /// A description for users; may be empty.
    pub description: String,
    /// The kinds that the plugin implements, without duplicates.
    pub kinds: Vec<PluginKind>,
    /// The batch inputs that the plugin's metric needs.
    pub needs: Vec<Need>,
    /// Whether the plugin's metric can read CUDA memory.
    pub reads_cuda: bool,
    /// The kinds of events that the plugin's observer receives; `None` means all.
    pub events: Option<Vec<EventKind>>,
    /// The JSON Schema of the plugin's settings. Without a schema the plugin has no settings.
    pub config: Option<Value>,
}

/// The kinds of plugins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PluginKind {
    /// Assigns parameters to the optimizer's groups.
    ParamGroups,
    /// An evaluation metric.
    Metric,
    /// Delivers checkpoints.
    CheckpointSink,
    /// Watches the run and may make requests.
    Observer,
}

impl PluginKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [
        Self::ParamGroups,
        Self::Metric,
        Self::CheckpointSink,
        Self::Observer,
    ];

    /// Returns the kind's name in manifests.
    pub fn name(self) -> &'static str {
        match self {
            Self::ParamGroups => "param_groups",
            Self::Metric => "metric",
            Self::CheckpointSink => "checkpoint_sink",
            Self::Observer => "observer",
        }
    }

    /// The ABI's number.
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::ParamGroups => abi::HOST_KIND_PARAM_GROUPS,
            Self::Metric => abi::HOST_KIND_METRIC,
            Self::CheckpointSink => abi::HOST_KIND_CHECKPOINT_SINK,
            Self::Observer => abi::HOST_KIND_OBSERVER,
        }
    }
}

impl fmt::Display for PluginKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl PluginManifest {
    /// Reads the manifest from its JSON object. Unknown keys are ignored, since they may be meant for newer
    /// hosts.
    pub(crate) fn from_object(object: &Map<String, Value>) -> Result<Self, Refusal> {
        let id = read_id(object).ok_or_else(|| {
            wrong_field(
                "id",
                "1 to 64 lower-case letters, digits, - and _, beginning with a letter",
            )
        })?;
        let abi = match object
            .get("abi")
            .and_then(Value::as_array)
            .map(Vec::as_slice)
        {
            Some([major, minor]) => (as_u32(major), as_u32(minor)),
            _ => (None, None),
        };
        let (Some(major), Some(minor)) = abi else {
            return Err(wrong_field("abi", "[MAJOR, MINOR]"));
        };
        let min_host_minor = match object.get("min_host_minor") {
            None => 0,
            Some(value) => {
                as_u32(value).ok_or_else(|| wrong_field("min_host_minor", "a number"))?
            }
        };
        check_abi(&format!("plugin {id}"), major, min_host_minor)?;
        let text = |key: &str| object.get(key).and_then(Value::as_str);
        let version = text("version")
            .filter(|version| is_version(version))
            .ok_or_else(|| {
                wrong_field(
                    "version",
                    "like 1.2.3: at most 64 letters, digits, . - and +, beginning with a digit",
                )
            })?;
        let kinds = names(object, "kinds", |name| {
            PluginKind::ALL.into_iter().find(|kind| kind.name() == name)
        })?
        .filter(|kinds| !kinds.is_empty())
        .ok_or_else(|| wrong_field("kinds", "a list of the kinds that it implements"))?;
        let needs = names(object, "needs", |name| name.parse().ok())?.unwrap_or_default();
        let devices = names(object, "devices", |name| match name {
            "cpu" => Some(false),
            "cuda" => Some(true),
            _ => None,
        })?;
        let events = names(object, "events", EventKind::from_name)?;
        let config = object.get("config").filter(|schema| !schema.is_null());
        if let Some(schema) = config {
            check_schema(schema)?;
        }
        Ok(Self {
            abi: (major, minor),
            min_host_minor,
            id: id.to_owned(),
            version: version.to_owned(),
            description: text("description").unwrap_or_default().to_owned(),
            kinds,
            needs,
            reads_cuda: devices.is_some_and(|cuda| cuda.contains(&true)),
            events,
            config: config.cloned(),
        })
    }
}

/// Returns the id of a manifest, even if other fields are invalid.
pub(crate) fn read_id(object: &Map<String, Value>) -> Option<&str> {
    let id = object.get("id").and_then(Value::as_str);
    id.filter(|id| is_plugin_id(id))
}

/// Whether the text is a valid plugin id: 1 to 64 lower-case letters, digits, `-` and `_`, beginning with a
/// letter.
pub fn is_plugin_id(text: &str) -> bool {
    text.len() <= 64
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_'))
}

/// Whether the text is a valid version. It is printed unchanged, so it must contain no control characters.
/// Versions are only compared for equality.
fn is_version(text: &str) -> bool {
    text.len() <= 64
        && text.starts_with(|c: char| c.is_ascii_digit())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+'))
}

/// Rejects a plugin that was built for another major version or needs a newer host.
pub(crate) fn check_abi(subject: &str, major: u32, min_host_minor: u32) -> Result<(), Refusal> {
    let (host_major, host_minor) = (abi::HOST_ABI_MAJOR, abi::HOST_ABI_MINOR);
    if major != host_major {
        return Err(Refusal::new(
            format!("{subject} uses ABI {major}, but this host supports ABI {host_major}"),
            format!("rebuild it against ABI {host_major}.x"),
        ));
    }
    if min_host_minor > host_minor {
        return Err(Refusal::new(
            format!(
                "{subject} needs ABI {major}.{min_host_minor}, but this host supports ABI {host_major}.{host_minor}"
            ),
            "use a newer host, or an older version of the plugin",
        ));
    }
    Ok(())
}

fn check_schema(schema: &Value) -> Result<(), Refusal> {
    if let Err(why) = schema::compile(schema) {
        let why = shortened(&why);
        return Err(wrong_field("config", &format!("a JSON Schema ({why})")));
    }
    let properties = schema.get("properties").and_then(Value::as_object);
    let taken = |key: &&str| properties.is_some_and(|properties| properties.contains_key(*key));
    let reserved = ["id", "path"].into_iter().chain(Policy::KEYS);
    match reserved.into_iter().find(taken) {
        None => Ok(()),
        Some(key) => Err(Refusal::new(
            format!("the plugin's manifest has a setting {key}, which is reserved for the host"),
            "its author must rename the setting",
        )),
    }
}

/// Reads a list of names. Each name must be known, and duplicates are not allowed. Returns `None` if the key
/// is absent.
fn names<T: PartialEq>(
    object: &Map<String, Value>,
    key: &str,
    known: impl Fn(&str) -> Option<T>,
) -> Result<Option<Vec<T>>, Refusal> {
    let Some(value) = object.get(key) else {
        return Ok(None);
    };
    let list = value
        .as_array()
        .ok_or_else(|| wrong_field(key, "a list of names"))?;
    let mut found = Vec::new();
    for name in list {
        let item = name.as_str().and_then(&known).ok_or_else(|| {
            Refusal::new(
                format!(
                    "unknown value {} in {key} of the plugin's manifest",
                    shortened(&name.to_string())
                ),
                "use a newer host, or an older version of the plugin",
            )
        })?;
        if found.contains(&item) {
            return Err(wrong_field(key, "without repetition"));
        }
        found.push(item);
    }
    Ok(Some(found))
}

fn as_u32(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|n| u32::try_from(n).ok())
}

/// Truncates a plugin's text so that it fits into a one-line error, and replaces control characters.
pub(crate) fn shortened(text: &str) -> String {
    const LONGEST: usize = 200;
    let end = text.char_indices().nth(LONGEST).map(|(at, _)| at);
    let shown = text[..end.unwrap_or(text.len())].chars();
    let mut line: String = shown
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if end.is_some() {
        line.push('…');
    }
    line
}

fn wrong_field(key: &str, expected: &str) -> Refusal {
    Refusal::new(
        format!("the plugin's manifest is invalid: {key} must be {expected}"),
        "its author must correct the manifest that is embedded at build time",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn manifest() -> Value {
        json!({
            "abi": [1, 0], "id": "perplexity", "version": "0.1.0", "description": "text",
            "kinds": ["metric"], "needs": ["loss_sum", "token_count"], "devices": ["cpu", "cuda"],
            "config": {"type": "object"}, "of_a_newer_host": true
        })
    }

    fn read(value: &Value) -> Result<PluginManifest, Refusal> {
        PluginManifest::from_object(value.as_object().expect("an object"))
    }

    fn with(key: &str, value: Value) -> Value {
        let mut manifest = manifest();
        manifest[key] = value;
        manifest
    }

    #[test]
    fn every_field_is_read() {
        assert_eq!(
            read(&manifest()).expect("a good manifest"),
            PluginManifest {
                abi: (1, 0),
                min_host_minor: 0,
                id: "perplexity".to_owned(),
                version: "0.1.0".to_owned(),
                description: "text".to_owned(),
                kinds: vec![PluginKind::Metric],
                needs: vec![Need::LossSum, Need::TokenCount],
                reads_cuda: true,
                events: None,
                config: Some(json!({"type": "object"})),
            }
        );
        let observer = read(&with("events", json!(["metrics", "request"]))).expect("events");
        let seen = [EventKind::Metrics, EventKind::Request];
        assert_eq!(observer.events.as_deref(), Some(&seen[..]));
        let newer_minor = read(&with("abi", json!([1, 7]))).expect("a newer minor version");
        assert_eq!(newer_minor.abi, (1, 7));
    }

    #[test]
    fn an_invalid_field_is_named() {
        let wrong = |rest: &str| format!("the plugin's manifest is invalid: {rest}");
        let id = "id must be 1 to 64 lower-case letters, digits, - and _, beginning with a letter";
        let version = "version must be like 1.2.3: at most 64 letters, digits, . - and +, beginning with a digit";
        for (key, value, reason) in [
            ("id", json!("../x"), wrong(id)),
            ("id", json!(""), wrong(id)),
            ("id", json!(7), wrong(id)),
            ("abi", json!("1.0"), wrong("abi must be [MAJOR, MINOR]")),
            ("abi", json!([1]), wrong("abi must be [MAJOR, MINOR]")),
            (
                "abi",
                json!([2, 0]),
                "plugin perplexity uses ABI 2, but this host supports ABI 1".to_owned(),
            ),
            (
                "min_host_minor",
                json!(3),
                format!(
                    "plugin perplexity needs ABI 1.3, but this host supports ABI 1.{}",
                    abi::HOST_ABI_MINOR
                ),
            ),
            ("version", json!(""), wrong(version)),
            ("version", json!("latest"), wrong(version)),
            ("version", json!("1.0\u{1b}[2J"), wrong(version)),
            ("version", json!(1.0), wrong(version)),
            (
                "kinds",
                json!([]),
                wrong("kinds must be a list of the kinds that it implements"),
            ),
            (
                "kinds",
                json!(["metric", "metric"]),
                wrong("kinds must be without repetition"),
            ),
            (
                "kinds",
                json!(["optimizer"]),
                "unknown value \"optimizer\" in kinds of the plugin's manifest".to_owned(),
            ),
            (
                "needs",
                json!("nll"),
                wrong("needs must be a list of names"),
            ),
            (
                "needs",
                json!(["tears"]),
                "unknown value \"tears\" in needs of the plugin's manifest".to_owned(),
            ),
            (
                "events",
                json!(["eclipse"]),
                "unknown value \"eclipse\" in events of the plugin's manifest".to_owned(),
            ),
            (
                "config",
                json!({"properties": {"mode": {}}}),
                "the plugin's manifest has a setting mode, which is reserved for the host"
                    .to_owned(),
            ),
        ] {
            let refusal = read(&with(key, value)).expect_err(&reason);
            assert_eq!(refusal.reason, reason);
            assert!(!refusal.hint.is_empty());
        }
        let schema = read(&with("config", json!({"type": "objekt"}))).expect_err("not a schema");
        assert!(
            schema
                .reason
                .starts_with("the plugin's manifest is invalid: config must be a JSON Schema ("),
            "{}",
            schema.reason
        );
        let remote = read(&with("config", json!({"$ref": "http://127.0.0.1:9/x"})));
        assert!(remote.is_err(), "nothing is fetched");
    }
}
