//! The gRPC service over run stores, and a client of it.
//!
//! The server reads the store; what it asks of the loop goes through one bounded queue, for those with
//! the control token. It holds no state that a client could lose. A watcher is a cursor into the run's log; it reads pages at its own pace from
//! disk, so a slow one costs the run nothing.
//!
//! This is the only room that knows tokio and tonic, and neither shows outside: the server lives on
//! threads of its own behind [`Serving`], the client's calls block.
#![forbid(unsafe_code)]

mod access;
mod answer;
mod budget;
mod call;
mod client;
mod compare;
mod connection;
mod control;
mod from_proto;
mod gate;
mod guesses;
mod health;
mod limits;
mod request_body;
mod server;
mod source;
mod tensorboard;
mod tls;
mod to_proto;
mod tracker;
mod watch;

pub use access::{Access, Token};
pub use client::{Client, Remote, Watch, WatchEnd};
pub use limits::Limits;
pub use server::{Server, Serving};
pub use source::{ADDRESS_FILE, Source};
pub use tensorboard::HOST_SETTINGS;
pub use tls::{Fingerprint, SelfSigned, TlsIdentity, Trust};
