//! Tests that compile, find, reject, load and call plugins. Most plugins are written in C without the SDK, so
//! that they can do what the SDK prevents. The Rust plugins are in `panics`.

#![expect(clippy::unwrap_used, reason = "these are tests")]

mod checkpoint_sink;
mod elf;
mod files;
mod fixture;
mod gate;
mod metric;
mod observer;
mod panics;
mod param_groups;
mod process;
mod refusals;
mod search_path;
