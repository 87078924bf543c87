//! Merges the arguments of a training run: those from a TOML file, those from the flags, and the defaults. Of
//! each value, only the type is checked.

use std::path::{Path, PathBuf};

use host_core::{Error, ErrorKind, Result, nearest};
use host_train::{Limits, TrainConfig};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::config::HubModel;
use crate::config::PreflightPolicy;
use crate::config::ResumePolicy;
use crate::config::TrainArgs;
use crate::config::script_names;

/// The arguments of the host. `TrainConfig` contains the arguments of the training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct HostConfig {
    /// Folder that contains the run folders.
    pub(crate) runs_dir: PathBuf,
    /// The run's name. None: derived from the model and the time.
    pub(crate) name: Option<String>,
    /// Address of the gRPC service.
    pub(crate) listen: String,
    /// What happens if a sink is not ready at the start.
    pub(crate) preflight: PreflightPolicy,
    /// Seconds between measurements of the machine; 0: never.
    pub(crate) system_metrics_secs: u64,
    /// Environment variable with the token for reading. None: reading needs no token, which is allowed only
    /// on loopback.
    pub(crate) read_token_env: Option<String>,
    /// Environment variable with the token for control. None: the run generates a token.
    pub(crate) control_token_env: Option<String>,
    /// `self-signed`: TLS with a certificate generated for the run.
    pub(crate) tls: Option<String>,
    /// PEM file of the TLS certificate.
    pub(crate) tls_cert: Option<PathBuf>,
    /// PEM file of the certificate's private key.
    pub(crate) tls_key: Option<PathBuf>,
    /// What `host run` does if the run's folder exists.
    pub(crate) resume: ResumePolicy,
    /// Seconds after which a rank that gives no sign of life is declared dead.
    pub(crate) rank_timeout_secs: u64,
    /// Seconds that ranks wait for each other at the start.
    pub(crate) rank_start_secs: u64,
    /// A new run continues from the exact state of this checkpoint. The value is the checkpoint's folder, or
    /// `hub:REPO@REVISION`. None: the run starts at step 0.
    pub(crate) resume_from_checkpoint: Option<String>,
    /// Plugins, each a SPEC or a table with `id` or `path` and settings.
    pub(crate) plugin: Vec<Value>,
    /// Lock file that the plugins must match. None: `plugins.lock` next to the TOML file, if it exists.
    pub(crate) plugin_lock: Option<PathBuf>,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            runs_dir: PathBuf::from("runs"),
            name: None,
            listen: "127.0.0.1:0".to_owned(),
            preflight: PreflightPolicy::default(),
            system_metrics_secs: 10,
            read_token_env: None,
            control_token_env: None,
            tls: None,
            tls_cert: None,
            tls_key: None,
            resume: ResumePolicy::default(),
            rank_timeout_secs: Limits::default().silence.as_secs(),
            rank_start_secs: Limits::default().start.as_secs(),
            resume_from_checkpoint: None,
            plugin: Vec::new(),
            plugin_lock: None,
        }
    }
}

/// The table of `run.toml` that records how a run was made. It is not part of the configuration.
pub(crate) const RECORD: &str = "record";

/// Where a setting came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Given {
    /// Not given: it has its default.
    Not,
    InFile,
    ByFlag,
}

/// The arguments, with checked types, and with defaults for missing arguments. Paths are absolute.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    /// Arguments of the training.
    pub(crate) train: TrainConfig,
    /// Arguments of the host. `plugin` contains only the plugins of the TOML file.
    pub(crate) host: HostConfig,
    /// Plugins given by flag.
    pub(crate) plugin_flags: Vec<String>,
    /// Where `model` came from.
    pub(crate) model_given: Given,
}

