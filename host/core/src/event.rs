use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Request, Step, StopReason};

/// Something that happened in a run. All events of a run are totally ordered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Position in the run's order: starts at 1, has no gaps, and continues when the run is resumed.
    pub seq: u64,
    /// The time at which the event was emitted, in microseconds since the Unix epoch.
    pub time_us: i64,
    /// The number of optimizer steps that were finished when the event was emitted.
    pub step: Step,
    /// What happened.
    #[serde(flatten)]
    pub body: EventBody,
}

/// The kinds of events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EventBody {
    /// Training begins if the generation is 0. Otherwise, training continues after a resume.
    RunStarted {
        /// Number of times the run was resumed.
        generation: u32,
    },
    /// The run went back to the checkpoint of `from_step`. Earlier events at steps above `from_step` are no
    /// longer valid.
    Superseded {
        /// The step of that checkpoint. Earlier events up to this step stay valid.
        from_step: Step,
        /// Number of times the run was resumed.
        generation: u32,
    },
    /// Measured values, all at the event's step.
    Metrics {
        /// The values. Their names are unique.
        values: Vec<MetricValue>,
    },
    /// The run folder contains a new, complete checkpoint.
    CheckpointWritten {
        /// The name of the checkpoint's folder: `step-000100`.
        name: String,
        /// The total size of the checkpoint's files in bytes.
        bytes: u64,
        /// How long the checkpoint blocked the training loop.
        stall_secs: f64,
        /// How long it took to serialize, hash and write the checkpoint while training continued.
        write_secs: f64,
    },
    /// A checkpoint could not be written. Training continues; older checkpoints are untouched.
    CheckpointFailed {
        /// Why.
        reason: String,
    },
    /// The delivery of a checkpoint to a sink changed its state.
    Delivery {
        /// The sink's plugin id.
        sink: String,
        /// The checkpoint's step.
        checkpoint: Step,
        /// The new state.
        state: DeliveryState,
        /// For a delivered checkpoint, the sink's receipt (JSON). For a failed or dropped one, the reason.
        /// Otherwise empty.
        detail: String,
        /// The time at which a failed delivery will be retried, in microseconds since the Unix epoch. `None`
        /// if the delivery is in another state, or if this process will not retry it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_time_us: Option<i64>,
    },
    /// A call into a plugin failed.
    PluginFault {
        /// The plugin's id.
        plugin: String,
        /// The call, such as `update` or `publish`.
        call: String,
        /// Why it failed.
        message: String,
    },
    /// The loop carries out a request.
    Request {
        /// The source: a plugin's id, or `client:` followed by the client's name.
        by: String,
        /// What is requested.
        request: Request,
        /// Why.
        reason: String,
    },
    /// Something unexpected that the user should see.
    Warning {
        /// The text.
        message: String,
    },
    /// Training ended.
    RunFinished {
        /// Why.
        reason: StopReason,
        /// The error's text if an error ended the run, otherwise empty.
        message: String,
    },
}

/// The state of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    /// Waiting for the sink's worker.
    Queued,
    /// The sink is delivering the checkpoint.
    Sending,
    /// The sink returned a receipt.
    Delivered,
    /// An attempt failed. `retry_time_us` is set if the delivery will be retried.
    Failed,
    /// Will not be delivered: a newer checkpoint replaced it in the queue, or its files are lost.
    Dropped,
}

/// A named number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricValue {
    /// The name, such as `loss/train`. Shared, because the loop emits the same few names at every step.
    pub name: Arc<str>,
    /// The value. May be infinite or NaN; both become `null` in JSON, which cannot represent them.
    pub value: f64,
}

impl MetricValue {
    /// Creates a named value.
    pub fn new(name: impl Into<Arc<str>>, value: f64) -> Self {
        Self {
            name: name.into(),
            value,
        }
    }
}
