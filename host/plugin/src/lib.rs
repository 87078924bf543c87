//! Finds, inspects, loads and wraps plugins.
//!
//! The life of a plugin begins with a [`PluginSpec`], which names it. A [`SearchPath`] finds its file and
//! inspects the file without running any of its code ([`inspect()`]). [`Plugin::load`] hashes and maps the
//! file, and reads the plugin's description. The plugin then creates instances. The rest of the host accesses
//! instances only through the ports of `host_core`.
//!
//! An instance lives in the host's process or in a child process ([`Mode`]). The ports are the same for both.
//! A child process isolates the host from crashes and endless calls.
//!
//! Limits: a library is never unloaded, so every address from it stays valid. A plugin is not sandboxed in
//! either mode. The inspection before the load detects mistakes, not malice. It cannot detect what a library
//! does during the load. Only a child process isolates the host from a crash in a constructor or in the
//! resolver of an indirect function.

#![expect(
    unsafe_code,
    reason = "plugins are called through pointers; the other crates see only safe ports"
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
// For the benchmark of the plugin boundary.
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

/// Internals for the conformance suite, which calls plugins in ways that are impossible through a port. Not
/// for other use.
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
