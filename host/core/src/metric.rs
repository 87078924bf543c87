use std::ffi::c_void;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Result};

/// An input that a metric can request. Shapes are those of one evaluation batch. `time` is one less than the
/// sequence length, because the first token is not predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Need {
    /// Sum of the negative log likelihoods of all predicted tokens, in nats: 0-d f64.
    LossSum,
    /// Number of predicted tokens: 0-d i64.
    TokenCount,
    /// Negative log likelihood of each predicted token, in nats: (batch, time) f32.
    Nll,
    /// Number of UTF-8 bytes of the predicted tokens: 0-d i64.
    ByteCount,
    /// Ids of the predicted tokens: (batch, time) i64.
    Labels,
    /// The most likely token: (batch, time) i64.
    Argmax,
    /// The label's rank among all tokens, from 0 for the most likely: (batch, time) i64. Equally likely
    /// tokens are ranked by id, so rank 0 is the token that argmax picks.
    LabelRank,
    /// All logits: (batch, time, vocabulary) f32. Large.
    Logits,
}

impl Need {
    /// All needs, in the order of the ABI's table.
    pub const ALL: [Self; 8] = [
        Self::LossSum,
        Self::TokenCount,
        Self::Nll,
        Self::ByteCount,
        Self::Labels,
        Self::Argmax,
        Self::LabelRank,
        Self::Logits,
    ];

    /// Returns the name in manifests and on the wire.
    #[inline]
    pub fn name(self) -> &'static str {
        match self {
            Self::LossSum => "loss_sum",
            Self::TokenCount => "token_count",
            Self::Nll => "nll",
            Self::ByteCount => "byte_count",
            Self::Labels => "labels",
            Self::Argmax => "argmax",
            Self::LabelRank => "label_rank",
            Self::Logits => "logits",
        }
    }
}

impl FromStr for Need {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|need| need.name() == name)
            .ok_or_else(|| {
                let known = Self::ALL.map(Self::name).join(", ");
                Error::new(ErrorKind::Plugin, format!("unknown metric input: {name:?}"))
                    .hint(format!("use one of: {known}"))
            })
    }
}

/// Type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Dtype {
    /// 32-bit float.
    F32,
    /// 64-bit float.
    F64,
    /// bfloat16.
    Bf16,
    /// 64-bit integer.
    I64,
}

/// The memory that holds a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// Main memory.
    Cpu,
    /// The CUDA device with this index.
    Cuda(u32),
}

/// A borrowed view of a tensor. Its creator guarantees that `data` stays readable and unchanged for `'a`. If
/// the data is on a CUDA device, all work that writes it has finished.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Address of the first element; may be null if the tensor is empty.
    pub data: *const c_void,
    /// The size of each dimension.
    pub shape: &'a [i64],
    /// The stride of each dimension, in elements.
    pub strides: &'a [i64],
    /// Type of an element.
    pub dtype: Dtype,
    /// The memory that holds the data.
    pub device: Device,
    /// Marks the view as a borrow from the tensor's owner.
    pub owner: PhantomData<&'a ()>,
}

/// The inputs of one evaluation batch for one metric.
#[derive(Clone, Copy, Debug)]
pub struct MetricBatch<'a> {
    /// The optimizer step of the evaluation.
    pub step: u64,
    /// The inputs: exactly those that the metric needs.
    pub tensors: &'a [(Need, TensorView<'a>)],
}

/// The port to an evaluation metric. A metric has a state that accumulates batches. The states of several
/// ranks can be merged.
pub trait Metric: Send {
    /// Returns the metric's plugin id.
    fn id(&self) -> &str;

    /// Returns the inputs that the metric needs from each batch.
    fn needs(&self) -> &[Need];

    /// Returns whether the metric can read CUDA memory. If it cannot, its inputs are copied to the CPU.
    fn reads_cuda(&self) -> bool;

    /// Resets the state to that of a new metric.
    fn reset(&mut self) -> Result<()>;

    /// Adds a batch to the state.
    fn update(&mut self, batch: MetricBatch<'_>) -> Result<()>;

    /// Returns the state as bytes, which include the version number of their format.
    fn export_state(&mut self) -> Result<Vec<u8>>;

    /// Adds a state that another instance of the same metric exported.
    fn merge_state(&mut self, state: &[u8]) -> Result<()>;

    /// Computes and returns the named values, which may be infinite or NaN.
    fn compute(&mut self) -> Result<Vec<(String, f64)>>;

    /// Returns a reason if the metric has panicked too often and cannot be called again in this run, not even
    /// after a reset. Otherwise, returns `None`.
    fn lost(&self) -> Option<String> {
        None
    }
}
