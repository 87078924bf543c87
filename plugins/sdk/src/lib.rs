//! Write plugins for the training host in safe Rust.
//!
//! A plugin is a shared library that the host loads at startup. Implement one of four traits and pass
//! the type to [`export_plugin!`]:
//!
//! | trait | purpose | called |
//! |---|---|---|
//! | [`Metric`] | computes values from evaluation batches | for each evaluation, on one thread at a time |
//! | [`ParamGroups`] | assigns parameters to the optimizer's groups | once, before training |
//! | [`CheckpointSink`] | delivers checkpoints | for each checkpoint, on its own thread; may block |
//! | [`Observer`] | receives events and can send requests | for each event, on the training thread |
//!
//! ```standalone_crate
//! use host_plugin_sdk::{Batch, Error, Host, Metric, NoConfig, Result, Values, export_plugin, fake};
//!
//! /// The loss of the evaluation's worst token.
//! struct WorstToken(f32);
//!
//! impl Metric for WorstToken {
//!     type Config = NoConfig;
//!
//!     fn create(_config: NoConfig, _host: Host) -> Result<Self> {
//!         Ok(Self(0.0))
//!     }
//!     fn reset(&mut self) {
//!         self.0 = 0.0;
//!     }
//!     fn update(&mut self, batch: &Batch<'_>) -> Result<()> {
//!         self.0 = batch.tensor("nll")?.iter_f32()?.fold(self.0, f32::max);
//!         Ok(())
//!     }
//!     fn export_state(&self) -> Vec<u8> {
//!         self.0.to_le_bytes().to_vec()
//!     }
//!     fn merge_state(&mut self, state: &[u8]) -> Result<()> {
//!         let state = state.try_into().map_err(|_| Error::new("a state has 4 bytes"))?;
//!         self.0 = self.0.max(f32::from_le_bytes(state));
//!         Ok(())
//!     }
//!     fn compute(&self, values: &mut Values<'_>) -> Result<()> {
//!         values.put_f64("loss/worst_token", self.0.into())
//!     }
//! }
//!
//! export_plugin! {
//!     description: "The loss of the worst token",
//!     metric: WorstToken,
//!     needs: ["nll"],
//! }
//!
//! // A host without training, for tests. It calls the plugin through its C interface.
//! let mut metric = fake::Plugin::load(&PLUGIN).metric("{}")?;
//! let nll = fake::Tensor::f32(&[1, 3], &[0.5, 2.5, 1.0]);
//! metric.update(&fake::Batch::new().with("nll", nll))?;
//! assert_eq!(metric.compute()?["loss/worst_token"], 2.5);
//! # Ok::<_, fake::Failure>(())
//! ```
//!
//! `host plugin new NAME --kind metric --lang rust` creates a complete project. Its `Cargo.toml` contains
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
//! The author's guide is `plugins/README.md` in the host's repository. It covers settings, state, errors,
//! versions, installation and troubleshooting.
//!
//! # What the SDK handles
//!
//! - **The C ABI** ([`abi`]) in both directions, and the manifest, which the host reads from the file
//!   before it runs any code of the plugin.
//! - **Panics** are caught. The call fails with the panic's message. All later calls of the instance fail,
//!   because the instance can be inconsistent.
//! - **Errors** of a call ([`Error`]) are shown to the user as one line.
//! - **Settings** are deserialized into the trait's `Config` type from JSON that the host has checked
//!   against the plugin's JSON Schema.
//! - **Tensors** ([`Tensor`]) are checked when they are read. An unexpected type, device or layout is an
//!   error.
//! - **Versions**: a host can be older or newer than this crate. The SDK reads no struct of the host beyond
//!   the size that the host declares in it. If the host lacks a function, only the call that needs it fails.
//!
//! # What the author must ensure
//!
//! - The plugin does not link libtorch and does not call `exit`. It does not change signal handlers, the
//!   environment, the working directory or panic hooks.
//! - An instance joins its threads when it is dropped.
//! - The plugin is built with `panic = "unwind"`.
//! - Settings contain no secret, only the name of the environment variable that contains the secret.

#![expect(
    unsafe_code,
    reason = "the SDK wraps the C ABI in safe Rust, so that plugins need no unsafe code"
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
mod fetch;
mod host;
mod instance;
mod manifest;
mod metric;
mod observer;
mod out;
mod param_groups;
mod preflight;
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
pub use fetch::{Fetch, Fetched};
pub use host::{Host, Level};
pub use metric::{Metric, Values};
pub use observer::{Observer, Request, Requests};
pub use param_groups::{Group, Groups, GroupsRequest, Param, ParamGroups};
pub use preflight::Preflight;
pub use sum::Sum;
pub use tensor::{Device, Dtype, Element, Elements, Tensor};
pub use watched_metric::WatchedMetric;

/// Items that the code generated by `export_plugin!` uses. Not part of the public API.
#[doc(hidden)]
pub mod __private {
    pub use crate::checkpoint_sink::vtable as checkpoint_sink;
    pub use crate::export::{Package, descriptor, enter, item};
    pub use crate::manifest::{Manifest, NO_CONFIG};
    pub use crate::metric::vtable as metric;
    pub use crate::observer::vtable as observer;
    pub use crate::param_groups::vtable as param_groups;
}
