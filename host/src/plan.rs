//! The plan of a training run. Its arguments are checked only here. The code that uses them does not check
//! them again.

pub(crate) mod run_file;

use std::path::{Path, PathBuf};
use std::time::Duration;

use host_core::{Error, ErrorKind, Result, RunName};
use host_plugin::{PluginLock, PluginSpec, SearchPath, Secrets, Target};
use host_train::{Limits, SchedulerType, TrainConfig};
use toml::Value;

use crate::config::HubModel;
use crate::config::PreflightPolicy;
use crate::config::ResumePolicy;
use crate::config::TrainArgs;
use crate::config::settings::{Given, HostConfig, Settings};
use crate::service::Service;

/// The arguments of a training run, checked.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Arguments of the training; paths are absolute.
    pub(crate) train: TrainConfig,
    /// Folder that contains the run folders; absolute.
    pub(crate) runs_dir: PathBuf,
    /// The run's name. None: derived from the model and the time.
    pub(crate) name: Option<RunName>,
    /// What happens if a sink is not ready at the start.
    pub(crate) preflight: PreflightPolicy,
    /// Time between measurements of the machine. None: no measurements.
    pub(crate) system_metrics: Option<Duration>,
    /// How the run is served.
    pub(crate) service: Service,
    /// How `train.model` was given: by flag, in the file, or not at all.
    pub(crate) model_given: Given,
    /// The checkpoint that a new run starts from: a folder, or `hub:REPO@REVISION`.
    pub(crate) resume_from_checkpoint: Option<String>,
    /// Whether to resume the run if its folder exists.
    pub(crate) resume_auto: bool,
    /// Number of processes that train together.
    pub(crate) ranks: usize,
    /// Time limits of a training with several ranks.
    pub(crate) rank_limits: Limits,
    /// The plugins in the user's order.
    pub(crate) plugins: Vec<PluginSpec>,
    /// The lock that each plugin must match, if there is one.
    pub(crate) plugin_lock: Option<PluginLock>,
    /// Environment variables that contain the service's tokens. They are hidden from the plugins' child
    /// processes.
    pub(crate) secrets: Secrets,
}

impl Plan {
    /// Reads the plan from the flags and, if there is one, a TOML file. The flags override the file.
    ///
    /// # Errors
    /// Returns an error for the first invalid argument.
    pub(crate) fn read(file: Option<&Path>, flags: &TrainArgs) -> Result<Self> {
        let Settings {
            train,
            host,
            plugin_flags,
            model_given,
        } = Settings::read(file, flags)?;
        check(&train)?;
        let service = Service::new(&host)?;
        Ok(Self {
            train,
            name: host.name.as_deref().map(str::parse).transpose()?,
            preflight: host.preflight,
            system_metrics: match host.system_metrics_secs {
                0 => None,
                secs => Some(Duration::from_secs(secs)),
            },
            service,
            model_given,
            secrets: secrets(&host),
            resume_from_checkpoint: host.resume_from_checkpoint.clone(),
            resume_auto: host.resume == ResumePolicy::Auto,
            ranks: 1,
            rank_limits: rank_limits(&host)?,
            plugins: plugin_specs(&host, &plugin_flags)?,
            plugin_lock: lock_path(&host, file)?
                .map(|path| PluginLock::read(&path))
                .transpose()?,
            runs_dir: std::path::absolute(&host.runs_dir)
                .map_err(|e| Error::io("find the runs' folder", &host.runs_dir, &e))?,
        })
    }

    /// Returns the search path of the plugins. If there is a lock, the search path includes it.
    pub(crate) fn search_path(&self) -> SearchPath {
        match &self.plugin_lock {
            Some(lock) => SearchPath::from_env().with_lock(lock.clone()),
            None => SearchPath::from_env(),
        }
    }
}

