//! The gRPC service over run stores, and a client of it.
//!
//! The server reads the store and nothing else: it never touches the loop, and it holds no state that a
//! client could lose. A watcher is a cursor into the run's log; it reads pages at its own pace from
//! disk, so a slow one costs the run nothing.
//!
//! This is the only room that knows tokio and tonic, and neither shows outside: the server lives on
//! threads of its own behind [`Serving`], the client's calls block.
#![forbid(unsafe_code)]

mod client;
mod compare;
mod feed;
mod from_proto;
mod server;
mod source;
mod tensorboard;
mod to_proto;
mod tracker;
mod watch;

pub use client::{Client, Watch, WatchEnd};
pub use server::{Server, Serving};
pub use source::Source;