impl Settings {
    /// Reads the file, if any, and overrides its values with the flags. Resolves relative paths in the file
    /// against the file's folder, and relative paths in flags against the current folder.
    ///
    /// # Errors
    /// Returns an error if the file is unreadable or is not valid TOML, a key is unknown, or a value has the
    /// wrong type.
    pub(crate) fn read(file: Option<&Path>, flags: &TrainArgs) -> Result<Self> {
        let mut train = Table::new();
        let mut host = Table::new();
        let mut plugin_flags = Vec::new();
        let mut model_given = Given::Not;
        let mut sort = |table: Table| {
            for (key, value) in table {
                if known_keys(&TrainConfig::default()).contains(&key) {
                    train.insert(key, value);
                } else {
                    host.insert(key, value);
                }
            }
        };
        if let Some(path) = file {
            let table = file_table(path)?;
            if table.contains_key("model") {
                model_given = Given::InFile;
            }
            sort(table);
        }
        let mut flags = flag_table(flags)?;
        if flags.contains_key("model") {
            model_given = Given::ByFlag;
        }
        if let Some(Value::Array(plugins)) = flags.remove("plugin") {
            plugin_flags.extend(plugins.iter().filter_map(Value::as_str).map(str::to_owned));
        }
        sort(flags);
        Ok(Self {
            train: decode(train)?,
            host: decode(host)?,
            plugin_flags,
            model_given,
        })
    }
}

/// Returns every key with its default, or `null` for keys without a default.
pub(crate) fn defaults() -> serde_json::Map<String, serde_json::Value> {
    let mut all = defaults_of(&TrainConfig::default());
    all.extend(defaults_of(&HostConfig::default()));
    all
}

fn defaults_of(config: &impl Serialize) -> serde_json::Map<String, serde_json::Value> {
    match serde_json::to_value(config) {
        Ok(serde_json::Value::Object(map)) => map,
        other => unreachable!("a configuration is an object: {other:?}"),
    }
}

fn known_keys(config: &impl Serialize) -> Vec<String> {
    defaults_of(config).keys().cloned().collect()
}

/// Reads the file. Renames its keys to the host's, checks the types of values and makes paths absolute.
fn file_table(path: &Path) -> Result<Table> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        let error = Error::new(
            ErrorKind::Config,
            format!("cannot read the configuration: {e}: {}", path.display()),
        );
        error.hint("pass the path of a TOML file, or pass every argument as a flag")
    })?;
    let table: Table = text.parse().map_err(|e: toml::de::Error| {
        let line = e
            .span()
            .map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        let message = e.message().replace('\n', ", ");
        Error::new(
            ErrorKind::Config,
            format!("not TOML: {message}: {}:{line}", path.display()),
        )
        .hint("write each line as `key = value`, with text in double quotes")
    })?;
    let place = path.display().to_string();
    let folder = std::path::absolute(path)
        .map_err(|e| Error::io("find the folder of the configuration", path, &e))?;
    let folder = folder.parent().unwrap_or(Path::new("/"));

    let defaults = defaults();
    let mut ours = Table::new();
    for (key, value) in table {
        if key == RECORD {
            continue;
        }
        if let Some(refusal) = script_names::refusal(&key) {
            return Err(refusal);
        }
        let name = script_names::renamed(&key);
        let Some(default) = defaults.get(name) else {
            return Err(unknown(&key, defaults.keys(), &place));
        };
        let value = match value {
            // A list with one string can be written without brackets.
            Value::String(text) if default.is_array() => Value::Array(vec![text.into()]),
            value => value,
        };
        check_type(name, &value, default, &place)?;
        let value = resolved(name, value, folder);
        if ours.insert(name.to_owned(), value).is_some() {
            return Err(Error::new(
                ErrorKind::Config,
                format!("{name} is given twice, once as {key}: {place}"),
            )
            .hint("remove one of the two"));
        }
    }
    Ok(ours)
}

fn flag_table(flags: &TrainArgs) -> Result<Table> {
    let table = Table::try_from(flags).map_err(|e| {
        Error::new(ErrorKind::Config, format!("cannot use a flag's value: {e}"))
            .hint("use numbers up to 9223372036854775807, and paths in UTF-8")
    })?;
    let here = std::env::current_dir()
        .map_err(|e| Error::io("find the current folder", Path::new("."), &e))?;
    let absolute = |(key, value): (String, Value)| {
        let value = resolved(&key, value, &here);
        (key, value)
    };
    Ok(table.into_iter().map(absolute).collect())
}

