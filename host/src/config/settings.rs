//! The arguments of a training before they mean anything: one table from a TOML file and the flags.

use std::path::{Path, PathBuf};

use host_core::{Error, ErrorKind, Result, nearest};
use host_train::TrainConfig;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::config::HubModel;
use crate::config::PreflightPolicy;
use crate::config::TrainArgs;
use crate::config::script_names;

/// What the host takes beside the training's own arguments.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct HostConfig {
    /// Folder that holds the runs' folders.
    pub(crate) runs_dir: PathBuf,
    /// The run's name. None: made from the model and the time.
    pub(crate) name: Option<String>,
    /// Where gRPC listens.
    pub(crate) listen: String,
    /// What comes of a sink that is not ready at the start.
    pub(crate) preflight: PreflightPolicy,
    /// Seconds between two looks at the machine; 0 never looks.
    pub(crate) system_metrics_secs: u64,
    /// The environment variable with the token that reading takes. None: reading is free on loopback.
    pub(crate) read_token_env: Option<String>,
    /// The environment variable with the token that control takes. None: the run makes one.
    pub(crate) control_token_env: Option<String>,
    /// `self-signed`: TLS with a certificate of its own.
    pub(crate) tls: Option<String>,
    /// The certificate of TLS, and its key.
    pub(crate) tls_cert: Option<PathBuf>,
    /// The certificate's key.
    pub(crate) tls_key: Option<PathBuf>,
    /// A new run begins at this checkpoint, exactly: its folder, or `hub:REPO@REVISION`. None: it begins at
    /// step 0.
    pub(crate) resume_from_checkpoint: Option<String>,
    /// Plugins, each a SPEC or a table with `id` or `path` and configuration.
    pub(crate) plugin: Vec<Value>,
    /// The lock that plugins are held to. None: the one beside the configuration, if any.
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
            resume_from_checkpoint: None,
            plugin: Vec::new(),
            plugin_lock: None,
        }
    }
}

/// A table of `run.toml` that says what came of a configuration, which is not part of it.
pub(crate) const RECORD: &str = "record";

/// How a setting was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Given {
    /// It has its default.
    Not,
    InFile,
    ByFlag,
}

/// The arguments, each of the right type, with defaults where nothing was said. Paths are absolute.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    /// The training's.
    pub(crate) train: TrainConfig,
    /// The host's. `plugin` has the TOML file's only.
    pub(crate) host: HostConfig,
    /// Plugins given by flag.
    pub(crate) plugin_flags: Vec<String>,
    /// How `model` was given.
    pub(crate) model_given: Given,
}

impl Settings {
    /// Reads the file, if any, and lays the flags over it. A relative path in the file is relative to
    /// the file's folder, one in a flag to the current folder.
    ///
    /// # Errors
    /// An unknown key, a value of the wrong type, a file that is not TOML.
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

/// Every key with its default: `null` where there is none.
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

/// The file's table under our names, every value of the right type, paths absolute.
fn file_table(path: &Path) -> Result<Table> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        let error = Error::new(
            ErrorKind::Config,
            format!("cannot read the configuration: {e}: {}", path.display()),
        );
        error.hint("give the path of a TOML file, or every argument by flag")
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
        .hint("a line of it is `key = value`, with text in double quotes")
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
            // A list of one may be written without brackets.
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
            .hint("numbers go up to 9223372036854775807, and paths must be UTF-8")
    })?;
    let here = std::env::current_dir()
        .map_err(|e| Error::io("find the current folder", Path::new("."), &e))?;
    let absolute = |(key, value): (String, Value)| {
        let value = resolved(&key, value, &here);
        (key, value)
    };
    Ok(table.into_iter().map(absolute).collect())
}

/// Makes the paths among a setting's values absolute.
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
        // A bare word is a preset, unless it is a folder or a file here.
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

/// A path from `folder`; what is not text is left as it is.
fn absolute_path(value: Value, folder: &Path) -> Value {
    match value {
        Value::String(path) => Value::String(absolute(path, folder)),
        other => other,
    }
}

fn absolute(text: String, folder: &Path) -> String {
    let path = folder.join(&text);
    // Takes `.` and doubled slashes out; where that fails the joined path does as well.
    let path = std::path::absolute(&path).unwrap_or(path);
    path.to_str().map_or(text, str::to_owned)
}

fn decode<T: DeserializeOwned>(table: Table) -> Result<T> {
    // Every value was checked alone, so what is left is a mistake of ours or an odd flag.
    table
        .try_into()
        .map_err(|e: toml::de::Error| Error::new(ErrorKind::Config, e.message().to_owned()))
}

fn unknown<'a>(key: &str, keys: impl Iterator<Item = &'a String>, place: &str) -> Error {
    let error = Error::new(ErrorKind::Config, format!("unknown key {key}: {place}"));
    match nearest(key, keys.map(String::as_str)) {
        Some(known) => error.hint(format!("did you mean {known}?")),
        None => {
            error.hint("`host run --help` lists every argument; a key is its flag with _ for -")
        }
    }
}

/// Decodes one value alone, so that the error can name its key.
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

/// serde's name for a type, as people say it.
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
        // What was relative to the file, without the file's folder.
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
    fn nothing_said_is_all_defaults() {
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
    fn what_is_not_toml_is_named_with_its_line() {
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
        // What a run begins from is what it trains.
        hidden.push("resume_from_checkpoint");
        hidden.sort_unstable();
        let mut ours = known_keys(&HostConfig::default());
        ours.sort_unstable();
        assert_eq!(hidden, ours);
    }
}
