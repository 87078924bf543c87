//! Output for people and programs: the terminal, plain lines, and JSON.

pub(crate) mod console;
pub(crate) mod event_json;
pub(crate) mod event_line;
pub(crate) mod json_stream;
pub(crate) mod meter;
pub(crate) mod narration;
pub(crate) mod number;
pub(crate) mod outlet;
pub(crate) mod printable;
pub(crate) mod printer;
pub(crate) mod progress;
pub(crate) mod sparkline;
pub(crate) mod table;
pub(crate) mod terminal;
pub(crate) mod warnings;
