//! The gRPC service for run stores, and its client.
//!
//! The server reads the store. Requests to the training loop need the control token and pass through one
//! bounded queue. All data that clients read is on disk, so a client loses nothing if the server restarts. A
//! watcher is a cursor into the run's log and reads pages from disk at its own pace, so a slow watcher costs
//! the run nothing.
//!
//! Only this crate uses tokio and tonic, and neither is part of its API: the server runs on its own threads
//! behind [`Serving`], and the client's calls block.
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
