//! Finds, inspects, loads and wraps plugins.
//!
//! The way of a plugin: a [`PluginSpec`] says which, a [`SearchPath`] finds the file and looks at it
//! without running anything ([`inspect`]), [`Plugin::load`] hashes, maps and asks it, and the
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
mod conformance;
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
mod process;
mod schema;
mod search_path;
mod secrets;
mod signal_name;
mod spec;
mod vtable;

pub use call_stats::{CallAccount, CallSummary};
pub use config::{PluginConfig, shell_word};
pub use conformance::{
    CheckOptions, Finding, Outcome, Test, TestReport, check_plugin, conformance_tests,
};
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
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub use process::fuzzing;
pub use process::{ServeCommand, serve};
pub use search_path::{Found, Listed, SearchPath};
pub use secrets::Secrets;
pub use spec::{PluginSpec, Target};
