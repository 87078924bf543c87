//! The data for TensorBoard's HParams plugin: the start and end of each run, and the settings and metrics
//! with which runs can be compared.

use std::collections::{BTreeMap, BTreeSet};

use host_core::{EVAL_LOSS, StopReason};
use host_proto::tensorboard::hparams as proto;
use host_store::{RunRow, RunStatus, Series};
use prost::Message as _;
use prost_types::value::Kind;
use prost_types::{ListValue, Value};
use proto::h_param_info::Domain;
use proto::h_params_plugin_data::Data;

use super::seconds;

/// The configuration keys that describe how a run was executed, not what was trained. They are omitted from
/// comparisons of runs.
pub const HOST_SETTINGS: [&str; 15] = [
    "runs_dir",
    "name",
    "listen",
    "preflight",
    "system_metrics_secs",
    "resume",
    "rank_timeout_secs",
    "rank_start_secs",
    "read_token_env",
    "control_token_env",
    "tls",
    "tls_cert",
    "tls_key",
    "plugin",
    "plugin_lock",
];

/// The HParams plugin reads the content of this tag. The content describes all runs together.
const EXPERIMENT: &str = "_hparams_/experiment";

/// The settings that are usually the most interesting. There are five, because TensorBoard shows five columns
/// by default.
const FIRST_SETTINGS: [&str; 5] = [
    "learning_rate",
    "model",
    "train_batch_size",
    "seq_length",
    "max_train_steps",
];

/// The metrics that are usually the most interesting.
const FIRST_METRICS: [&str; 3] = ["loss/train", EVAL_LOSS, "perplexity"];

/// Returns a run's tags for the HParams plugin, each with its content.
pub(super) fn tags(run: &RunRow) -> Vec<(&'static str, Vec<u8>)> {
    let hparams = settings(&run.config_json).into_iter();
    let hparams = hparams.map(|(name, kind)| (name, Value { kind: Some(kind) }));
    let start = Data::SessionStartInfo(proto::SessionStartInfo {
        hparams: hparams.collect(),
        group_name: run.name.clone(),
        start_time_secs: seconds(run.created_us),
    });
    let mut tags = vec![("_hparams_/session_start_info", content(start))];
    let ended = match run.status {
        RunStatus::Running => None,
        RunStatus::Finished(StopReason::Failed) | RunStatus::Crashed => {
            Some(proto::Status::Failure)
        }
        RunStatus::Finished(_) => Some(proto::Status::Success),
    };
    if let Some(status) = ended {
        let end = Data::SessionEndInfo(proto::SessionEndInfo {
            status: status.into(),
            end_time_secs: seconds(run.last_time_us),
        });
        tags.push(("_hparams_/session_end_info", content(end)));
    }
    tags
}

/// Returns the experiment tag, which describes all runs. Exactly one run must have it. Without it, the
/// HParams plugin would show the alphabetically first settings and metrics.
pub(super) fn experiment<'a>(
    runs: impl IntoIterator<Item = (&'a RunRow, &'a [Series])>,
) -> (&'static str, Vec<u8>) {
    let (mut configurations, mut metrics) = (Vec::new(), BTreeSet::new());
    for (run, series) in runs {
        configurations.push(settings(&run.config_json));
        metrics.extend(results(series));
    }
    let place = |name: &str| FIRST_METRICS.iter().position(|first| *first == name);
    let mut metrics: Vec<&str> = metrics.into_iter().collect();
    metrics.sort_by_key(|name| place(name).unwrap_or(FIRST_METRICS.len()));
    let metric = |tag: &str| proto::MetricInfo {
        name: Some(proto::MetricName {
            tag: tag.to_owned(),
        }),
    };
    let experiment = proto::Experiment {
        hparam_infos: hparam_infos(&configurations),
        metric_infos: metrics.into_iter().map(metric).collect(),
    };
    (EXPERIMENT, content(Data::Experiment(experiment)))
}

/// Returns the names of the metrics by which runs can be compared: the usual ones, and all other metrics of
/// the last evaluation except durations.
fn results(series: &[Series]) -> impl Iterator<Item = &str> {
    let evaluated = series.iter().find(|one| &*one.name == EVAL_LOSS);
    let evaluated = evaluated.map(|one| one.last.seq);
    series.iter().filter_map(move |one| {
        let is_first = FIRST_METRICS.contains(&&*one.name);
        let is_measured = evaluated == Some(one.last.seq) && !one.name.ends_with("_secs");
        (is_first || is_measured).then_some(&*one.name)
    })
}

