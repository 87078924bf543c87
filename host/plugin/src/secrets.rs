use std::collections::BTreeSet;
use std::ffi::{CStr, OsString};
use std::ops::Range;
use std::os::unix::ffi::OsStringExt as _;

use serde_json::{Map, Value};

use crate::{PluginConfig, PluginManifest};

/// The environment variables of a run that contain secrets. A plugin's child process gets only the secrets
/// that the plugin reads. The host process keeps its environment unchanged.
///
/// The settings of a plugin declare which variables the plugin reads. If the name of a setting ends in
/// `_env`, the setting contains the name of a variable, or a list of names. Such a setting can be at any
/// depth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secrets {
    /// The variables that the user's settings name, and the Hub's variables.
    named: BTreeSet<String>,
    /// The variables that the defaults of plugins name. A plugin gets a variable that its own defaults name,
    /// unless the user's settings name the variable for another plugin.
    by_default: BTreeSet<String>,
    /// The variables that contain a token of the gRPC service. No plugin gets them.
    tokens: BTreeSet<String>,
}

/// The environment variables that the Hub's own tools read.
const HUB: [&str; 2] = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"];

impl Default for Secrets {
    /// Returns only the Hub's variables.
    fn default() -> Self {
        Self {
            named: HUB.map(str::to_owned).into(),
            by_default: BTreeSet::new(),
            tokens: BTreeSet::new(),
        }
    }
}

impl Secrets {
    /// Adds the variables that a plugin reads. Without a manifest the plugin's defaults are unknown, so only
    /// the variables in the user's settings are added.
    pub fn add(&mut self, manifest: Option<&PluginManifest>, given: &PluginConfig) {
        self.named.extend(named(given));
        let with_defaults = manifest.and_then(|manifest| given.resolve(manifest).ok());
        let all = with_defaults.map(PluginConfig::Values);
        self.by_default.extend(all.iter().flat_map(named));
    }

    /// Adds variables that contain a token of the gRPC service. No plugin gets them.
    #[must_use]
    pub fn with_tokens(mut self, names: impl IntoIterator<Item = String>) -> Self {
        self.tokens.extend(names);
        self
    }

    fn all(&self) -> impl Iterator<Item = &String> {
        let all = [&self.named, &self.by_default, &self.tokens];
        all.into_iter().flatten()
    }

    /// Returns the variables that are hidden from a plugin with these settings.
    pub fn hidden_from(
        &self,
        manifest: &PluginManifest,
        given: &PluginConfig,
    ) -> impl Iterator<Item = String> + use<> {
        let config = given.resolve(manifest).unwrap_or_default();
        self.shares(manifest, given, &config).hidden.into_iter()
    }

    /// Returns the variables that a plugin gets, and those that are hidden from it. If a plugin has settings
    /// for secrets but none of them has a value, the plugin gets the Hub's variables.
    pub(crate) fn shares(
        &self,
        manifest: &PluginManifest,
        given: &PluginConfig,
        config: &Map<String, Value>,
    ) -> Shares {
        let given: BTreeSet<String> = named(given).into_iter().collect();
        let mut own: BTreeSet<String> = named(&PluginConfig::Values(config.clone()))
            .into_iter()
            .collect();
        if own.is_empty() && takes_secret(manifest) {
            own.extend(HUB.map(str::to_owned));
        }
        own.retain(|name| {
            let is_anothers = self.named.contains(name) && !HUB.contains(&name.as_str());
            !self.tokens.contains(name) && (given.contains(name) || !is_anothers)
        });
        let hidden = self.all().filter(|name| !own.contains(*name)).cloned();
        Shares {
            hidden: hidden.collect(),
            own,
        }
    }

    /// Moves the variables' values out of the memory that the kernel shows as `/proc/PID/environ`. Every
    /// process of the same user, such as a plugin's child process, can read that file. The variables remain
    /// set.
    ///
    /// Call this before training. During the call, other threads must read the environment only through
    /// `std::env`.
    pub fn conceal(&self) {
        for name in self.all() {
            conceal(name);
        }
    }
}

