use tch::{Device, Tensor};

use crate::torch_shim;

/// Sequences of equal length that the model processes at once.
#[derive(Debug)]
pub(crate) struct Batch {
    /// (batch, sequence) i64, on the device.
    pub(crate) tokens: Tensor,
}

impl Batch {
    /// Copies the sequences to the device; does not wait for queued work.
    pub(crate) fn new(sequences: &[Box<[u32]>], device: Device) -> Self {
        let tokens: Vec<i64> = sequences
            .iter()
            .flatten()
            .map(|&token| i64::from(token))
            .collect();
        let tokens = Tensor::from_slice(&tokens).view([sequences.len() as i64, -1]);
        Self {
            tokens: torch_shim::to_device(tokens, device),
        }
    }

    /// Returns the number of tokens that count toward the loss: all but the first of each sequence.
    pub(crate) fn counted(&self) -> i64 {
        let size = self.tokens.size();
        size[0] * (size[1] - 1)
    }
}
