//! The types that the host's crates share, and the ports (traits) through which they call each other.
//!
//! This crate contains no behavior beyond the guarantees of its types. It starts no threads, opens no files
//! and has no heavy dependencies. `train`, `plugin` and `store` depend only on this crate, not on each other.

mod checkpoint;
mod control;
mod emitter;
mod error;
mod event;
mod hex;
mod metric;
mod metric_name;
mod nearest;
mod observer;
mod on_error;
mod param;
mod queue_policy;
mod request_queue;
mod run_name;
mod step;
mod supervised;

pub use checkpoint::{
    CheckpointDir, CheckpointSink, Fetch, Fetched, FileEntry, Manifest, Preflight, Publish,
    Receipt, SinkError,
};
pub use control::{Control, StopReason};
pub use emitter::{Draft, Emitter, Inbox};
pub use error::{Error, ErrorKind, Result};
pub use event::{DeliveryState, Event, EventBody, MetricValue};
pub use hex::hex;
pub use metric::{Device, Dtype, Metric, MetricBatch, Need, TensorView};
pub use metric_name::{
    EVAL_LOSS, HOST_METRICS, HOST_PREFIXES, LONGEST_METRIC_NAME, metric_name_fault,
};
pub use nearest::nearest;
pub use observer::{Ask, Observer, Request};
pub use on_error::OnError;
pub use param::{GroupsRequest, ParamGroup, ParamGroups, ParamInfo, check_groups};
pub use queue_policy::QueuePolicy;
pub use request_queue::{Asked, Asker, CarriedOut, RequestQueue, Requests};
pub use run_name::RunName;
pub use step::Step;
pub use supervised::{Supervised, Verdict};
