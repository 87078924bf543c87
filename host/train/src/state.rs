use std::collections::BTreeMap;

use host_core::{Result, Step};
use tch::{Kind, Tensor};

use crate::checkpoint::{CheckpointView, Setup, Stored, TrainerState};
use crate::collective::Share;
use crate::data::{Batch, Fingerprint, Loader};
use crate::model::Decoder;
use crate::optimizer::Optimizer;
use crate::random::RandomState;

/// The state of a training run after a step. A checkpoint stores this state.
pub(crate) struct State {
    /// The number of finished steps.
    pub(crate) step: Step,
    pub(crate) model: Decoder,
    pub(crate) optimizer: Optimizer,
    pub(crate) loader: Loader,
    pub(crate) random: RandomState,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) setup: Setup,
}

impl State {
    /// Returns this process's share of each of the next `count` batches. A share has `size` sequences.
    ///
    /// # Errors
    /// Returns an error if the data cannot be read.
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

    /// Returns a zero, to which the losses of a step are added. It is a 0-d f64 tensor on the device.
    pub(crate) fn zero_loss(&self) -> Tensor {
        Tensor::zeros([], (Kind::Double, self.model.device))
    }

    /// Restores the optimizer and the random numbers from a checkpoint.
    ///
    /// # Errors
    /// Returns an error if the optimizer's state belongs to other parameters.
    pub(crate) fn restore(&mut self, stored: Stored) -> Result<()> {
        self.optimizer.restore(stored.optimizer)?;
        self.random.restore(&stored.random)
    }

    /// Returns the data to copy into a checkpoint of this step. The caller adds the state of the step
    /// boundary and the metrics of the evaluation.
    ///
    /// # Errors
    /// Returns an error if libtorch does not return the state of its random numbers.
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