/// Makes the paths in a setting absolute.
fn resolved(key: &str, value: Value, folder: &Path) -> Value {
    match (key, value) {
        ("data" | "valid_data", Value::Array(paths)) => Value::Array(
            paths
                .into_iter()
                .map(|path| absolute_path(path, folder))
                .collect(),
        ),
        ("tokenizer" | "runs_dir" | "plugin_lock" | "tls_cert" | "tls_key", path) => {
            absolute_path(path, folder)
        }
        ("model" | "resume_from_checkpoint", Value::String(name)) if HubModel::is_name(&name) => {
            Value::String(HubModel::resolved(&name, |path| absolute(path, folder)))
        }
        ("resume_from_checkpoint", path) => absolute_path(path, folder),
        // A bare word is a path only if it is not a preset and the file or folder exists.
        ("model", Value::String(model))
            if model.contains('/')
                || !host_train::is_preset(&model) && folder.join(&model).exists() =>
        {
            Value::String(absolute(model, folder))
        }
        ("plugin", Value::Array(mut plugins)) => {
            for plugin in plugins.iter_mut().filter_map(Value::as_table_mut) {
                if let Some(path) = plugin.remove("path") {
                    plugin.insert("path".to_owned(), absolute_path(path, folder));
                }
            }
            Value::Array(plugins)
        }
        (_, value) => value,
    }
}

/// Makes a path absolute, starting from `folder`. Values that are not strings are returned unchanged.
fn absolute_path(value: Value, folder: &Path) -> Value {
    match value {
        Value::String(path) => Value::String(absolute(path, folder)),
        other => other,
    }
}

fn absolute(text: String, folder: &Path) -> String {
    let path = folder.join(&text);
    // Removes `.` and double slashes. If that fails, the joined path is good enough.
    let path = std::path::absolute(&path).unwrap_or(path);
    path.to_str().map_or(text, str::to_owned)
}

fn decode<T: DeserializeOwned>(table: Table) -> Result<T> {
    // The values of the file were already checked. So an error here is either a bug, or it comes from a flag
    // whose value clap accepted.
    table
        .try_into()
        .map_err(|e: toml::de::Error| Error::new(ErrorKind::Config, e.message().to_owned()))
}

fn unknown<'a>(key: &str, keys: impl Iterator<Item = &'a String>, place: &str) -> Error {
    let error = Error::new(ErrorKind::Config, format!("unknown key {key}: {place}"));
    match nearest(key, keys.map(String::as_str)) {
        Some(known) => error.hint(format!("did you mean {known}?")),
        None => error
            .hint("`host run --help` lists every argument; a key is the flag's name without --, with _ instead of -"),
    }
}

/// Checks the type of one value. Decodes the value separately, so that the error can name its key.
fn check_type(key: &str, value: &Value, default: &serde_json::Value, place: &str) -> Result<()> {
    let alone = Table::from_iter([(key.to_owned(), value.clone())]);
    let outcome = if known_keys(&TrainConfig::default())
        .iter()
        .any(|known| known == key)
    {
        alone.try_into::<TrainConfig>().map(drop)
    } else {
        alone.try_into::<HostConfig>().map(drop)
    };
    let Err(error) = outcome else { return Ok(()) };
    let message = error.message();
    let expected = message
        .rsplit_once("expected ")
        .map_or(message, |(_, expected)| expected);
    let shown = value.to_string().replace('\n', " ");
    let error = Error::new(
        ErrorKind::Config,
        format!(
            "{key} is {shown}, but must be {}: {place}",
            in_words(expected)
        ),
    );
    Err(match default {
        serde_json::Value::Null => error.hint(format!("`host run --help` explains {key}")),
        default => error.hint(format!("for example: {key} = {default}")),
    })
}

