//! Plugins, compiled here, found, refused, loaded and called. Most are in C, with no SDK in between,
//! so that they can do what the SDK would not let them; `panics` has the one that is in Rust.

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