/// Returns descriptions of the settings in these configurations. TensorBoard sorts settings by `differs` and
/// then by name, and shows only the first five as columns. So `differs` is set for at most five settings:
/// those that do differ and, if columns remain, the usual settings.
fn hparam_infos(configurations: &[Settings]) -> Vec<proto::HParamInfo> {
    let names: BTreeSet<&str> = configurations
        .iter()
        .flat_map(BTreeMap::keys)
        .map(|name| &**name)
        .collect();
    let differs = |name: &str| {
        configurations
            .windows(2)
            .any(|pair| pair[0].get(name) != pair[1].get(name))
    };
    let is_usual = |name: &str| FIRST_SETTINGS.contains(&name);
    let mut in_sight: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| differs(name) || is_usual(name))
        .collect();
    in_sight.sort_by_key(|name| match (differs(name), is_usual(name)) {
        (true, true) => 0,
        (true, false) => 1,
        _ => 2,
    });
    in_sight.truncate(FIRST_SETTINGS.len());
    let place = |name: &str| FIRST_SETTINGS.iter().position(|first| *first == name);
    let mut names: Vec<&str> = names.into_iter().collect();
    names.sort_by_key(|name| place(name).unwrap_or(FIRST_SETTINGS.len()));
    let info = |name: &str| {
        let values: Vec<&Kind> = configurations
            .iter()
            .filter_map(|one| one.get(name))
            .collect();
        let (r#type, domain) = domain(&values);
        proto::HParamInfo {
            name: name.to_owned(),
            r#type: r#type.into(),
            differs: in_sight.contains(&name),
            domain,
        }
    };
    names.into_iter().map(info).collect()
}

/// Returns the type and the domain of a setting's values.
fn domain(values: &[&Kind]) -> (proto::DataType, Option<Domain>) {
    let (mut numbers, mut texts, mut truths) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    for value in values {
        match value {
            Kind::NumberValue(value) => numbers.push(*value),
            Kind::StringValue(value) => _ = texts.insert(value.clone()),
            Kind::BoolValue(value) => _ = truths.insert(*value),
            _ => {}
        }
    }
    let discrete = |values: Vec<Kind>| {
        let values = values.into_iter().map(Some);
        let values = values.map(|kind| Value { kind }).collect();
        Some(Domain::DomainDiscrete(ListValue { values }))
    };
    match (numbers.is_empty(), texts.is_empty(), truths.is_empty()) {
        (false, true, true) => {
            let interval = proto::Interval {
                min_value: numbers.iter().copied().fold(f64::INFINITY, f64::min),
                max_value: numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            };
            (
                proto::DataType::Float64,
                Some(Domain::DomainInterval(interval)),
            )
        }
        (true, false, true) => {
            let texts = texts.into_iter().map(Kind::StringValue);
            (proto::DataType::String, discrete(texts.collect()))
        }
        (true, true, false) => {
            let truths = truths.into_iter().map(Kind::BoolValue);
            (proto::DataType::Bool, discrete(truths.collect()))
        }
        // A setting whose values have different types is described as a string without a domain, so that
        // TensorBoard filters its values by a pattern.
        _ => (proto::DataType::String, None),
    }
}

fn content(data: Data) -> Vec<u8> {
    let data = Some(data);
    proto::HParamsPluginData { version: 0, data }.encode_to_vec()
}

/// Settings by name.
type Settings = BTreeMap<String, Kind>;

/// Returns the training settings that are numbers, strings or booleans. A plugin's settings are named
/// `plugin/ID/KEY`. Lists are omitted, since TensorBoard cannot sort runs by them. A plugin's id and path,
/// and the recorded environment, are also omitted.
fn settings(config_json: &str) -> Settings {
    let config: serde_json::Value = serde_json::from_str(config_json).unwrap_or_default();
    let setting = |(name, value): (String, serde_json::Value)| {
        let kind = match value {
            serde_json::Value::Bool(value) => Kind::BoolValue(value),
            serde_json::Value::Number(value) => Kind::NumberValue(value.as_f64()?),
            serde_json::Value::String(value) => Kind::StringValue(value),
            _ => return None,
        };
        let is_place =
            name.starts_with("plugin/") && ["/id", "/path"].iter().any(|end| name.ends_with(end));
        let is_setting = !is_place && !name.starts_with("record.") && !is_of_host(&name);
        is_setting.then_some((name, kind))
    };
    let settings = host_store::settings(&config);
    settings.into_iter().filter_map(setting).collect()
}

