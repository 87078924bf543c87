//! Write plugins of the training host in safe Rust.
//!
//! A plugin is a shared library that the host loads while it starts. It decides the optimizer's
//! parameter groups ([`ParamGroups`]), computes an evaluation metric ([`Metric`]), delivers
//! checkpoints ([`CheckpointSink`]) or watches the run and asks for something ([`Observer`]).
//! Implement one of the four and name it in [`export_plugin!`]; the examples there are complete
//! plugins. Test it with [`fake`], a host without training.
//!
//! ```toml
//! [lib]
//! crate-type = ["cdylib", "lib"]
//!
//! [dependencies]
//! host-plugin-sdk = "0.1"
//! serde = { version = "1", features = ["derive"] }
//! ```
//!
//! What the SDK takes care of: the C ABI ([`abi`]) in both directions, the manifest that the host
//! reads before it runs any code, panics (caught; the instance then only gives errors), and tensors
//! that are not what was expected (errors). What it leaves to the author: a plugin does not link
//! libtorch, and leaves alone signals, the environment, the working directory and `exit`.
//! Configuration carries the name of an environment variable that holds a secret, never the secret.

#![expect(
    unsafe_code,
    reason = "the SDK is where the C ABI becomes safe Rust, so that no plugin needs to do it"
)]

pub use host_plugin_abi as abi;

mod batch;
mod cancel;
mod checkpoint;
mod checkpoint_sink;
mod config;
mod error;
mod event;
mod export;
pub mod fake;
mod host;
mod instance;
mod manifest;
mod metric;
mod observer;
mod out;
mod param_groups;
mod sized;
mod sum;
mod tensor;
mod watched_metric;

pub use batch::Batch;
pub use cancel::Cancel;
pub use checkpoint::{Checkpoint, CheckpointManifest, FileEntry};
pub use checkpoint_sink::CheckpointSink;
pub use config::NoConfig;
pub use error::{Error, Result};
pub use event::{DeliveryState, Event, StopReason};
pub use export::Plugin;
pub use host::{Host, Level};
pub use metric::{Metric, Values};
pub use observer::{Observer, Request, Requests};
pub use param_groups::{Group, Groups, GroupsRequest, Param, ParamGroups};
pub use sum::Sum;
pub use tensor::{Device, Dtype, Element, Elements, Tensor};
pub use watched_metric::WatchedMetric;

/// What `export_plugin!` writes into a plugin's crate; no part of the interface.
#[doc(hidden)]
pub mod __private {
    pub use crate::checkpoint_sink::vtable as checkpoint_sink;
    pub use crate::export::{Package, descriptor, enter, item};
    pub use crate::manifest::{Manifest, NO_CONFIG};
    pub use crate::metric::vtable as metric;
    pub use crate::observer::vtable as observer;
    pub use crate::param_groups::vtable as param_groups;
}