/// Which of the secret variables one plugin gets, and which are hidden from it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shares {
    /// The variables that the plugin reads.
    pub(crate) own: BTreeSet<String>,
    /// The variables that are hidden from the plugin.
    pub(crate) hidden: BTreeSet<String>,
}

fn conceal(name: &str) {
    let Some(value) = std::env::var_os(name) else {
        return;
    };
    let Some(block) = initial_environment() else {
        return;
    };
    put(name, &value);
    let mut at = block.start;
    while at < block.end {
        // SAFETY: the block is memory of this process, consists of zero-terminated strings, and exists as
        // long as the process. Nothing references an entry of this name any more.
        let entry = unsafe { CStr::from_ptr(at as *const libc::c_char) };
        let text = entry.to_bytes();
        let value = text
            .strip_prefix(name.as_bytes())
            .and_then(|rest| rest.strip_prefix(b"="))
            .map_or(0, <[u8]>::len);
        let length = text.len();
        // SAFETY: the value is in the block, which is writable, and nothing references it any more.
        unsafe { std::ptr::write_bytes((at + length - value) as *mut u8, 0, value) };
        at += length + 1;
    }
}

/// Sets a variable in newly allocated memory, so that nothing references its old value.
fn put(name: &str, value: &std::ffi::OsStr) {
    // SAFETY: `Secrets::conceal` requires that other threads read the environment only through `std::env`,
    // which uses a lock.
    unsafe {
        std::env::remove_var(name);
        std::env::set_var(name, value);
    }
}

/// Returns the address range where the kernel put the environment when this process started.
fn initial_environment() -> Option<Range<usize>> {
    // The index of `env_start` among the fields after the program's name. The next field is `env_end`.
    const ENV_START: usize = 50 - 3;
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(ENV_START);
    let start = fields.next()?.trim().parse().ok()?;
    let end = fields.next()?.trim().parse().ok()?;
    (start > 0 && start < end).then_some(start..end)
}

/// A secret variable with its value. It is sent to the child process that may read it.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Secret {
    name: String,
    value: Vec<u8>,
}

impl Secret {
    /// Reads the variables. Leaves out variables that are not set.
    pub(crate) fn read(names: &BTreeSet<String>) -> Vec<Self> {
        let read = |name: &String| {
            let value = std::env::var_os(name)?.into_vec();
            Some(Self {
                name: name.clone(),
                value,
            })
        };
        names.iter().filter_map(read).collect()
    }

    /// Sets the variable in this process without showing it in `/proc`. As for [`Secrets::conceal`], other
    /// threads must read the environment only through `std::env` during the call.
    pub(crate) fn set(self) {
        put(&self.name, &OsString::from_vec(self.value));
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}=***", self.name)
    }
}

fn names_variable(setting: &str) -> bool {
    setting.ends_with("_env")
}

/// Returns the names of the variables in the settings.
fn named(config: &PluginConfig) -> Vec<String> {
    let mut found = Vec::new();
    match config {
        PluginConfig::Text(pairs) => {
            let settings = pairs.iter().filter(|(setting, _)| names_variable(setting));
            // A list is written as `[A,B]`.
            let words = settings.flat_map(|(_, value)| value.split(['[', ']', ',']));
            found.extend(words.map(|word| word.trim().to_owned()));
        }
        PluginConfig::Values(values) => collect(values, &mut found),
    }
    found.retain(|name| !name.is_empty() && !name.contains(['=', '\0']));
    found
}

fn collect(values: &Map<String, Value>, found: &mut Vec<String>) {
    for (setting, value) in values {
        let items = match value {
            Value::Array(items) => items.as_slice(),
            value => std::slice::from_ref(value),
        };
        for item in items {
            match item {
                Value::String(name) if names_variable(setting) => found.push(name.clone()),
                Value::Object(table) => collect(table, found),
                _ => {}
            }
        }
    }
}

