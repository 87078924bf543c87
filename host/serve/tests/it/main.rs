//! Tests with a real server, a real writer and real clients in one process.
#![allow(missing_docs)]

mod compare;
mod control;
mod fuzz;
mod proxy;
mod requests;
mod run;
mod tensorboard;
mod watch;