/// Whether the part of a key before the first dot is one of [`HOST_SETTINGS`].
fn is_of_host(name: &str) -> bool {
    let name = name.split('.').next().unwrap_or_default();
    HOST_SETTINGS.contains(&name)
}

#[cfg(test)]
mod tests {
    use host_core::Step;
    use host_store::Point;

    use super::*;

    fn run(status: RunStatus) -> RunRow {
        RunRow {
            name: "a".to_owned(),
            created_us: 1_500_000,
            config_json: r#"{"seed": 1, "model": "tiny", "deterministic": true, "data": ["x"],
                "name": "a", "listen": "127.0.0.1:0"}"#
                .to_owned(),
            status,
            generation: 0,
            last_seq: 9,
            last_step: Step(3),
            last_time_us: 2_500_000,
        }
    }

    fn read(content: &[u8]) -> Data {
        let data = proto::HParamsPluginData::decode(content).expect("decoded");
        data.data.expect("data")
    }

    #[test]
    fn a_running_run_has_a_start_with_its_settings_and_no_end() {
        let tags = tags(&run(RunStatus::Running));
        let [("_hparams_/session_start_info", start)] = &tags[..] else {
            panic!("{tags:?}");
        };
        let Data::SessionStartInfo(start) = read(start) else {
            panic!("no start");
        };
        assert_eq!((&*start.group_name, start.start_time_secs), ("a", 1.5));
        let mut settings: Vec<_> = start.hparams.into_iter().collect();
        settings.sort_by(|a, b| a.0.cmp(&b.0));
        let kinds: Vec<_> = settings
            .into_iter()
            .map(|(name, value)| (name, value.kind.expect("a kind")))
            .collect();
        assert_eq!(
            kinds,
            [
                ("deterministic".to_owned(), Kind::BoolValue(true)),
                ("model".to_owned(), Kind::StringValue("tiny".to_owned())),
                ("seed".to_owned(), Kind::NumberValue(1.0)),
            ]
        );
    }

    #[test]
    fn the_end_of_a_run_has_a_status() {
        for (status, expected) in [
            (RunStatus::Crashed, proto::Status::Failure),
            (
                RunStatus::Finished(StopReason::Failed),
                proto::Status::Failure,
            ),
            (
                RunStatus::Finished(StopReason::Completed),
                proto::Status::Success,
            ),
        ] {
            let tags = tags(&run(status));
            assert_eq!(tags[1].0, "_hparams_/session_end_info");
            let Data::SessionEndInfo(end) = read(&tags[1].1) else {
                panic!("no end");
            };
            assert_eq!((end.status(), end.end_time_secs), (expected, 2.5));
        }
    }

    fn configured(config_json: &str) -> RunRow {
        let config_json = config_json.to_owned();
        RunRow {
            config_json,
            ..run(RunStatus::Running)
        }
    }

    fn series(name: &str, seq: u64) -> Series {
        let last = Point {
            seq,
            step: Step(3),
            time_us: 0,
            value: 1.0,
        };
        Series {
            name: name.into(),
            count: 1,
            last,
        }
    }

    fn of_all(runs: &[(RunRow, Vec<Series>)]) -> proto::Experiment {
        let (tag, content) = experiment(runs.iter().map(|(run, series)| (run, &series[..])));
        assert_eq!(tag, "_hparams_/experiment");
        let Data::Experiment(experiment) = read(&content) else {
            panic!("no experiment");
        };
        experiment
    }

    /// Returns the columns that TensorBoard shows by default: the first five of its sorted settings.
    fn columns(experiment: &proto::Experiment) -> Vec<&str> {
        let mut infos: Vec<_> = experiment.hparam_infos.iter().collect();
        infos.sort_by_key(|info| (!info.differs, &info.name));
        infos.into_iter().map(|info| &*info.name).take(5).collect()
    }

    const CONFIG: &str = r#"{"deterministic": false, "device": "cpu", "learning_rate": 0.1,
        "max_train_steps": 9, "model": "tiny", "seed": 1, "seq_length": 32, "train_batch_size": 4}"#;

    #[test]
    fn a_run_s_table_starts_with_the_most_interesting_settings_and_results() {
        let series = [
            series("accuracy", 9),
            series("checkpoint_copy_secs", 8),
            series("eval_secs", 9),
            series("loss/eval", 9),
            series("loss/train", 11),
            series("perplexity", 9),
            series("system/cpu_percent", 10),
        ];
        let experiment = of_all(&[(configured(CONFIG), series.to_vec())]);
        let mut usual = FIRST_SETTINGS;
        usual.sort_unstable();
        assert_eq!(columns(&experiment), usual);
        assert_eq!(experiment.hparam_infos.len(), 8);
        let metrics = experiment.metric_infos.into_iter();
        let metrics: Vec<String> = metrics.filter_map(|info| Some(info.name?.tag)).collect();
        assert_eq!(
            metrics,
            ["loss/train", "loss/eval", "perplexity", "accuracy"]
        );
    }

    #[test]
    fn settings_that_differ_between_runs_are_shown_first() {
        let changed = CONFIG
            .replace("0.1", "0.2")
            .replace(r#""seed": 1"#, r#""seed": 2, "vocab_size": 300"#);
        let runs = [(configured(CONFIG), vec![]), (configured(&changed), vec![])];
        let experiment = of_all(&runs);
        let seen = columns(&experiment);
        for name in ["learning_rate", "seed", "vocab_size"] {
            assert!(seen.contains(&name), "{name}: {seen:?}");
        }
        let rate = &experiment.hparam_infos[0];
        let (min_value, max_value) = (0.1, 0.2);
        let interval = Domain::DomainInterval(proto::Interval {
            min_value,
            max_value,
        });
        assert_eq!(
            (&*rate.name, rate.r#type()),
            ("learning_rate", proto::DataType::Float64)
        );
        assert_eq!(rate.domain, Some(interval));
    }

    #[test]
    fn differences_in_a_plugin_s_settings_are_shown() {
        let with = |decay: f64| {
            let plugin = format!(r#"{{"id": "weight-decay", "weight_decay": {decay}}}"#);
            let record = r#"{"host": "1", "plugin": [{"id": "weight-decay", "version": "1"}]}"#;
            let end =
                format!(r#", "weight_decay": 0.1, "plugin": [{plugin}], "record": {record}}}"#);
            configured(&CONFIG.replace('}', &end))
        };
        let runs = [(with(0.1), vec![]), (with(0.5), vec![])];
        let experiment = of_all(&runs);
        let seen = columns(&experiment);
        let infos = experiment.hparam_infos.iter();
        let names: Vec<&str> = infos.map(|info| &*info.name).collect();
        for name in ["weight_decay", "plugin/weight-decay/weight_decay"] {
            assert!(seen.contains(&name), "{name}: {seen:?}");
        }
        assert!(!names.iter().any(|name| name.ends_with("/id")), "{names:?}");
        assert!(
            !names.iter().any(|name| name.starts_with("record")),
            "{names:?}"
        );
        for (run, expected) in std::iter::zip(&runs, [0.1, 0.5]) {
            let tags = tags(&run.0);
            let Data::SessionStartInfo(start) = read(&tags[0].1) else {
                panic!("no start");
            };
            for name in ["weight_decay", "plugin/weight-decay/weight_decay"] {
                let kind = start.hparams[name].kind.clone().expect("a kind");
                assert_eq!(kind, Kind::NumberValue(expected), "{name}");
            }
        }
    }

    #[test]
    fn a_setting_with_values_of_several_types_is_a_string() {
        let runs = [r#"{"a": 1, "b": true}"#, r#"{"a": "x", "b": false}"#];
        let experiment = of_all(&runs.map(|config| (configured(config), vec![])));
        let [a, b] = &experiment.hparam_infos[..] else {
            panic!("{experiment:?}");
        };
        assert_eq!((a.r#type(), &a.domain), (proto::DataType::String, &None));
        assert_eq!(b.r#type(), proto::DataType::Bool);
        let Some(Domain::DomainDiscrete(values)) = &b.domain else {
            panic!("{b:?}");
        };
        assert_eq!(values.values.len(), 2);
    }
}
