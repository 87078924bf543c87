//! `mode = "process"`: an instance of a plugin in a child process of the host.
//!
//! The child is this very program, as `host plugin serve`. It loads the plugin as the host would,
//! from the bytes that the host has hashed, makes one instance, and calls it through the same ports;
//! the ports here pass the calls on. So the rest of the host does not notice, and a plugin that
//! crashes, hangs or ends its process takes nobody with it: the call fails, and the next one starts
//! the child again, a few times.
//!
//! A call is made on the caller's thread, by one message there and one back. The host waits with a
//! time limit, and sees a death at once: the socket closes.

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
