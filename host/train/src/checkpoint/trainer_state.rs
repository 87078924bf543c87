use std::collections::BTreeMap;

use host_core::{Asked, Step};
use serde::{Deserialize, Serialize};

use super::Setup;
use crate::data::{Fingerprint, LoaderCursor};

/// `trainer/state.json`: the part of a run's state that is not tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct TrainerState {
    /// Version of the format that this file and the other files in its folder have.
    pub(super) format: u32,
    pub(crate) step: Step,
    pub(crate) data: LoaderCursor,
    /// Identifies the data: a run cannot be resumed with different data.
    #[serde(flatten)]
    pub(crate) fingerprint: Fingerprint,
    /// The settings that the state depends on; absent in checkpoints of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) setup: Option<Setup>,
    /// Number of sequences in a step of a training that has run on several ranks. The dropout of such a training does
    /// not depend on the number of ranks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) global_batch: Option<u64>,
    /// Factor for the schedule's learning rate. Clients can set it, and observers can lower it.
    pub(crate) learning_rate_factor: f64,
    /// Pending requests of observers.
    pub(crate) asked: Vec<Asked>,
}

pub(super) const FORMAT: u32 = 2;

impl TrainerState {
    /// Creates the state at a step, without requests of observers.
    pub(crate) fn new(
        step: Step,
        data: LoaderCursor,
        fingerprint: Fingerprint,
        setup: Setup,
        global_batch: Option<u64>,
    ) -> Self {
        Self {
            format: FORMAT,
            step,
            data,
            fingerprint,
            setup: Some(setup),
            global_batch,
            learning_rate_factor: 1.0,
            asked: Vec::new(),
        }
    }
}

/// The state between two steps, as stored in a checkpoint.
pub(crate) struct BoundaryState {
    pub(crate) learning_rate_factor: f64,
    /// The observers' states by label.
    pub(crate) observers: BTreeMap<String, Vec<u8>>,
    /// Pending requests of observers.
    pub(crate) asked: Vec<Asked>,
}
