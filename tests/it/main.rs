//! The outer ring of tests: they run the real binary with real plugins.

mod support;

mod abi;
mod architecture;
mod configuration;
mod control;
mod damage;
mod dashboard;
mod deliver;
mod example_plugins;
mod full_disk;
mod groups;
mod grpc;
mod guide;
mod hostile;
mod hub_git;
mod hub_model;
mod isolation;
mod kill;
mod kill_while_pushing;
mod memory;
mod metric_inputs;
mod misbehaving;
mod nonfinite;
mod observers;
mod plugin_check;
mod plugin_lock;
mod policies;
mod preflight;
mod resume;
mod run;
mod runs;
mod scaffold;
mod secrets;
mod terminal;
mod tokenize;
