//! Finds, inspects, loads and wraps plugins.
//!
//! The way of a plugin: a [`PluginSpec`] says which, a [`SearchPath`] finds the file and looks at it
//! without running anything ([`inspect()`]), [`Plugin::load`] hashes, maps and asks it, and the
//! plugin then makes instances that the rest of the host knows only as the ports of `host_core`.
//!
//! An instance lives in the host's process or in a child of it ([`Mode`]), behind the same ports: the
//! child contains crashes and calls without end.
//!
//! What is absent: a library is never unloaded, so every address it gave stays good; and a plugin is
//! not confined, wherever it runs. The look before the load catches mistakes, not malice, and it cannot
//! see what a library does while it is loaded: a constructor, or the resolver of an indirect function,
//! that crashes is contained by a child alone.

#![expect(
    unsafe_code,
    reason = "plugins are met by pointers; every other room sees safe ports"
)]

mod call_stats;
mod checkpoint_sink;
mod config;
mod defaults;
mod dynamic;
mod event;
mod guard;
mod host_api;
mod image;
mod inspect;
mod instance;
mod library;
mod lock;
mod log;
mod manifest;
mod metric;
mod mode;
mod observer;
mod out;
mod param_groups;
mod path_setting;
mod plugin;
mod policy;
mod process;
mod schema;
mod search_path;
mod secrets;
mod signal_name;
mod spec;
mod vtable;

pub use call_stats::{CallAccount, CallSummary};
pub use config::{PluginConfig, shell_word};
pub use event::EventKind;
pub use guard::{
    ProcessChange, ProcessWatch, end_process, guard_process, on_exit_by_plugin, process_changes,
};
pub use host_core::OnError;
pub use inspect::inspect;
pub use lock::{LockedPlugin, PluginLock};
pub use log::{Level, LogRecord, set_log};
pub use manifest::{PluginKind, PluginManifest, is_plugin_id};
// For the benchmark of the boundary.
#[doc(hidden)]
pub use metric::with_batch;
pub use mode::Mode;
pub use plugin::Plugin;
pub use policy::Policy;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub use process::fuzzing;
pub use process::{ServeCommand, serve};
pub use search_path::{Found, Listed, SearchPath};
pub use secrets::Secrets;
pub use spec::{PluginSpec, Target};

/// The parts by which the conformance suite calls a plugin as no port would. Nothing else uses them.
#[doc(hidden)]
pub mod raw {
    pub use crate::checkpoint_sink::{CheckpointSinkFunctions, fetched, finding, receipt};
    pub use crate::config::resolved;
    pub use crate::event::with_view;
    pub use crate::guard::{FloatingPoint, ProcessState, environment, locale, umask};
    pub use crate::host_api::{host_api, message_of, take_error};
    pub use crate::image::Image;
    pub use crate::library::{Library, description, open};
    pub use crate::metric::MetricFunctions;
    pub use crate::observer::{ObserverFunctions, Requests, StateFunctions};
    pub use crate::out::Output;
    pub use crate::param_groups::{Groups, ParamGroupsFunctions, param};
    pub use crate::schema::compile as compile_schema;
    pub use crate::signal_name::signal_name;
}