/// Returns the plugins of a training run, and the path of the run's lock file. The lock file need not exist.
///
/// # Errors
/// Returns an error if the TOML file or a plugin's SPEC is invalid.
pub(crate) fn plugins_and_lock(
    file: Option<&Path>,
    flags: &TrainArgs,
) -> Result<(Vec<PluginSpec>, PathBuf)> {
    let Settings {
        train,
        host,
        plugin_flags,
        ..
    } = Settings::read(file, flags)?;
    let lock = match host.plugin_lock {
        Some(ref path) => path.clone(),
        None => lock_beside(file)?,
    };
    let mut specs = plugin_specs(&host, &plugin_flags)?;
    let origins = [Some(&train.model), host.resume_from_checkpoint.as_ref()];
    specs.extend(
        origins
            .into_iter()
            .flatten()
            .find_map(|name| HubModel::plugin(name)),
    );
    Ok((specs, lock))
}

fn rank_limits(host: &HostConfig) -> Result<Limits> {
    // A rank gives a sign of life every half second, so a shorter limit would declare living ranks dead.
    at_least("rank_timeout_secs", host.rank_timeout_secs, 5)?;
    at_least("rank_start_secs", host.rank_start_secs, 1)?;
    Ok(Limits {
        start: Duration::from_secs(host.rank_start_secs),
        silence: Duration::from_secs(host.rank_timeout_secs),
    })
}

fn secrets(host: &HostConfig) -> Secrets {
    Secrets::default().with_tokens(Service::token_variables(host))
}

/// Reads the plugins of a `run.toml`, their search path and the environment variables that are hidden from
/// them. Other files of the training, such as its data, need not exist.
///
/// # Errors
/// Returns an error if the file, a plugin's SPEC or the lock is invalid.
pub(crate) fn plugins_of_run(file: &Path) -> Result<(Vec<PluginSpec>, SearchPath, Secrets)> {
    let Settings { host, .. } = Settings::read(Some(file), &TrainArgs::default())?;
    let search = match lock_path(&host, Some(file))? {
        Some(lock) => SearchPath::from_env().with_lock(PluginLock::read(&lock)?),
        None => SearchPath::from_env(),
    };
    Ok((plugin_specs(&host, &[])?, search, secrets(&host)))
}

/// Returns the path of the lock file of a training run, if there is one. A lock file next to the TOML file is
/// included even if it is unreadable. It then causes an error instead of being ignored.
fn lock_path(host: &HostConfig, file: Option<&Path>) -> Result<Option<PathBuf>> {
    if host.plugin_lock.is_some() || file.is_none() {
        return Ok(host.plugin_lock.clone());
    }
    let beside = lock_beside(file)?;
    Ok(beside.symlink_metadata().is_ok().then_some(beside))
}

fn lock_beside(file: Option<&Path>) -> Result<PathBuf> {
    let beside = file.map_or_else(
        || PathBuf::from(PluginLock::FILE_NAME),
        |file| file.with_file_name(PluginLock::FILE_NAME),
    );
    std::path::absolute(&beside).map_err(|e| Error::io("find the plugin lock", &beside, &e))
}

/// Merges the plugins of the file and the flags. A flag replaces the file's plugin with the same id.
fn plugin_specs(host: &HostConfig, flags: &[String]) -> Result<Vec<PluginSpec>> {
    let mut specs = host
        .plugin
        .iter()
        .map(|plugin| match plugin {
            Value::String(spec) => spec.parse(),
            Value::Table(table) => {
                let settings = table
                    .iter()
                    .map(|(key, value)| Ok((key.clone(), as_json(key, value)?)));
                PluginSpec::from_table(settings.collect::<Result<_>>()?)
            }
            other => Err(Error::new(
                ErrorKind::Config,
                format!("plugin is {other}, but must be a table"),
            )
            .hint("write [[plugin]] and, on the next line, id = \"weight-decay\"")),
        })
        .collect::<Result<Vec<PluginSpec>>>()?;
    let flags = flags
        .iter()
        .map(|spec| spec.parse())
        .collect::<Result<Vec<PluginSpec>>>()?;
    specs.retain(|spec| {
        let replaced = |flag: &PluginSpec| flag.target == spec.target;
        matches!(spec.target, Target::Path(_)) || !flags.iter().any(replaced)
    });
    specs.extend(flags);
    Ok(specs)
}

