//! The run store: one writer, many readers.