fn takes_secret(manifest: &PluginManifest) -> bool {
    fn has_one(schema: &Value) -> bool {
        match schema {
            Value::Object(members) => {
                let properties = members.get("properties").and_then(Value::as_object);
                let mut names = properties.into_iter().flatten().map(|(name, _)| name);
                names.any(|name| names_variable(name)) || members.values().any(has_one)
            }
            Value::Array(items) => items.iter().any(has_one),
            _ => false,
        }
    }
    manifest.config.as_ref().is_some_and(has_one)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PluginSpec;
    use serde_json::json;

    fn manifest(settings: Value) -> PluginManifest {
        let text = json!({
            "abi": [1, 0], "id": "p", "version": "1", "kinds": ["checkpoint_sink"],
            "config": {"type": "object", "properties": settings},
        });
        let object = text.as_object().expect("an object");
        PluginManifest::from_object(object).expect("a manifest")
    }

    fn values(config: Value) -> PluginConfig {
        PluginConfig::Values(config.as_object().expect("settings").clone())
    }

    /// Returns the variables that are hidden from a plugin with these settings.
    fn hidden(secrets: &Secrets, manifest: &PluginManifest, config: Value) -> String {
        let given = values(config);
        let resolved = given.resolve(manifest).expect("settings");
        let shares = secrets.shares(manifest, &given, &resolved);
        shares.hidden.into_iter().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_plugin_sees_only_its_own_secrets() {
        let mut secrets = Secrets::default();
        for text in ["a:token_env=MINE", "b:dir=x", "c:token_env=THEIRS"] {
            let spec: PluginSpec = text.parse().expect("a spec");
            secrets.add(None, &spec.config);
        }
        let takes = manifest(json!({"token_env": {"type": "string"}}));
        let takes_none = manifest(json!({"dir": {"type": "string"}}));
        assert_eq!(
            hidden(&secrets, &takes, json!({"token_env": "MINE"})),
            "HF_TOKEN HUGGING_FACE_HUB_TOKEN THEIRS"
        );
        assert_eq!(hidden(&secrets, &takes, json!({})), "MINE THEIRS");
        assert_eq!(
            hidden(&secrets, &takes_none, json!({"dir": "x"})),
            "HF_TOKEN HUGGING_FACE_HUB_TOKEN MINE THEIRS"
        );
    }

    #[test]
    fn settings_name_secrets_at_any_depth_and_in_lists() {
        let config = json!({
            "auth": {"password_env": "A", "other": "no"},
            "remotes": [{"token_env": "B"}, {"token_env": 3}],
            "keys_env": ["C", "D", ""],
        });
        assert_eq!(named(&values(config)), ["A", "B", "C", "D"]);
        let text: PluginSpec = "x:keys_env=[A, B],token_env=C,y=D".parse().expect("a spec");
        assert_eq!(named(&text.config), ["A", "B", "C"]);
        let auth = json!({"type": "object", "properties": {"token_env": {"type": "string"}}});
        assert!(takes_secret(&manifest(json!({"auth": auth}))));
        assert!(!takes_secret(&manifest(json!({"environment": {}}))));
    }

    #[test]
    fn a_default_can_name_only_a_secret_of_its_own_plugin() {
        let with_default =
            |name: &str| manifest(json!({"token_env": {"type": "string", "default": name}}));
        let mut secrets = Secrets::default().with_tokens(["READ".to_owned()]);
        secrets.add(None, &values(json!({"token_env": "THEIRS"})));
        let own = with_default("OWN");
        secrets.add(Some(&own), &values(json!({})));
        // The plugin gets its own secret, but not another plugin's.
        let hub = "HF_TOKEN HUGGING_FACE_HUB_TOKEN";
        assert_eq!(
            hidden(&secrets, &own, json!({})),
            format!("{hub} READ THEIRS")
        );
        let other = manifest(json!({"dir": {"type": "string"}}));
        assert_eq!(
            hidden(&secrets, &other, json!({})),
            format!("{hub} OWN READ THEIRS")
        );
        for greedy in ["THEIRS", "READ"] {
            let greedy = with_default(greedy);
            assert!(hidden(&secrets, &greedy, json!({})).ends_with("READ THEIRS"));
        }
        // Even the user's settings cannot grant a token of the service.
        let told = json!({"token_env": "READ"});
        assert!(hidden(&secrets, &own, told).contains("READ"));
    }
}
