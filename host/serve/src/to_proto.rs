use host_core::{DeliveryState, Event, EventBody, Request, StopReason};
use host_proto::tracker::v1 as proto;
use host_store::{ConfigDifference, Delivery, MetricComparison, Point, RunRow, RunStatus, Series};

pub(crate) fn run(name: &str, row: &RunRow) -> proto::Run {
    let (state, reason) = match row.status {
        RunStatus::Running => (proto::RunState::Running, proto::StopReason::Unspecified),
        RunStatus::Finished(reason) => (proto::RunState::Finished, stop_reason(reason)),
        RunStatus::Crashed => (proto::RunState::Crashed, proto::StopReason::Unspecified),
    };
    proto::Run {
        name: name.to_owned(),
        created_time_us: row.created_us,
        state: state.into(),
        stop_reason: reason.into(),
        generation: row.generation,
        last_seq: row.last_seq,
        last_step: row.last_step.0,
        last_time_us: row.last_time_us,
        error: String::new(),
    }
}

pub(crate) fn metric(series: &Series) -> proto::Metric {
    proto::Metric {
        name: series.name.to_string(),
        point_count: series.count,
        last_point: Some(point(&series.last)),
    }
}

pub(crate) fn point(point: &Point) -> proto::Point {
    proto::Point {
        step: point.step.0,
        time_us: point.time_us,
        value: point.value,
        seq: point.seq,
    }
}

pub(crate) fn config_difference(difference: &ConfigDifference) -> proto::ConfigDifference {
    let values = difference.values.iter();
    proto::ConfigDifference {
        key: difference.key.clone(),
        values_json: values
            .map(|value| value.as_ref().map_or_else(String::new, ToString::to_string))
            .collect(),
    }
}

pub(crate) fn comparison(metric: &MetricComparison) -> proto::MetricComparison {
    let runs = (0..).zip(&metric.runs);
    let runs = runs.filter_map(|(run_index, run)| {
        let run = run.as_ref()?;
        Some(proto::RunMetric {
            run_index,
            point_count: run.count,
            last_point: Some(point(&run.last)),
            lowest_point: run.lowest.as_ref().map(point),
            highest_point: run.highest.as_ref().map(point),
            values: run.values.clone(),
        })
    });
    proto::MetricComparison {
        name: metric.name.to_string(),
        steps: metric.steps.iter().map(|step| step.0).collect(),
        runs: runs.collect(),
    }
}

pub(crate) fn event(event: Event) -> proto::Event {
    proto::Event {
        seq: event.seq,
        time_us: event.time_us,
        step: event.step.0,
        body: Some(body(event.body)),
    }
}

fn body(body: EventBody) -> proto::event::Body {
    use proto::event::Body;
    match body {
        EventBody::RunStarted { generation } => Body::RunStarted(proto::RunStarted { generation }),
        EventBody::Superseded {
            from_step,
            generation,
        } => Body::Superseded(proto::Superseded {
            from_step: from_step.0,
            generation,
        }),
        EventBody::Metrics { values } => Body::Metrics(proto::Metrics {
            values: values
                .into_iter()
                .map(|value| proto::MetricValue {
                    name: value.name.to_string(),
                    value: value.value,
                })
                .collect(),
        }),
        EventBody::CheckpointWritten {
            name,
            bytes,
            stall_secs,
            write_secs,
        } => Body::CheckpointWritten(proto::CheckpointWritten {
            name,
            size_bytes: bytes,
            stall_seconds: stall_secs,
            write_seconds: write_secs,
        }),
        EventBody::CheckpointFailed { reason } => {
            Body::CheckpointFailed(proto::CheckpointFailed { reason })
        }
        EventBody::Delivery {
            sink,
            checkpoint,
            state,
            detail,
            retry_time_us,
        } => Body::Delivery(proto::Delivery {
            sink,
            checkpoint_step: checkpoint.0,
            state: delivery_state(state).into(),
            detail,
            retry_time_us: retry_time_us.unwrap_or(0),
        }),
        EventBody::PluginFault {
            plugin,
            call,
            message,
        } => Body::PluginFault(proto::PluginFault {
            plugin,
            call,
            message,
        }),
        EventBody::Request {
            by,
            request,
            reason,
        } => Body::Request(self::request(by, request, reason)),
        EventBody::Warning { message } => Body::Warning(proto::Warning { message }),
        EventBody::RunFinished { reason, message } => Body::RunFinished(proto::RunFinished {
            reason: stop_reason(reason).into(),
            message,
        }),
    }
}

fn request(by: String, request: Request, reason: String) -> proto::Request {
    let (kind, factor) = match request {
        Request::Stop => (proto::RequestKind::Stop, 0.0),
        Request::Checkpoint => (proto::RequestKind::Checkpoint, 0.0),
        Request::SkipStep => (proto::RequestKind::SkipStep, 0.0),
        Request::ScaleLearningRate { factor } => (proto::RequestKind::ScaleLearningRate, factor),
        Request::RollBack => (proto::RequestKind::RollBack, 0.0),
        Request::Evaluate => (proto::RequestKind::Evaluate, 0.0),
        Request::Pause => (proto::RequestKind::Pause, 0.0),
        Request::Continue => (proto::RequestKind::Continue, 0.0),
        Request::SetLearningRate { factor } => (proto::RequestKind::SetLearningRate, factor),
    };
    proto::Request {
        by,
        kind: kind.into(),
        factor,
        reason,
    }
}

fn stop_reason(reason: StopReason) -> proto::StopReason {
    match reason {
        StopReason::Completed => proto::StopReason::Completed,
        StopReason::Interrupted => proto::StopReason::Interrupted,
        StopReason::Terminated => proto::StopReason::Terminated,
        StopReason::Requested => proto::StopReason::Requested,
        StopReason::Failed => proto::StopReason::Failed,
    }
}

/// Converts an entry of the delivery ledger.
pub(crate) fn ledger_entry(entry: Delivery) -> proto::LedgerEntry {
    proto::LedgerEntry {
        time_us: entry.time_us,
        seq: entry.seq,
        location: entry.location().unwrap_or_default(),
        manifest_sha256: entry.manifest_sha256().unwrap_or_default(),
        delivery: Some(proto::Delivery {
            sink: entry.sink,
            checkpoint_step: entry.checkpoint.0,
            state: delivery_state(entry.state).into(),
            detail: entry.detail,
            retry_time_us: entry.retry_time_us.unwrap_or(0),
        }),
    }
}

fn delivery_state(state: DeliveryState) -> proto::DeliveryState {
    match state {
        DeliveryState::Queued => proto::DeliveryState::Queued,
        DeliveryState::Sending => proto::DeliveryState::Sending,
        DeliveryState::Delivered => proto::DeliveryState::Delivered,
        DeliveryState::Failed => proto::DeliveryState::Failed,
        DeliveryState::Dropped => proto::DeliveryState::Dropped,
    }
}