/// Translates serde's name of a type for users.
fn in_words(expected: &str) -> String {
    let words = match expected.split(" in ").next().unwrap_or(expected).trim() {
        "i64" | "i32" => "a whole number",
        "u64" | "usize" | "u32" => "a whole number, 0 or above",
        "f64" => "a number",
        "a boolean" | "bool" => "true or false",
        "a sequence" => "a list",
        "a string" | "path string" => "text in double quotes",
        other => return other.replace('`', ""),
    };
    words.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use host_train::SchedulerType;

    fn read(toml: &str) -> Result<Settings> {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("c.toml");
        std::fs::write(&path, toml).expect("written");
        let mut settings = Settings::read(Some(&path), &TrainArgs::default())?;
        // In the TOML text, these paths were relative. Makes them relative again.
        for path in settings
            .train
            .data
            .iter_mut()
            .chain([&mut settings.host.runs_dir])
        {
            if let Ok(inside) = path.strip_prefix(dir.path()) {
                *path = inside.to_owned();
            }
        }
        Ok(settings)
    }

    fn refusal(toml: &str) -> (String, String) {
        let error = read(toml).expect_err("refused");
        let message = error
            .message()
            .rsplit_once(": ")
            .expect("a path")
            .0
            .to_owned();
        (message, error.hint_text().unwrap_or_default().to_owned())
    }

    #[test]
    fn without_arguments_all_settings_are_defaults() {
        let settings = Settings::read(None, &TrainArgs::default()).expect("settings");
        assert_eq!(settings.train, TrainConfig::default());
        assert_eq!(settings.host, HostConfig::default());
    }

    #[test]
    fn a_file_is_read_relative_to_itself_and_takes_the_scripts_names() {
        let settings = read(
            "model_ckpt = \"tiny\"\ndataset_name_train = \"src\"\nsave_dir = \"out\"\n\
             learning_rate = 1\nlr_scheduler_type = \"linear\"\n[record]\nanything = 1\n",
        )
        .expect("settings");
        assert_eq!(settings.train.model, "tiny");
        assert_eq!(settings.train.data, [PathBuf::from("src")]);
        assert_eq!(settings.host.runs_dir, PathBuf::from("out"));
        assert_eq!(settings.train.learning_rate, 1.0);
        assert_eq!(settings.train.lr_scheduler_type, SchedulerType::Linear);
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        assert_eq!(
            refusal("learning_rat = 1e-3"),
            (
                "unknown key learning_rat".to_owned(),
                "did you mean learning_rate?".to_owned()
            )
        );
        assert!(refusal("zzzzzzz = 1").1.contains("host run --help"));
        let error = read("tokenized = true").expect_err("refused");
        assert!(error.hint_text().expect("a hint").contains("data"));
    }

    #[test]
    fn a_wrong_type_names_the_key_and_what_is_expected() {
        let said = |toml| refusal(toml).0;
        assert_eq!(
            said("seed = \"abc\""),
            "seed is \"abc\", but must be a whole number"
        );
        assert_eq!(
            said("num_warmup_steps = -1"),
            "num_warmup_steps is -1, but must be a whole number, 0 or above"
        );
        assert_eq!(
            said("learning_rate = true"),
            "learning_rate is true, but must be a number"
        );
        assert_eq!(
            said("eval_on_start = 1"),
            "eval_on_start is 1, but must be true or false"
        );
        assert_eq!(said("data = 3"), "data is 3, but must be a list");
        assert_eq!(
            said("name = 3"),
            "name is 3, but must be text in double quotes"
        );
        assert_eq!(
            said("precision = \"f16\""),
            "precision is \"f16\", but must be one of f32, f64, bf16"
        );
        assert_eq!(refusal("seed = 1.5").1, "for example: seed = 1");
    }

    #[test]
    fn a_toml_error_names_its_line() {
        let error = read("seed = 1\nmodel = tiny\n").expect_err("refused");
        assert!(error.message().starts_with("not TOML: "), "{error}");
        assert!(error.message().ends_with("c.toml:2"), "{error}");
    }

    #[test]
    fn a_key_under_both_its_names_is_refused() {
        assert!(
            refusal("model = \"tiny\"\nmodel_ckpt = \"demo\"")
                .0
                .contains("given twice")
        );
    }

    #[test]
    fn trackers_show_the_settings_of_the_training_alone() {
        let mut hidden = host_serve::HOST_SETTINGS.to_vec();
        // `resume_from_checkpoint` is an argument of the host, but trackers show it as a setting of the
        // training.
        hidden.push("resume_from_checkpoint");
        hidden.sort_unstable();
        let mut ours = known_keys(&HostConfig::default());
        ours.sort_unstable();
        assert_eq!(hidden, ours);
    }
}
