//! The outer ring of tests: they run the real binary with real plugins.

mod abi_header;
mod architecture;
mod example_plugins;
