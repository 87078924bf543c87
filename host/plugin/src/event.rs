use host_core::{DeliveryState, EventBody, Request, Step, StopReason};
use host_plugin_abi as abi;
use host_plugin_abi::{HostEvent, HostStr, HostValue};

/// The kind of an event. The manifest of an observer lists the kinds of events that the observer receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventKind {
    /// Training started or resumed.
    RunStarted,
    /// The run went back to an earlier step. Earlier events at later steps are no longer valid.
    Superseded,
    /// Measured values.
    Metrics,
    /// A checkpoint is complete.
    CheckpointWritten,
    /// A checkpoint could not be written.
    CheckpointFailed,
    /// The delivery of a checkpoint to a sink has a new state.
    Delivery,
    /// A call into a plugin failed.
    PluginFault,
    /// The loop carries out a request.
    Request,
    /// An unexpected condition.
    Warning,
    /// Training ended.
    RunFinished,
}

impl EventKind {
    /// Every kind.
    pub const ALL: [Self; 10] = [
        Self::RunStarted,
        Self::Superseded,
        Self::Metrics,
        Self::CheckpointWritten,
        Self::CheckpointFailed,
        Self::Delivery,
        Self::PluginFault,
        Self::Request,
        Self::Warning,
        Self::RunFinished,
    ];

    /// Returns the kind of an event.
    pub fn of(event: &EventBody) -> Self {
        match event {
            EventBody::RunStarted { .. } => Self::RunStarted,
            EventBody::Superseded { .. } => Self::Superseded,
            EventBody::Metrics { .. } => Self::Metrics,
            EventBody::CheckpointWritten { .. } => Self::CheckpointWritten,
            EventBody::CheckpointFailed { .. } => Self::CheckpointFailed,
            EventBody::Delivery { .. } => Self::Delivery,
            EventBody::PluginFault { .. } => Self::PluginFault,
            EventBody::Request { .. } => Self::Request,
            EventBody::Warning { .. } => Self::Warning,
            EventBody::RunFinished { .. } => Self::RunFinished,
        }
    }

    /// Returns the name in manifests, which equals the event's `kind` in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::RunStarted => "run_started",
            Self::Superseded => "superseded",
            Self::Metrics => "metrics",
            Self::CheckpointWritten => "checkpoint_written",
            Self::CheckpointFailed => "checkpoint_failed",
            Self::Delivery => "delivery",
            Self::PluginFault => "plugin_fault",
            Self::Request => "request",
            Self::Warning => "warning",
            Self::RunFinished => "run_finished",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Returns the number of the kind in the ABI.
    fn number(self) -> u32 {
        match self {
            Self::RunStarted => abi::HOST_EVENT_RUN_STARTED,
            Self::Superseded => abi::HOST_EVENT_SUPERSEDED,
            Self::Metrics => abi::HOST_EVENT_METRICS,
            Self::CheckpointWritten => abi::HOST_EVENT_CHECKPOINT_WRITTEN,
            Self::CheckpointFailed => abi::HOST_EVENT_CHECKPOINT_FAILED,
            Self::Delivery => abi::HOST_EVENT_DELIVERY,
            Self::PluginFault => abi::HOST_EVENT_PLUGIN_FAULT,
            Self::Request => abi::HOST_EVENT_REQUEST,
            Self::Warning => abi::HOST_EVENT_WARNING,
            Self::RunFinished => abi::HOST_EVENT_RUN_FINISHED,
        }
    }
}

/// Calls `call` with the event as a struct of the ABI. The struct is valid only during the call.
pub fn with_view<R>(step: Step, event: &EventBody, call: impl FnOnce(&HostEvent) -> R) -> R {
    let mut values: Vec<HostValue> = Vec::new();
    let mut view = HostEvent::new(EventKind::of(event).number(), step.0);
    match event {
        EventBody::RunStarted { generation } => view.generation = *generation,
        EventBody::Superseded {
            from_step,
            generation,
        } => {
            view.of_step = from_step.0;
            view.generation = *generation;
        }
        EventBody::Metrics { values: measured } => {
            values.extend(measured.iter().map(|metric| HostValue {
                struct_size: size_of::<HostValue>() as u32,
                flags: 0,
                name: HostStr::new(&metric.name),
                value: metric.value,
            }));
            view.values = values.as_ptr();
            view.n_values = values.len();
        }
        EventBody::CheckpointWritten { name, bytes, .. } => {
            view.name = HostStr::new(name);
            view.bytes = *bytes;
        }
        EventBody::CheckpointFailed { reason } => view.text = HostStr::new(reason),
        EventBody::Delivery {
            sink,
            checkpoint,
            state,
            detail,
            ..
        } => {
            view.name = HostStr::new(sink);
            view.of_step = checkpoint.0;
            view.code = delivery_code(*state);
            view.text = HostStr::new(detail);
        }
        EventBody::PluginFault {
            plugin,
            call,
            message,
        } => {
            view.name = HostStr::new(plugin);
            view.call = HostStr::new(call);
            view.text = HostStr::new(message);
        }
        EventBody::Request {
            by,
            request,
            reason,
        } => {
            view.name = HostStr::new(by);
            (view.code, view.factor) = request_code(*request);
            view.text = HostStr::new(reason);
        }
        EventBody::Warning { message } => view.text = HostStr::new(message),
        EventBody::RunFinished { reason, message } => {
            view.code = stop_code(*reason);
            view.text = HostStr::new(message);
        }
    }
    call(&view)
}

