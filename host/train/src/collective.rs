use host_core::Result;
use tch::Tensor;

use crate::model::Param;

/// The processes that train together. Each must call the same functions in the same order.
///
/// So far there is always exactly one process, so the functions return that process's own values and
/// decisions. The calls mark where several processes will exchange data. There are calls for the batch, the
/// gradients, the loss, the evaluation, the checkpoint and the boundary between steps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Collective {
    share: Share,
}

/// A process's part of the work: every `of`-th piece, starting with piece `rank`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) rank: usize,
    pub(crate) of: usize,
}

impl Share {
    /// All of the work.
    pub(crate) const WHOLE: Self = Self { rank: 0, of: 1 };

    /// Returns whether a piece, counted from 0, belongs to the share.
    pub(crate) fn has(self, piece: usize) -> bool {
        piece % self.of == self.rank
    }
}

impl Collective {
    /// Returns the collective of a single process.
    pub(crate) const fn alone() -> Self {
        Self {
            share: Share::WHOLE,
        }
    }

    /// Returns this process's share of every batch and of the evaluation.
    pub(crate) fn share(self) -> Share {
        self.share
    }

    /// Returns whether this process makes the decisions between steps and writes the checkpoints.
    pub(crate) fn is_lead(self) -> bool {
        self.share.rank == 0
    }

    /// Returns the sum of a number over all processes.
    pub(crate) fn sum_count(self, count: i64) -> Result<i64> {
        Ok(count)
    }

    /// Returns the sum of a tensor over all processes.
    pub(crate) fn sum(self, tensor: Tensor) -> Result<Tensor> {
        Ok(tensor)
    }

    /// Replaces every gradient with its sum over all processes.
    pub(crate) fn sum_gradients(self, _params: &[Param]) -> Result<()> {
        Ok(())
    }

    /// In the lead process, returns the values of all processes, sorted by rank. In the other processes,
    /// returns nothing.
    pub(crate) fn gather<T>(self, own: T) -> Result<Vec<T>> {
        Ok(vec![own])
    }

    /// Returns the decision of the lead process.
    pub(crate) fn agree<T>(self, decision: T) -> Result<T> {
        Ok(decision)
    }
}
