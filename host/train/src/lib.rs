//! The training loop and everything that touches libtorch.
//!
//! The way in: [`Trainer::prepare`] reads a [`TrainConfig`] and the data, [`Trainer::params`] shows
//! what there is to group, [`Trainer::fit`] trains and talks to the other rooms by the ports of
//! `host-core` only. [`generate`] samples from a checkpoint.

#![deny(unsafe_code)]

mod activation;
mod checkpoint;
mod config;
mod data;
mod device;
mod evaluate;
mod fit;
mod flops;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzzing;
mod generate;
mod memory;
mod model;
mod model_config;
mod ngram;
mod observers;
mod optimizer;
mod out_of_memory;
#[cfg(all(test, feature = "peers"))]
mod parity;
mod precision;
mod random;
mod regular_file;
mod schedule;
mod step_log;
mod tokenize;
mod tokenizer;
mod torch_file;
#[path = "../torch_shim/mod.rs"]
mod torch_shim;
mod trainer;
mod vocabulary;
mod weight_files;
mod weights;

pub use checkpoint::{read_manifest, verify as verify_checkpoint};
pub use config::{OnNonfinite, Precision, SchedulerType, TrainConfig};
pub use generate::{Generate, generate};
pub use observers::Observers;
pub use tokenize::{TokenFile, TokenizeNews, VOCAB_SIZE, tokenize};
pub use trainer::{Outcome, Ports, Start, Trainer};

use std::path::Path;

use tch::{Device, Tensor};

/// Makes a process that does not train return freed memory to the system. A training keeps it, because
/// each step would fault it in again.
pub fn return_freed_memory() {
    torch_shim::return_memory();
}

/// Whether a folder has weights, in whatever format.
pub fn has_weights(folder: &Path) -> bool {
    folder.is_dir() && !matches!(weight_files::WeightFiles::find(folder), Ok(None))
}

/// Whether a model's name is that of a shape that is built in.
pub fn is_preset(model: &str) -> bool {
    model_config::ModelConfig::preset(model).is_some()
}

/// Sequences of one length as a batch: (batch, sequence) i64 on the device, which need not have done
/// what it was given before.
fn batch(sequences: &[Box<[u32]>], device: Device) -> Tensor {
    let tokens: Vec<i64> = sequences
        .iter()
        .flatten()
        .map(|&token| i64::from(token))
        .collect();
    let tokens = Tensor::from_slice(&tokens).view([sequences.len() as i64, -1]);
    torch_shim::to_device(tokens, device)
}
