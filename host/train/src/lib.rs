//! The training loop and everything that touches libtorch.
//!
//! The way in: [`Trainer::prepare`] reads a [`TrainConfig`] and the data, [`Trainer::params`] shows
//! what there is to group, [`Trainer::fit`] trains and talks to the other rooms by the ports of
//! `host-core` only. [`generate`] samples from a checkpoint.

mod config;
mod trainer;

pub use config::{OnNonfinite, Precision, SchedulerType, TrainConfig};
pub use trainer::{Generate, Outcome, Ports, Start, Trainer, generate};
