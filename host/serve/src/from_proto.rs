use host_core::{
    DeliveryState, Error, ErrorKind, Event, EventBody, MetricValue, Request, Result, Step,
    StopReason,
};
use host_proto::tracker::v1 as proto;
use host_store::{Delivery, Point, RunRow, RunStatus, Series};

/// Converts a run. If the server could not read the run, returns the error that the server reported for it.
pub(crate) fn run(run: proto::Run, config_json: String) -> Result<RunRow> {
    if !run.error.is_empty() {
        return Err(Error::new(ErrorKind::System, run.error));
    }
    let status = match run.state() {
        proto::RunState::Running => RunStatus::Running,
        proto::RunState::Finished => RunStatus::Finished(stop_reason(run.stop_reason())),
        proto::RunState::Crashed | proto::RunState::Unspecified => RunStatus::Crashed,
    };
    Ok(RunRow {
        status,
        name: run.name,
        created_us: run.created_time_us,
        config_json,
        generation: run.generation,
        last_seq: run.last_seq,
        last_step: Step(run.last_step),
        last_time_us: run.last_time_us,
    })
}

pub(crate) fn series(metric: proto::Metric) -> Series {
    Series {
        name: metric.name.into(),
        count: metric.point_count,
        last: point(metric.last_point.unwrap_or_default()),
    }
}

pub(crate) fn point(point: proto::Point) -> Point {
    Point {
        seq: point.seq,
        step: Step(point.step),
        time_us: point.time_us,
        value: point.value,
    }
}

/// Converts an entry of the delivery ledger. Returns `None` if its state is unknown to this version.
pub(crate) fn ledger_entry(entry: proto::LedgerEntry) -> Option<Delivery> {
    let delivery = entry.delivery?;
    Some(Delivery {
        state: delivery_state(delivery.state())?,
        sink: delivery.sink,
        checkpoint: Step(delivery.checkpoint_step),
        detail: delivery.detail,
        retry_time_us: (delivery.retry_time_us != 0).then_some(delivery.retry_time_us),
        seq: entry.seq,
        time_us: entry.time_us,
    })
}

/// Converts an event. An event of an unknown kind becomes a warning, since its sequence number must be kept.
pub(crate) fn event(event: proto::Event) -> Event {
    let unknown = || EventBody::Warning {
        message: format!(
            "event {} is of a kind that this version does not support",
            event.seq
        ),
    };
    Event {
        seq: event.seq,
        time_us: event.time_us,
        step: Step(event.step),
        body: event.body.and_then(body).unwrap_or_else(unknown),
    }
}

fn body(body: proto::event::Body) -> Option<EventBody> {
    use proto::event::Body;
    Some(match body {
        Body::RunStarted(started) => EventBody::RunStarted {
            generation: started.generation,
        },
        Body::Superseded(superseded) => EventBody::Superseded {
            from_step: Step(superseded.from_step),
            generation: superseded.generation,
        },
        Body::Metrics(metrics) => EventBody::Metrics {
            values: metrics
                .values
                .into_iter()
                .map(|value| MetricValue::new(value.name, value.value))
                .collect(),
        },
        Body::CheckpointWritten(written) => EventBody::CheckpointWritten {
            name: written.name,
            bytes: written.size_bytes,
            stall_secs: written.stall_seconds,
            write_secs: written.write_seconds,
        },
        Body::CheckpointFailed(failed) => EventBody::CheckpointFailed {
            reason: failed.reason,
        },
        Body::Delivery(delivery) => EventBody::Delivery {
            state: delivery_state(delivery.state())?,
            sink: delivery.sink,
            checkpoint: Step(delivery.checkpoint_step),
            detail: delivery.detail,
            retry_time_us: (delivery.retry_time_us != 0).then_some(delivery.retry_time_us),
        },
        Body::PluginFault(fault) => EventBody::PluginFault {
            plugin: fault.plugin,
            call: fault.call,
            message: fault.message,
        },
        Body::Request(asked) => EventBody::Request {
            request: request(asked.kind(), asked.factor)?,
            by: asked.by,
            reason: asked.reason,
        },
        Body::Warning(warning) => EventBody::Warning {
            message: warning.message,
        },
        Body::RunFinished(finished) => EventBody::RunFinished {
            reason: stop_reason(finished.reason()),
            message: finished.message,
        },
    })
}

