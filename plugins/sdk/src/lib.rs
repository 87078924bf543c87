//! Write plugins of the training host in safe Rust.
//!
//! A plugin is a shared library that the host loads while it starts. Implement one of four traits and
//! name the type in [`export_plugin!`]:
//!
//! | trait | what it does | called |
//! |---|---|---|
//! | [`Metric`] | measures the evaluation | for each evaluation, one thread at a time |
//! | [`ParamGroups`] | decides the optimizer's parameter groups | once, before the training |
//! | [`CheckpointSink`] | delivers checkpoints | for each checkpoint, on a thread of its own, where it may block |
//! | [`Observer`] | watches the run, and asks it for something | for each event, on the training's thread |
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
//! // A host without training, for tests: it drives the plugin through its C interface.
//! let mut metric = fake::Plugin::load(&PLUGIN).metric("{}")?;
//! let nll = fake::Tensor::f32(&[1, 3], &[0.5, 2.5, 1.0]);
//! metric.update(&fake::Batch::new().with("nll", nll))?;
//! assert_eq!(metric.compute()?["loss/worst_token"], 2.5);
//! # Ok::<_, fake::Failure>(())
//! ```
//!
//! `host plugin new NAME --kind metric --lang rust` writes the whole project, whose `Cargo.toml` has
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
//! and `plugins/README.md` in the host's sources is the author's guide: settings, state, errors,
//! versions, installing, and what to do when something goes wrong.
//!
//! # What the SDK takes care of
//!
//! - **The C ABI** ([`abi`]) in both directions, and the manifest that the host reads from the file
//!   before it runs any code of it.
//! - **Panics** are caught. The call fails with the panic's message, and the instance gives errors
//!   from then on, since its value may be half changed.
//! - **Errors** of a call ([`Error`]) reach the user as one line.
//! - **Settings** come as the type that a trait's `Config` names, read from JSON that the host has
//!   checked against the plugin's JSON Schema.
//! - **Tensors** ([`Tensor`]) are checked when they are read: another type, device or layout than
//!   expected is an error.
//! - **Versions**: a host may be older or newer than this crate; what it passes is read by the size
//!   that it says it has, and what it does not know is an error of that one call.
//!
//! # What it leaves to the author
//!
//! A plugin does not link libtorch, and leaves alone signals, the environment, the working directory,
//! panic hooks and `exit`. It joins its threads when it is dropped. It is built with
//! `panic = "unwind"`. Settings carry the name of an environment variable that holds a secret, never
//! the secret.

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
