//! The training loop and everything that touches libtorch.
//!
//! Entry points: [`Trainer::prepare`] reads a [`TrainConfig`] and the data, [`Trainer::params`] returns the
//! parameters that are put into groups, and [`Trainer::fit`] trains and calls other crates only through the
//! ports of `host-core`. [`generate()`] samples from a checkpoint.

#![deny(unsafe_code)]

mod boundary;
mod checkpoint;
mod collective;
mod config;
mod data;
mod device;
mod evaluate;
mod fit;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzzing;
mod generate;
mod manifest;
mod memory;
mod model;
mod ngram;
mod observers;
mod optimizer;
mod out_of_memory;
#[cfg(all(test, feature = "peers"))]
mod parity;
mod ports;
mod prepare;
mod random;
mod rank_report;
mod ranks;
mod regular_file;
mod schedule;
mod skipped_data;
mod state;
mod step_log;
mod tokenize;
mod tokenizer;
mod torch_file;
#[path = "../torch_shim/mod.rs"]
mod torch_shim;
mod trainer;
mod training;
mod vocabulary;
mod weight_files;
mod weights;

pub use checkpoint::global_batch;
pub use collective::Collective;
pub use config::{OnNonfinite, Precision, SchedulerType, TrainConfig};
pub use generate::{Generate, generate};
pub use manifest::{read as read_manifest, verify as verify_checkpoint};
pub use observers::Observers;
pub use ports::{BoundaryPorts, CheckpointPorts, Outcome, Ports};
pub use prepare::Start;
pub use ranks::{Facts, Launch, Limits, Ranks, StoreServer};
pub use tokenize::{TokenFile, TokenizeNews, VOCAB_SIZE, tokenize};
pub use trainer::Trainer;

use std::path::Path;

/// Makes the allocator return freed memory to the system. Call this in processes that do not train: training
/// keeps freed memory, because otherwise each step would fault it in again.
pub fn return_freed_memory() {
    torch_shim::return_memory();
}

/// Returns whether a folder contains weights in any format, including unsupported ones.
pub fn has_weights(folder: &Path) -> bool {
    folder.is_dir() && !matches!(weight_files::WeightFiles::find(folder), Ok(None))
}

/// Returns whether `model` is the name of a built-in preset.
pub fn is_preset(model: &str) -> bool {
    model::ModelConfig::preset(model).is_some()
}