/// Converts a setting to JSON, the form in which plugins receive it. JSON has no dates, so they become
/// strings; infinities and NaN are errors.
fn as_json(key: &str, value: &Value) -> Result<serde_json::Value> {
    Ok(match value {
        Value::String(text) => text.as_str().into(),
        Value::Integer(number) => (*number).into(),
        Value::Float(number) if number.is_finite() => (*number).into(),
        Value::Float(_) => {
            let message = format!("{key} of a [[plugin]] is {value}, not a finite number");
            return Err(Error::new(ErrorKind::Config, message).hint("use a finite number"));
        }
        Value::Boolean(flag) => (*flag).into(),
        Value::Datetime(date) => date.to_string().into(),
        Value::Array(items) => items
            .iter()
            .map(|item| as_json(key, item))
            .collect::<Result<_>>()?,
        Value::Table(table) => table
            .iter()
            .map(|(inner, value)| Ok((inner.clone(), as_json(inner, value)?)))
            .collect::<Result<_>>()?,
    })
}

fn check(config: &TrainConfig) -> Result<()> {
    if config.data.is_empty() {
        return Err(Error::new(ErrorKind::Config, "no training data is given")
            .hint("name a folder of source code: --data src"));
    }
    check_weights(config)?;
    if let Some(workers) = config.data_workers {
        at_least("data_workers", workers as u64, 1)?;
    }
    if let Some(size) = config.bucket_cap_mb {
        at_least("bucket_cap_mb", u64::from(size), 1)?;
    }
    at_least("train_batch_size", config.train_batch_size, 1)?;
    at_least("valid_batch_size", config.valid_batch_size, 1)?;
    at_least("seq_length", config.seq_length, 2)?;
    at_least("max_eval_steps", config.max_eval_steps, -1)?;
    at_least(
        "gradient_accumulation_steps",
        config.gradient_accumulation_steps,
        1,
    )?;
    at_least("max_train_steps", config.max_train_steps, 1)?;
    at_least("shuffle_buffer", config.shuffle_buffer as u64, 1)?;
    if config.valid_data.is_empty() {
        // With 1, all data would be held out, and none would be left to train on.
        at_least("valid_every", config.valid_every, 2)?;
    }
    if let Some(vocab_size) = config.vocab_size {
        // One token for each of the 256 values of a byte, and the end-of-text token.
        at_least("vocab_size", vocab_size, 257)?;
    }
    if let Some(threads) = config.threads {
        at_least("threads", threads as u64, 1)?;
    }
    finite("learning_rate", config.learning_rate, "above 0", |rate| {
        rate > 0.0
    })?;
    finite("weight_decay", config.weight_decay, "0 or above", |rate| {
        rate >= 0.0
    })?;
    finite(
        "max_grad_norm",
        config.max_grad_norm,
        "0 or above",
        |norm| norm >= 0.0,
    )?;
    check_decay(config)?;
    if config.device.is_empty() || config.model.is_empty() {
        let key = if config.model.is_empty() {
            "model"
        } else {
            "device"
        };
        return Err(out_of_range(key, "empty", "a name"));
    }
    Ok(())
}

/// Rejects a warm-up that overlaps with the decay, because the learning rate would not end at 0.
fn check_decay(config: &TrainConfig) -> Result<()> {
    let (warmup, last) = (config.num_warmup_steps, config.max_train_steps);
    let decay = config.num_decay_steps.unwrap_or(last / 10);
    if config.lr_scheduler_type != SchedulerType::WarmupStableDecay
        || warmup.saturating_add(decay) <= last
    {
        return Ok(());
    }
    let message = format!(
        "the sum of num_warmup_steps {warmup} and num_decay_steps {decay} exceeds max_train_steps {last}"
    );
    Err(Error::new(ErrorKind::Config, message)
        .hint("lower --num-warmup-steps or --num-decay-steps, or raise --max-train-steps"))
}

