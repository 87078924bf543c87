//! Safe traits to write plugins with.
