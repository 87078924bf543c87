use std::collections::BTreeMap;

use host_core::{Result, Step};
use tch::{Kind, Tensor};

use crate::checkpoint::{CheckpointView, Setup, Stored, TrainerState};
use crate::collective::Share;
use crate::data::{Batch, Fingerprint, Loader};
use crate::model::Decoder;
use crate::optimizer::Optimizer;
use crate::random::RandomState;

/// What a training is made of at a step, and what a checkpoint keeps of it.
pub(crate) struct State {
    /// The steps done.
    pub(crate) step: Step,
    pub(crate) model: Decoder,
    pub(crate) optimizer: Optimizer,
    pub(crate) loader: Loader,
    pub(crate) random: RandomState,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) setup: Setup,
}

impl State {
    /// This share of the next `count` batches: `size` sequences each.
    ///
    /// # Errors
    /// The data cannot be read.
    pub(crate) fn next_batches(
        &mut self,
        count: u64,
        size: usize,
        share: Share,
    ) -> Result<Vec<Batch>> {
        let device = self.model.device;
        (0..count)
            .map(|_| Ok(Batch::new(&self.loader.next(size, share)?, device)))
            .collect()
    }

    /// Where a step's loss is added up: 0-d f64 on the device.
    pub(crate) fn zero_loss(&self) -> Tensor {
        Tensor::zeros([], (Kind::Double, self.model.device))
    }

    /// Takes over optimizer and random numbers of a checkpoint.
    ///
    /// # Errors
    /// The optimizer's state is of other parameters.
    pub(crate) fn restore(&mut self, stored: Stored) -> Result<()> {
        self.optimizer.restore(stored.optimizer)?;
        self.random.restore(&stored.random)
    }

    /// What a checkpoint of this step copies, but for what the boundary and the evaluation add.
    ///
    /// # Errors
    /// libtorch does not give the state of its random numbers.
    pub(crate) fn view(&self) -> Result<CheckpointView<'_>> {
        let params = self.model.params.iter();
        Ok(CheckpointView {
            state: TrainerState::new(
                self.step,
                self.loader.cursor(),
                self.fingerprint.clone(),
                self.setup.clone(),
            ),
            model: params
                .map(|param| (param.name.as_str(), &param.tensor))
                .collect(),
            optimizer: self.optimizer.state(),
            random: self.random.take()?,
            buffer: self.loader.buffer(),
            observers: BTreeMap::new(),
            metrics: Vec::new(),
        })
    }
}