fn check_weights(config: &TrainConfig) -> Result<()> {
    let weights = &config.data_weights;
    for &weight in weights {
        finite("data_weights", weight, "above 0", |weight| weight > 0.0)?;
    }
    if weights.is_empty() || weights.len() == config.data.len() {
        return Ok(());
    }
    let message = format!(
        "data_weights has {} values, but data has {}",
        weights.len(),
        config.data.len()
    );
    Err(Error::new(ErrorKind::Config, message)
        .hint("give one weight for each entry of data, in the same order, or none"))
}

fn at_least<N: PartialOrd + std::fmt::Display>(key: &str, value: N, least: N) -> Result<()> {
    if value >= least {
        return Ok(());
    }
    Err(out_of_range(
        key,
        &value.to_string(),
        &format!("at least {least}"),
    ))
}

fn finite(key: &str, value: f64, range: &str, fits: impl Fn(f64) -> bool) -> Result<()> {
    if value.is_finite() && fits(value) {
        return Ok(());
    }
    Err(out_of_range(
        key,
        &value.to_string(),
        &format!("a number {range}"),
    ))
}

fn out_of_range(key: &str, value: &str, range: &str) -> Error {
    let error = Error::new(
        ErrorKind::Config,
        format!("{key} is {value}, but must be {range}"),
    );
    let flag = key.replace('_', "-");
    match crate::config::settings::defaults().get(key) {
        None | Some(serde_json::Value::Null) => error.hint(format!("leave --{flag} out")),
        Some(serde_json::Value::String(default)) => {
            error.hint(format!("the default is --{flag} {default}"))
        }
        Some(default) => error.hint(format!("the default is --{flag} {default}")),
    }
}

#[cfg(test)]
mod tests {
    use host_plugin::PluginConfig;

    use super::*;

    fn config(change: impl Fn(&mut TrainConfig)) -> TrainConfig {
        let mut config = TrainConfig {
            data: vec![PathBuf::from("/src")],
            ..TrainConfig::default()
        };
        change(&mut config);
        config
    }

    #[test]
    fn the_defaults_with_data_are_valid() {
        assert!(check(&config(|_| ())).is_ok());
        assert!(check(&config(|c| c.data.clear())).is_err());
    }

