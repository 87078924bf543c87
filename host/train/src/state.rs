use std::collections::BTreeMap;

use host_core::{Error, ErrorKind, Result, Step};
use tch::{Kind, Tensor, no_grad_guard};

use crate::checkpoint::{CheckpointView, Setup, Stored, TrainerState};
use crate::collective::{Collective, Share};
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
    /// Sequences per step, if a resume on another number of ranks must keep them.
    pub(crate) global_batch: Option<u64>,
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

    /// Replaces weights, optimizer and step with those of the lead.
    ///
    /// # Errors
    /// Returns an error if another rank fails.
    pub(crate) fn follow_lead(&mut self, collective: &Collective) -> Result<()> {
        let _guard = no_grad_guard();
        let params = self.model.params.iter().map(|param| &param.tensor);
        collective.broadcast(params, "the broadcast of the weights")?;
        let optimizer = self.optimizer.state();
        let optimizer = optimizer.iter().map(|(_, tensor)| tensor);
        collective.broadcast(optimizer, "the broadcast of the optimizer's state")?;
        self.step = collective.agree(self.step, "the broadcast of the step")?;
        Ok(())
    }

    /// Checks that all ranks have the same weights.
    ///
    /// # Errors
    /// Returns an error that names a rank with other weights. All ranks return the same error.
    pub(crate) fn compare_weights(&self, collective: &Collective) -> Result<()> {
        if collective.share() == Share::WHOLE {
            return Ok(());
        }
        let params = self.model.params.iter();
        let sums: Vec<i64> = params.map(|param| checksum(&param.tensor)).collect();
        let all = collective.gather(sums, "the comparison of the weights")?;
        let Some(rank) = all.iter().position(|sums| *sums != all[0]) else {
            return Ok(());
        };
        let params = all[rank].iter().zip(&all[0]).zip(&self.model.params);
        let names = params
            .filter(|((own, lead), _)| own != lead)
            .map(|(_, param)| &*param.name);
        let message = format!(
            "the weights of {} differ from those of rank 0 at step {}: {}",
            collective.name(rank),
            self.step,
            names.take(3).collect::<Vec<_>>().join(", ")
        );
        Err(Error::new(ErrorKind::System, message).hint(
            "use the same kind of processor or GPU for all ranks; then resume from the last checkpoint",
        ))
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
                self.global_batch,
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

/// Returns the sum of a tensor's bits, read as integers, modulo 2^64.
fn checksum(tensor: &Tensor) -> i64 {
    let bits = match tensor.kind() {
        Kind::Double => Kind::Int64,
        _ => Kind::Int,
    };
    let bits = tensor.detach().view_dtype(bits);
    bits.sum(Kind::Int64).int64_value(&[])
}