/// Returns the request with this number in the ABI, if this host accepts it from observers.
pub(crate) fn request(code: u32, factor: f64) -> Option<Request> {
    match code {
        abi::HOST_REQUEST_STOP => Some(Request::Stop),
        abi::HOST_REQUEST_CHECKPOINT => Some(Request::Checkpoint),
        abi::HOST_REQUEST_SKIP_STEP => Some(Request::SkipStep),
        abi::HOST_REQUEST_SCALE_LEARNING_RATE => Some(Request::ScaleLearningRate { factor }),
        abi::HOST_REQUEST_ROLL_BACK => Some(Request::RollBack),
        _ => None,
    }
}

fn request_code(request: Request) -> (u32, f64) {
    match request {
        Request::Stop => (abi::HOST_REQUEST_STOP, 0.0),
        Request::Checkpoint => (abi::HOST_REQUEST_CHECKPOINT, 0.0),
        Request::SkipStep => (abi::HOST_REQUEST_SKIP_STEP, 0.0),
        Request::ScaleLearningRate { factor } => (abi::HOST_REQUEST_SCALE_LEARNING_RATE, factor),
        Request::RollBack => (abi::HOST_REQUEST_ROLL_BACK, 0.0),
        Request::Evaluate => (abi::HOST_REQUEST_EVALUATE, 0.0),
        Request::Pause => (abi::HOST_REQUEST_PAUSE, 0.0),
        Request::Continue => (abi::HOST_REQUEST_CONTINUE, 0.0),
        Request::SetLearningRate { factor } => (abi::HOST_REQUEST_SET_LEARNING_RATE, factor),
    }
}

fn delivery_code(state: DeliveryState) -> u32 {
    match state {
        DeliveryState::Queued => abi::HOST_DELIVERY_QUEUED,
        DeliveryState::Sending => abi::HOST_DELIVERY_SENDING,
        DeliveryState::Delivered => abi::HOST_DELIVERY_DELIVERED,
        DeliveryState::Failed => abi::HOST_DELIVERY_FAILED,
        DeliveryState::Dropped => abi::HOST_DELIVERY_DROPPED,
    }
}

fn stop_code(reason: StopReason) -> u32 {
    match reason {
        StopReason::Completed => abi::HOST_STOP_COMPLETED,
        StopReason::Interrupted => abi::HOST_STOP_INTERRUPTED,
        StopReason::Terminated => abi::HOST_STOP_TERMINATED,
        StopReason::Requested => abi::HOST_STOP_REQUESTED,
        StopReason::Failed => abi::HOST_STOP_FAILED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_those_of_the_events_in_json() {
        let text = String::new;
        for event in [
            EventBody::RunStarted { generation: 0 },
            EventBody::Superseded {
                from_step: Step(0),
                generation: 0,
            },
            EventBody::Metrics { values: Vec::new() },
            EventBody::CheckpointWritten {
                name: text(),
                bytes: 0,
                stall_secs: 0.0,
                write_secs: 0.0,
            },
            EventBody::CheckpointFailed { reason: text() },
            EventBody::Delivery {
                sink: text(),
                checkpoint: Step(0),
                state: DeliveryState::Queued,
                detail: text(),
                retry_time_us: None,
            },
            EventBody::PluginFault {
                plugin: text(),
                call: text(),
                message: text(),
            },
            EventBody::Request {
                by: text(),
                request: Request::Stop,
                reason: text(),
            },
            EventBody::Warning { message: text() },
            EventBody::RunFinished {
                reason: StopReason::Completed,
                message: text(),
            },
        ] {
            let kind = EventKind::of(&event);
            let json = serde_json::to_value(&event).expect("JSON");
            assert_eq!(json["kind"], kind.name());
            assert_eq!(EventKind::from_name(kind.name()), Some(kind));
            with_view(Step(7), &event, |view| {
                assert_eq!((view.kind, view.step), (kind.number(), 7));
            });
        }
    }

    #[test]
    fn a_request_has_one_number() {
        for asked in [
            Request::Stop,
            Request::Checkpoint,
            Request::SkipStep,
            Request::ScaleLearningRate { factor: 0.5 },
            Request::RollBack,
        ] {
            let (code, factor) = request_code(asked);
            assert_eq!(request(code, factor), Some(asked));
        }
        assert_eq!(request(0, 0.5), None);
        for seen_only in [
            Request::Evaluate,
            Request::Pause,
            Request::Continue,
            Request::SetLearningRate { factor: 3.0 },
        ] {
            assert!(!seen_only.is_for_observers());
            let (code, factor) = request_code(seen_only);
            assert!(code > abi::HOST_REQUEST_ROLL_BACK);
            assert_eq!(request(code, factor), None);
        }
    }
}
