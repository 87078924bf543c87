use host_core::Result;
use tch::Tensor;

use crate::model::Param;

/// The processes that train together. Each calls the same functions in the same order.
///
/// A process is always alone so far, so that every sum is its own and every decision too. The calls stand
/// where processes will meet: at the batch, the gradients, the loss, the evaluation, the checkpoint and the
/// boundary between steps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Collective {
    share: Share,
}

/// A process's part of the work: every `of`-th piece, from the `rank`-th on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) rank: usize,
    pub(crate) of: usize,
}

impl Share {
    /// All of it.
    pub(crate) const WHOLE: Self = Self { rank: 0, of: 1 };

    /// Whether a piece, counted from 0, belongs to it.
    pub(crate) fn has(self, piece: usize) -> bool {
        piece % self.of == self.rank
    }
}

impl Collective {
    /// One process.
    pub(crate) const fn alone() -> Self {
        Self {
            share: Share::WHOLE,
        }
    }

    /// This process's share of every batch and of the evaluation.
    pub(crate) fn share(self) -> Share {
        self.share
    }

    /// Whether this process decides between steps and writes checkpoints.
    pub(crate) fn is_lead(self) -> bool {
        self.share.rank == 0
    }

    /// The sum of a number over all processes.
    pub(crate) fn sum_count(self, count: i64) -> Result<i64> {
        Ok(count)
    }

    /// The sum of a tensor over all processes.
    pub(crate) fn sum(self, tensor: Tensor) -> Result<Tensor> {
        Ok(tensor)
    }

    /// Makes every gradient the sum of its values in all processes.
    pub(crate) fn sum_gradients(self, _params: &[Param]) -> Result<()> {
        Ok(())
    }

    /// What each process has, in the order of their ranks, for the lead; nothing for the others.
    pub(crate) fn gather<T>(self, own: T) -> Result<Vec<T>> {
        Ok(vec![own])
    }

    /// What the lead has decided.
    pub(crate) fn agree<T>(self, decision: T) -> Result<T> {
        Ok(decision)
    }
}
