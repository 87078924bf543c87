use std::collections::BTreeMap;

use host_core::{Asked, Step};
use serde::{Deserialize, Serialize};

use super::Setup;
use crate::data::{Fingerprint, LoaderCursor};

/// `trainer/state.json`: what is no tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct TrainerState {
    /// Of this file and its neighbours.
    pub(super) format: u32,
    pub(crate) step: Step,
    pub(crate) data: LoaderCursor,
    /// With other data a training cannot go on.
    #[serde(flatten)]
    pub(crate) fingerprint: Fingerprint,
    /// The settings that the state depends on; absent where an older version made the checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) setup: Option<Setup>,
    /// What the schedule's learning rate is multiplied by: what a client set, and observers lowered.
    pub(crate) learning_rate_factor: f64,
    /// What observers asked for and did not get yet.
    pub(crate) asked: Vec<Asked>,
}

pub(super) const FORMAT: u32 = 2;

impl TrainerState {
    /// The state at a step before observers asked for anything.
    pub(crate) fn new(
        step: Step,
        data: LoaderCursor,
        fingerprint: Fingerprint,
        setup: Setup,
    ) -> Self {
        Self {
            format: FORMAT,
            step,
            data,
            fingerprint,
            setup: Some(setup),
            learning_rate_factor: 1.0,
            asked: Vec::new(),
        }
    }
}

/// What a checkpoint keeps of the boundary between steps.
pub(crate) struct BoundaryState {
    pub(crate) learning_rate_factor: f64,
    /// The observers' states by label.
    pub(crate) observers: BTreeMap<String, Vec<u8>>,
    /// What observers asked for and did not get yet.
    pub(crate) asked: Vec<Asked>,
}
