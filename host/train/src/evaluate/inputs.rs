use std::collections::BTreeMap;
use std::marker::PhantomData;

use host_core::{Device, Dtype, Need, TensorView};
use tch::{Kind, Tensor};

use super::ByteTable;
use crate::data::Batch;
use crate::model::Decoder;

/// The inputs of the metrics for one batch. The loss is computed for every batch. Every other input is
/// computed only once, when a metric first needs it. An input is copied to the CPU only once, when a metric
/// first needs the copy.
pub(super) struct Inputs<'a> {
    /// 0-d f64, on the model's device.
    pub(super) loss_sum: Tensor,
    pub(super) token_count: i64,
    /// (batch, time, vocabulary), of the model's type.
    logits: Tensor,
    /// (batch, time) i64.
    labels: Tensor,
    /// (batch, time), of the logits' type.
    nll: Tensor,
    /// (batch, sequence) i64.
    tokens: Tensor,
    byte_lengths: &'a ByteTable,
    /// The computed inputs, on the device that computed them.
    computed: BTreeMap<Need, Tensor>,
    /// The inputs on the device where a metric reads them. In the key, `true` is the model's device, and
    /// `false` is the CPU.
    shown: BTreeMap<(Need, bool), Shown>,
    /// The inputs that were computed, in the order of their computation.
    #[cfg(test)]
    pub(super) computations: Vec<Need>,
}

impl<'a> Inputs<'a> {
    /// Runs the model over a batch.
    pub(super) fn new(model: &Decoder, batch: &Batch, byte_lengths: &'a ByteTable) -> Self {
        let tokens = &batch.tokens;
        let logits = model.logits(tokens);
        let labels = tokens.narrow(1, 1, tokens.size()[1] - 1);
        let nll = logits
            .view([-1, model.config.shape.vocab_size])
            .cross_entropy_loss::<Tensor>(
                &labels.reshape([-1]),
                None,
                tch::Reduction::None,
                -100,
                0.0,
            )
            .view_as(&labels);
        Self {
            loss_sum: nll.sum(Kind::Double),
            token_count: batch.counted(),
            logits,
            labels,
            nll,
            tokens: tokens.shallow_clone(),
            byte_lengths,
            computed: BTreeMap::new(),
            shown: BTreeMap::new(),
            #[cfg(test)]
            computations: Vec::new(),
        }
    }

    /// Returns the inputs that a metric needs. They are on the model's device if `reads_cuda` is true, else
    /// on the CPU.
    pub(super) fn views(
        &mut self,
        needs: &[Need],
        reads_cuda: bool,
    ) -> Vec<(Need, TensorView<'_>)> {
        for &need in needs {
            if !self.computed.contains_key(&need) {
                let tensor = self.compute(need);
                self.computed.insert(need, tensor);
            }
            let place = if reads_cuda {
                self.labels.device()
            } else {
                tch::Device::Cpu
            };
            let tensor = &self.computed[&need];
            self.shown
                .entry((need, reads_cuda))
                .or_insert_with(|| Shown::new(tensor.to_device(place)));
        }
        needs
            .iter()
            .map(|&need| (need, self.shown[&(need, reads_cuda)].view()))
            .collect()
    }

    fn compute(&mut self, need: Need) -> Tensor {
        #[cfg(test)]
        self.computations.push(need);
        match need {
            Need::LossSum => self.loss_sum.shallow_clone(),
            Need::TokenCount => Tensor::from(self.token_count),
            Need::Nll => self.nll.to_kind(Kind::Float),
            Need::Labels => self.labels.contiguous(),
            Need::Argmax => self.logits.argmax(-1, false),
            Need::LabelRank => label_rank(&self.logits, &self.labels),
            Need::ByteCount => self.byte_lengths.count(&self.tokens),
            Need::Logits => self.logits.to_kind(Kind::Float),
        }
    }
}

/// Returns the rank of each label. The rank is the number of tokens that come before the label. A token comes
/// before the label if it is more likely, or if it is equally likely and has a lower id. The token that
/// argmax picks has rank 0. A NaN ranks before all numbers, so that a broken model never counts as correct.
fn label_rank(logits: &Tensor, labels: &Tensor) -> Tensor {
    let vocab = logits.size()[logits.dim() - 1];
    let labels = labels.unsqueeze(-1);
    let of_label = logits.gather(-1, &labels, false);
    let ids = Tensor::arange(vocab, (Kind::Int64, logits.device()));
    let tied = logits
        .eq_tensor(&of_label)
        .logical_and_(&ids.ge_tensor(&labels));
    let behind = logits.lt_tensor(&of_label).logical_or_(&tied);
    vocab - behind.sum_dim_intlist(-1, false, Kind::Int64)
}

/// A tensor in the form in which a metric receives it.
struct Shown {
    tensor: Tensor,
    shape: Vec<i64>,
    strides: Vec<i64>,
}

impl Shown {
    fn new(tensor: Tensor) -> Self {
        if let tch::Device::Cuda(index) = tensor.device() {
            tch::Cuda::synchronize(index as i64);
        }
        Self {
            shape: tensor.size(),
            strides: tensor.stride(),
            tensor,
        }
    }

    fn view(&self) -> TensorView<'_> {
        TensorView {
            data: self.tensor.data_ptr(),
            shape: &self.shape,
            strides: &self.strides,
            dtype: match self.tensor.kind() {
                Kind::Double => Dtype::F64,
                Kind::Int64 => Dtype::I64,
                _ => Dtype::F32,
            },
            device: match self.tensor.device() {
                tch::Device::Cuda(index) => Device::Cuda(index as u32),
                _ => Device::Cpu,
            },
            owner: PhantomData,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equally_likely_tokens_are_ranked_by_id_as_in_argmax() {
        let logits = Tensor::from_slice(&[1.0f32, 3.0, 3.0, 0.0, 3.0]);
        let logits = logits.expand([5, -1], false).unsqueeze(0);
        let labels = Tensor::from_slice(&[0i64, 1, 2, 3, 4]).unsqueeze(0);
        let ranks: Vec<i64> = Vec::try_from(label_rank(&logits, &labels).view(-1)).expect("i64");
        assert_eq!(ranks, [3, 0, 1, 4, 2]);
        assert_eq!(logits.argmax(-1, false).int64_value(&[0, 0]), 1);
    }

    #[test]
    fn labels_never_have_rank_0_among_nans() {
        let logits = Tensor::from_slice(&[f32::NAN, 1.0, 2.0, f32::NAN, f32::NAN, f32::NAN]);
        let labels = Tensor::from_slice(&[2i64, 0]).view([1, 2]);
        let ranks = label_rank(&logits.view([1, 2, 3]), &labels);
        let ranks: Vec<i64> = Vec::try_from(ranks.view(-1)).expect("i64");
        assert_eq!(ranks, [1, 3]);
    }
}
