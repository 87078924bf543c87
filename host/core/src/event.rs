use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Request, Step, StopReason};

/// Something that happened in a run, in its place in the run's one order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Place in the run's order, from 1, without gaps; goes on growing when the run is resumed.
    pub seq: u64,
    /// When, in microseconds since the Unix epoch.
    pub time_us: i64,
    /// The optimizer steps finished by then.
    pub step: Step,
    /// What happened.
    #[serde(flatten)]
    pub body: EventBody,
}

/// What can happen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EventBody {
    /// Training begins or, with a generation above 0, goes on after a resume.
    RunStarted {
        /// How often the run was resumed.
        generation: u32,
    },
    /// What was recorded above `from_step` before this event no longer counts: the run went back
    /// to a checkpoint of that step.
    Superseded {
        /// The last step that still counts.
        from_step: Step,
        /// How often the run was resumed.
        generation: u32,
    },
    /// Measured values; all at the event's step.
    Metrics {
        /// The values, each name once.
        values: Vec<MetricValue>,
    },
    /// A complete checkpoint stands in the run folder.
    CheckpointWritten {
        /// Its folder's name: `step-000100`.
        name: String,
        /// Size of all its files.
        bytes: u64,
        /// How long the loop stood still for it.
        stall_secs: f64,
        /// How long serialising, hashing and writing took beside the loop.
        write_secs: f64,
    },
    /// A checkpoint could not be written; training goes on, older checkpoints are untouched.
    CheckpointFailed {
        /// Why.
        reason: String,
    },
    /// A checkpoint's way to a sink.
    Delivery {
        /// The sink's plugin id.
        sink: String,
        /// The checkpoint's step.
        checkpoint: Step,
        /// How far it came.
        state: DeliveryState,
        /// The sink's receipt (JSON) when delivered, the reason when failed or dropped, else empty.
        detail: String,
        /// When a failed one is tried again, in microseconds since the Unix epoch; none if this process
        /// will not, and for other states.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_time_us: Option<i64>,
    },
    /// A plugin failed in a call.
    PluginFault {
        /// Its id.
        plugin: String,
        /// The call: `update`, `publish`.
        call: String,
        /// Why.
        message: String,
    },
    /// The loop carries out what was asked of it.
    Request {
        /// Who asked: a plugin's id, or `client:` and the name that a client gave.
        by: String,
        /// What for.
        request: Request,
        /// Why.
        reason: String,
    },
    /// Something odd that the user should know.
    Warning {
        /// What.
        message: String,
    },
    /// Training ended.
    RunFinished {
        /// Why.
        reason: StopReason,
        /// The error's text if it ended by one, else empty.
        message: String,
    },
}

/// How far a delivery came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    /// It waits for the sink's worker.
    Queued,
    /// The sink is at work.
    Sending,
    /// The sink gave a receipt.
    Delivered,
    /// A try failed, or the sink gave up.
    Failed,
    /// A newer checkpoint took its place in a queue that keeps the latest alone.
    Dropped,
}

/// A named number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricValue {
    /// `loss/train`, `perplexity`. Shared, since the loop says the same few names for ever.
    pub name: Arc<str>,
    /// The value; infinity and NaN are values. In JSON those are `null`: `serde_json` has no others.
    pub value: f64,
}

impl MetricValue {
    /// Names a number.
    pub fn new(name: impl Into<Arc<str>>, value: f64) -> Self {
        Self {
            name: name.into(),
            value,
        }
    }
}
