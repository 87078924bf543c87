use host_core::EventBody;
use serde_json::{Map, Value};

/// The `kind` of events that hide earlier points.
pub(crate) const SUPERSEDED: &str = "superseded";
/// The `kind` of entries in the delivery ledger.
pub(crate) const DELIVERY: &str = "delivery";
/// The `kind` of requests to the training loop.
pub(crate) const REQUEST: &str = "request";
/// The `kind` of a run's start.
pub(crate) const RUN_STARTED: &str = "run_started";
/// The `kind` of a run's end.
pub(crate) const RUN_FINISHED: &str = "run_finished";

/// Encodes an event that contains no metrics. Returns its `kind`, and the rest as JSON, which people can read
/// in any SQLite shell.
pub(crate) fn encode(body: &EventBody) -> Result<(String, String), serde_json::Error> {
    let mut fields = match serde_json::to_value(finite(body))? {
        Value::Object(fields) => fields,
        other => Map::from_iter([("kind".to_owned(), other)]),
    };
    let kind = match fields.shift_remove("kind") {
        Some(Value::String(kind)) => kind,
        _ => String::new(),
    };
    Ok((kind, Value::Object(fields).to_string()))
}

/// The reverse of [`encode`].
pub(crate) fn decode(kind: &str, body: &str) -> Result<EventBody, serde_json::Error> {
    let mut fields: Map<String, Value> = serde_json::from_str(body)?;
    fields.insert("kind".to_owned(), Value::String(kind.to_owned()));
    serde_json::from_value(Value::Object(fields))
}

/// Replaces each duration that is not finite with 0. JSON has no infinity, and such durations were not
/// measured.
fn finite(body: &EventBody) -> EventBody {
    let mut body = body.clone();
    if let EventBody::CheckpointWritten {
        stall_secs,
        write_secs,
        ..
    } = &mut body
    {
        for secs in [stall_secs, write_secs] {
            if !secs.is_finite() {
                *secs = 0.0;
            }
        }
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use host_core::{DeliveryState, Request, Step, StopReason};

    #[test]
    fn every_kind_round_trips() {
        for body in [
            EventBody::RunStarted { generation: 3 },
            EventBody::Superseded {
                from_step: Step(u64::MAX),
                generation: 1,
            },
            EventBody::CheckpointWritten {
                name: "step-000100".to_owned(),
                bytes: u64::MAX,
                stall_secs: 0.1 + 0.2,
                write_secs: 1e-300,
            },
            EventBody::CheckpointFailed {
                reason: "\"disk\"\n\0ü".to_owned(),
            },
            EventBody::Delivery {
                sink: "hub-git".to_owned(),
                checkpoint: Step(7),
                state: DeliveryState::Delivered,
                detail: "{\"commit\":\"abc\"}".to_owned(),
                retry_time_us: None,
            },
            EventBody::PluginFault {
                plugin: "p".to_owned(),
                call: "update".to_owned(),
                message: String::new(),
            },
            EventBody::Request {
                by: "early-stopping".to_owned(),
                request: Request::Stop,
                reason: "r".to_owned(),
            },
            EventBody::Request {
                by: "x".to_owned(),
                request: Request::ScaleLearningRate { factor: 0.1 },
                reason: String::new(),
            },
            EventBody::Warning {
                message: "w".to_owned(),
            },
            EventBody::RunFinished {
                reason: StopReason::Interrupted,
                message: String::new(),
            },
        ] {
            let (kind, json) = encode(&body).expect("JSON");
            assert_eq!(decode(&kind, &json).expect("an event"), body);
        }
    }

    #[test]
    fn queries_use_the_kinds_that_are_written() {
        let kind = |body: EventBody| encode(&body).expect("JSON").0;
        assert_eq!(kind(EventBody::RunStarted { generation: 0 }), RUN_STARTED);
        assert_eq!(
            kind(EventBody::Superseded {
                from_step: Step(0),
                generation: 1
            }),
            SUPERSEDED
        );
        assert_eq!(
            kind(EventBody::RunFinished {
                reason: StopReason::Failed,
                message: String::new()
            }),
            RUN_FINISHED
        );
    }

    #[test]
    fn a_duration_that_is_not_finite_does_not_make_the_log_unreadable() {
        let odd = EventBody::CheckpointWritten {
            name: String::new(),
            bytes: 0,
            stall_secs: f64::NAN,
            write_secs: f64::INFINITY,
        };
        let (kind, json) = encode(&odd).expect("JSON");
        let EventBody::CheckpointWritten {
            stall_secs,
            write_secs,
            ..
        } = decode(&kind, &json).expect("an event")
        else {
            panic!("another kind");
        };
        assert_eq!((stall_secs, write_secs), (0.0, 0.0));
    }
}