fn request(kind: proto::RequestKind, factor: f64) -> Option<Request> {
    match kind {
        proto::RequestKind::Stop => Some(Request::Stop),
        proto::RequestKind::Checkpoint => Some(Request::Checkpoint),
        proto::RequestKind::SkipStep => Some(Request::SkipStep),
        proto::RequestKind::ScaleLearningRate => Some(Request::ScaleLearningRate { factor }),
        proto::RequestKind::RollBack => Some(Request::RollBack),
        proto::RequestKind::Evaluate => Some(Request::Evaluate),
        proto::RequestKind::Pause => Some(Request::Pause),
        proto::RequestKind::Continue => Some(Request::Continue),
        proto::RequestKind::SetLearningRate => Some(Request::SetLearningRate { factor }),
        proto::RequestKind::Unspecified => None,
    }
}

/// Converts a reason. An unknown reason is treated as a failure.
fn stop_reason(reason: proto::StopReason) -> StopReason {
    match reason {
        proto::StopReason::Completed => StopReason::Completed,
        proto::StopReason::Interrupted => StopReason::Interrupted,
        proto::StopReason::Terminated => StopReason::Terminated,
        proto::StopReason::Requested => StopReason::Requested,
        proto::StopReason::Failed | proto::StopReason::Unspecified => StopReason::Failed,
    }
}

fn delivery_state(state: proto::DeliveryState) -> Option<DeliveryState> {
    match state {
        proto::DeliveryState::Queued => Some(DeliveryState::Queued),
        proto::DeliveryState::Sending => Some(DeliveryState::Sending),
        proto::DeliveryState::Delivered => Some(DeliveryState::Delivered),
        proto::DeliveryState::Failed => Some(DeliveryState::Failed),
        proto::DeliveryState::Dropped => Some(DeliveryState::Dropped),
        proto::DeliveryState::Unspecified => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::to_proto;

    #[test]
    fn every_kind_of_event_survives_the_conversion() {
        let deliveries = [
            DeliveryState::Queued,
            DeliveryState::Sending,
            DeliveryState::Delivered,
            DeliveryState::Failed,
            DeliveryState::Dropped,
        ]
        .map(|state| EventBody::Delivery {
            sink: "local-disk".to_owned(),
            checkpoint: Step(100),
            state,
            detail: "{}".to_owned(),
            retry_time_us: (state == DeliveryState::Failed).then_some(5),
        });
        let ends = [
            StopReason::Completed,
            StopReason::Interrupted,
            StopReason::Terminated,
            StopReason::Requested,
            StopReason::Failed,
        ]
        .map(|reason| EventBody::RunFinished {
            reason,
            message: "m".to_owned(),
        });
        let requests = [
            Request::Stop,
            Request::Checkpoint,
            Request::SkipStep,
            Request::ScaleLearningRate { factor: 0.1 },
            Request::RollBack,
            Request::Evaluate,
            Request::Pause,
            Request::Continue,
            Request::SetLearningRate { factor: 3.0 },
        ]
        .map(|request| EventBody::Request {
            by: "loss-guard".to_owned(),
            request,
            reason: "r".to_owned(),
        });
        let others = [
            EventBody::RunStarted { generation: 2 },
            EventBody::Superseded {
                from_step: Step(7),
                generation: 2,
            },
            EventBody::Metrics {
                values: vec![
                    MetricValue::new("loss/train", 0.1),
                    MetricValue::new("perplexity", f64::INFINITY),
                ],
            },
            EventBody::CheckpointWritten {
                name: "step-000100".to_owned(),
                bytes: 1 << 40,
                stall_secs: 0.5,
                write_secs: 1.5,
            },
            EventBody::CheckpointFailed {
                reason: "full".to_owned(),
            },
            EventBody::PluginFault {
                plugin: "p".to_owned(),
                call: "update".to_owned(),
                message: "m".to_owned(),
            },
            EventBody::Warning {
                message: "w".to_owned(),
            },
        ];
        for body in others
            .into_iter()
            .chain(deliveries)
            .chain(requests)
            .chain(ends)
        {
            let sent = Event {
                seq: 3,
                time_us: -1,
                step: Step(5),
                body,
            };
            assert_eq!(event(to_proto::event(sent.clone())), sent);
        }
    }

    #[test]
    fn an_event_of_a_newer_kind_keeps_its_sequence_number() {
        let newer = proto::Event {
            seq: 9,
            body: None,
            ..proto::Event::default()
        };
        let read = event(newer);
        assert_eq!(read.seq, 9);
        assert!(matches!(read.body, EventBody::Warning { message } if message.contains("event 9")));
    }
}