    #[test]
    fn a_number_out_of_range_is_an_error_with_the_range_and_a_hint() {
        let refusal = |change: fn(&mut TrainConfig)| {
            let error = check(&config(change)).expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::Config);
            (
                error.message().to_owned(),
                error.hint_text().expect("a hint").to_owned(),
            )
        };
        assert_eq!(
            refusal(|c| c.train_batch_size = 0),
            (
                "train_batch_size is 0, but must be at least 1".to_owned(),
                "the default is --train-batch-size 2".to_owned()
            )
        );
        assert_eq!(
            refusal(|c| c.learning_rate = f64::NAN).0,
            "learning_rate is NaN, but must be a number above 0"
        );
        assert_eq!(refusal(|c| c.threads = Some(0)).1, "leave --threads out");
        for change in [
            (|c: &mut TrainConfig| c.valid_batch_size = 0) as fn(&mut TrainConfig),
            |c| c.gradient_accumulation_steps = 0,
            |c| c.learning_rate = 0.0,
            |c| c.learning_rate = f64::INFINITY,
            |c| c.weight_decay = -0.1,
            |c| c.max_grad_norm = f64::NAN,
            |c| c.seq_length = 1,
            |c| c.max_train_steps = 0,
            |c| c.shuffle_buffer = 0,
            |c| c.valid_every = 1,
            |c| c.vocab_size = Some(100),
            |c| c.max_eval_steps = -2,
            |c| c.device.clear(),
            |c| c.data_workers = Some(0),
            |c| c.bucket_cap_mb = Some(0),
        ] {
            refusal(change);
        }
        let held_out_elsewhere = config(|c| {
            c.valid_every = 1;
            c.valid_data = vec![PathBuf::from("/valid")];
        });
        assert!(check(&held_out_elsewhere).is_ok());
    }

    #[test]
    fn a_decay_begins_after_the_warm_up() {
        let refused = |warmup, decay, last| {
            let config = config(|c| {
                c.lr_scheduler_type = SchedulerType::WarmupStableDecay;
                c.num_warmup_steps = warmup;
                c.num_decay_steps = decay;
                c.max_train_steps = last;
            });
            check(&config).is_err()
        };
        assert!(!refused(4, Some(6), 10) && !refused(0, Some(10), 10) && !refused(9, None, 10));
        assert!(refused(5, Some(6), 10) && refused(0, Some(11), 10) && refused(10, None, 10));
        assert!(refused(u64::MAX, Some(1), 10));
        let cosine = config(|c| (c.num_warmup_steps, c.max_train_steps) = (20, 10));
        assert!(check(&cosine).is_ok());
    }

    #[test]
    fn data_weights_are_none_or_one_for_each_data() {
        let refusal = |weights: &[f64]| {
            let weights = weights.to_vec();
            check(&config(|c| c.data_weights = weights.clone())).map_err(|e| e.message().to_owned())
        };
        assert_eq!(refusal(&[2.0]), Ok(()));
        assert_eq!(
            refusal(&[0.7, 0.3]),
            Err("data_weights has 2 values, but data has 1".to_owned())
        );
        let negative = "data_weights is -1, but must be a number above 0";
        assert_eq!(refusal(&[-1.0]), Err(negative.to_owned()));
    }

    #[test]
    fn a_flag_replaces_the_files_plugin_with_its_id_or_adds_one() {
        let table: toml::Table = "plugin = [\"perplexity\", { id = \"local-disk\", keep = 2 }]"
            .parse()
            .expect("toml");
        let host: HostConfig = table.try_into().expect("a table");
        let specs = plugin_specs(
            &host,
            &["local-disk:keep=5".to_owned(), "./a.so".to_owned()],
        )
        .expect("specs");
        let targets: Vec<&Target> = specs.iter().map(|spec| &spec.target).collect();
        assert_eq!(
            targets,
            [
                &Target::Id("perplexity".to_owned()),
                &Target::Id("local-disk".to_owned()),
                &Target::Path("./a.so".into())
            ]
        );
        assert_eq!(specs[1], "local-disk:keep=5".parse().expect("a spec"));
    }

    #[test]
    fn a_setting_is_converted_to_json() {
        let read = |setting: &str| {
            let table: toml::Table = format!("plugin = [{{ id = \"x\", {setting} }}]")
                .parse()
                .expect("toml");
            plugin_specs(&table.try_into().expect("a table"), &[])
        };
        let specs = read("a = [1, 2.5], b = { c = true }, day = 2020-01-01").expect("specs");
        let values = serde_json::json!({ "a": [1, 2.5], "b": { "c": true }, "day": "2020-01-01" });
        let values = values.as_object().expect("a table").clone();
        assert_eq!(specs[0].config, PluginConfig::Values(values));
        for (setting, said) in [
            (
                "rate = nan",
                "rate of a [[plugin]] is nan, not a finite number",
            ),
            (
                "a = [1, inf]",
                "a of a [[plugin]] is inf, not a finite number",
            ),
            (
                "b = { c = -inf }",
                "c of a [[plugin]] is -inf, not a finite number",
            ),
        ] {
            assert_eq!(read(setting).expect_err(said).message(), said);
        }
    }
}
