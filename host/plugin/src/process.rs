//! `mode = "process"`: an instance of a plugin in a child process of the host.
//!
//! The child's program is `host-plugin-serve`, or `host plugin serve` if that program is missing. The child
//! loads the plugin, as the host would, from the bytes that the host has hashed. It creates one instance and
//! calls this instance through the same traits. This module implements the traits by sending each call to the
//! child, so the rest of the host needs no special case. A plugin that crashes, hangs or exits fails only the
//! current call. The next call restarts the child, up to a limit.
//!
//! A call runs on the caller's thread, with one message in each direction. The host waits with a time limit,
//! and detects the child's death immediately because the socket closes.

mod channel;
mod checkpoint_sink;
mod child;
#[cfg(feature = "fuzz")]
pub mod fuzzing;
mod metric;
mod observer;
mod param_groups;
mod protocol;
mod remote;
mod serve;
mod spawner;

pub(crate) use checkpoint_sink::RemoteCheckpointSink;
pub use child::ServeCommand;
pub(crate) use child::{Launch, Limits};
pub(crate) use metric::RemoteMetric;
pub(crate) use observer::RemoteObserver;
pub(crate) use param_groups::RemoteParamGroups;
pub(crate) use remote::Remote;
pub use serve::serve;
