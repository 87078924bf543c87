//! Plugins in C, compiled here, found, refused, loaded and called: with no SDK in between, so that
//! they can do what the SDK would not let them.

#![expect(clippy::unwrap_used, reason = "these are tests")]

mod checkpoint_sink;
mod fixture;
mod metric;
mod param_groups;
mod refusals;
mod search_path;
