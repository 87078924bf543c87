//! The run store: one writer, many readers, one SQLite file per run.
//!
//! A run's events are stored in `events.db` in the order of their sequence numbers, each exactly once. Every
//! event is first stored as a row. Metric events that name the same series in the same order form a *frame*.
//! When a frame has a thousand rows, they are folded into one *chunk*, which stores the places (sequence
//! number, step, time) of its rows once and the values of each series as a column. This representation serves
//! two kinds of read. To read the history of a series, only that series' columns are read. To read all events
//! after a cursor, the folded events are reassembled.
//!
//! There is no server, no async and no process-wide state: a [`Reader`] and the writer can be in different
//! processes.
#![forbid(unsafe_code)]

mod chunk;
mod commits;
mod comparison;
mod condition;
mod config_difference;
mod copy;
mod delivery;
mod downsample;
mod event_row;
mod fault;
mod frame;
mod history;
mod lock;
mod migration;
mod page;
mod reader;
mod run_list;
mod run_row;
mod schema;
mod series;
mod setting;
mod supersession;
#[cfg(test)]
mod tests;
mod writer;
mod writer_thread;

pub use commits::Commits;
pub use comparison::{Curve, MetricComparison, RunMetric};
pub use condition::{Loss, set_aside_stores};
pub use config_difference::{ConfigDifference, config_differences};
pub use delivery::Delivery;
pub use history::Point;
pub use reader::Reader;
pub use run_list::RunList;
pub use run_row::{Progress, RunRecord, RunRow, RunStatus};
pub use series::Series;
pub use setting::settings;
pub use writer::{Journal, Writer, sync_log};
pub use writer_thread::{Callbacks, OnCommit, OnFailure, WriterThread};

/// The store's file in a run folder.
pub const FILE: &str = "events.db";
