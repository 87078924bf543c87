use std::collections::BTreeSet;
use std::ffi::{CStr, OsString};
use std::ops::Range;
use std::os::unix::ffi::OsStringExt as _;

use serde_json::{Map, Value};

use crate::{PluginConfig, PluginManifest};

/// The environment variables of a run that hold secrets. The child process of a plugin gets those alone
/// that the plugin reads; the host's own process has what its user gave it.
///
/// A plugin says which it reads by its settings: one whose name ends in `_env`, at any depth, has the name
/// of such a variable as its value, or a list of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secrets {
    /// What the user's settings name, and the Hub's.
    named: BTreeSet<String>,
    /// What the plugins' own defaults name. A plugin gets its own, but no default gives it the secret of
    /// another plugin.
    by_default: BTreeSet<String>,
    /// The service's tokens, which no plugin gets.
    tokens: BTreeSet<String>,
}

/// What the Hub's own tools read.
const HUB: [&str; 2] = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"];

impl Default for Secrets {
    /// The Hub's.
    fn default() -> Self {
        Self {
            named: HUB.map(str::to_owned).into(),
            by_default: BTreeSet::new(),
            tokens: BTreeSet::new(),
        }
    }
}

impl Secrets {
    /// Adds those that a plugin reads, as far as it is known: without a manifest, those that the user's
    /// settings name.
    pub fn add(&mut self, manifest: Option<&PluginManifest>, given: &PluginConfig) {
        self.named.extend(named(given));
        let with_defaults = manifest.and_then(|manifest| given.resolve(manifest).ok());
        let all = with_defaults.map(PluginConfig::Values);
        self.by_default.extend(all.iter().flat_map(named));
    }

    /// Adds variables that hold a token of the service, which no plugin gets.
    #[must_use]
    pub fn with_tokens(mut self, names: impl IntoIterator<Item = String>) -> Self {
        self.tokens.extend(names);
        self
    }

    fn all(&self) -> impl Iterator<Item = &String> {
        let all = [&self.named, &self.by_default, &self.tokens];
        all.into_iter().flatten()
    }

    /// The variables that are kept from a plugin with these settings.
    pub fn hidden_from(
        &self,
        manifest: &PluginManifest,
        given: &PluginConfig,
    ) -> impl Iterator<Item = String> + use<> {
        let config = given.resolve(manifest).unwrap_or_default();
        self.shares(manifest, given, &config).hidden.into_iter()
    }

    /// The variables that a plugin gets, and those that are kept from it. One that takes a secret and is
    /// not told which may read the Hub's.
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

    /// Moves their values out of the memory that the kernel shows as `/proc/PID/environ`, which every
    /// process of the same user can read, a plugin's child among them. The variables stay set.
    ///
    /// It is for a time before the training, at which no other thread reads the environment but through
    /// `std::env`.
    pub fn conceal(&self) {
        for name in self.all() {
            conceal(name);
        }
    }
}

/// How the variables with secrets are shared out to one plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shares {
    /// What the plugin reads.
    pub(crate) own: BTreeSet<String>,
    /// What it does not get.
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
        // SAFETY: the block is memory of this process, of strings that end in a zero, for as long as it
        // lives. Nothing points to an entry of this name any more.
        let entry = unsafe { CStr::from_ptr(at as *const libc::c_char) };
        let text = entry.to_bytes();
        let value = text
            .strip_prefix(name.as_bytes())
            .and_then(|rest| rest.strip_prefix(b"="))
            .map_or(0, <[u8]>::len);
        let length = text.len();
        // SAFETY: the value lies in the block, which is writable; nothing borrows it here any more.
        unsafe { std::ptr::write_bytes((at + length - value) as *mut u8, 0, value) };
        at += length + 1;
    }
}

/// Sets a variable in new memory, so that nothing points to where its value was.
fn put(name: &str, value: &std::ffi::OsStr) {
    // SAFETY: by `Secrets::conceal` no other thread reads the environment meanwhile but through `std::env`,
    // which takes turns.
    unsafe {
        std::env::remove_var(name);
        std::env::set_var(name, value);
    }
}

/// Where the kernel put the environment when this process began.
fn initial_environment() -> Option<Range<usize>> {
    // The numbers of `env_start` and `env_end`, from the one behind the program's name on.
    const ENV_START: usize = 50 - 3;
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(ENV_START);
    let start = fields.next()?.trim().parse().ok()?;
    let end = fields.next()?.trim().parse().ok()?;
    (start > 0 && start < end).then_some(start..end)
}

/// A variable with a secret on its way to the child that may read it.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Secret {
    name: String,
    value: Vec<u8>,
}

impl Secret {
    /// Those of these variables that are set.
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

    /// Sets the variable in this process, where `/proc` does not show it. As [`Secrets::conceal`], it is
    /// for a time at which no other thread reads the environment.
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

/// The variables that settings name.
fn named(config: &PluginConfig) -> Vec<String> {
    let mut found = Vec::new();
    match config {
        PluginConfig::Text(pairs) => {
            let settings = pairs.iter().filter(|(setting, _)| names_variable(setting));
            // A list is written `[A,B]`.
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

    /// What a plugin with these settings does not get.
    fn hidden(secrets: &Secrets, manifest: &PluginManifest, config: Value) -> String {
        let given = values(config);
        let resolved = given.resolve(manifest).expect("settings");
        let shares = secrets.shares(manifest, &given, &resolved);
        shares.hidden.into_iter().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_plugin_sees_its_own_secrets_alone() {
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
    fn a_default_names_a_secret_of_the_plugin_and_takes_no_other() {
        let with_default =
            |name: &str| manifest(json!({"token_env": {"type": "string", "default": name}}));
        let mut secrets = Secrets::default().with_tokens(["READ".to_owned()]);
        secrets.add(None, &values(json!({"token_env": "THEIRS"})));
        let own = with_default("OWN");
        secrets.add(Some(&own), &values(json!({})));
        // Its own, and no other plugin's.
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
        // Not even where its user says so: the service's tokens are the service's.
        let told = json!({"token_env": "READ"});
        assert!(hidden(&secrets, &own, told).contains("READ"));
    }
}
