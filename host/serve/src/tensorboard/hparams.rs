use host_core::StopReason;
use host_proto::tensorboard::hparams as proto;
use host_store::{RunRow, RunStatus};
use prost::Message as _;
use prost_types::value::Kind;
use proto::h_params_plugin_data::Data;

use super::seconds;

/// A run for the HParams plugin: its tags, each with the content that the plugin reads.
pub(crate) fn tags(run: &RunRow) -> Vec<(&'static str, Vec<u8>)> {
    let start = Data::SessionStartInfo(proto::SessionStartInfo {
        hparams: settings(&run.config_json),
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

fn content(data: Data) -> Vec<u8> {
    let data = Some(data);
    proto::HParamsPluginData { version: 0, data }.encode_to_vec()
}

/// The numbers, texts and booleans of a configuration. Lists and tables are no settings that one
/// would sort runs by.
fn settings(config_json: &str) -> std::collections::HashMap<String, prost_types::Value> {
    let config: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(config_json).unwrap_or_default();
    let setting = |(name, value): (String, serde_json::Value)| {
        let kind = match value {
            serde_json::Value::Bool(value) => Kind::BoolValue(value),
            serde_json::Value::Number(value) => Kind::NumberValue(value.as_f64()?),
            serde_json::Value::String(value) => Kind::StringValue(value),
            _ => return None,
        };
        Some((name, prost_types::Value { kind: Some(kind) }))
    };
    config.into_iter().filter_map(setting).collect()
}

#[cfg(test)]
mod tests {
    use host_core::Step;

    use super::*;

    fn run(status: RunStatus) -> RunRow {
        RunRow {
            name: "a".to_owned(),
            created_us: 1_500_000,
            config_json: r#"{"seed": 1, "model": "tiny", "deterministic": true, "data": ["x"]}"#
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
    fn a_run_at_work_has_begun_with_its_settings_and_has_no_end() {
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
    fn how_a_run_ended_is_said() {
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
}
