use std::ffi::c_void;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Result};

/// An input that a metric can ask for. Shapes are per evaluation batch; `time` is one less than the
/// sequence length, since the first token is not predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Need {
    /// Sum of the negative log likelihoods in nats: 0-d f64.
    LossSum,
    /// Number of predicted tokens: 0-d i64.
    TokenCount,
    /// Negative log likelihood of each predicted token in nats: (batch, time) f32.
    Nll,
    /// UTF-8 bytes of the predicted tokens: 0-d i64.
    ByteCount,
    /// Ids of the predicted tokens: (batch, time) i64.
    Labels,
    /// The most likely token: (batch, time) i64.
    Argmax,
    /// The label's place from 0, the likeliest token first and of equally likely ones the lower id, so
    /// that 0 is what argmax picks: (batch, time) i64.
    LabelRank,
    /// All logits: (batch, time, vocabulary) f32. Large.
    Logits,
}

impl Need {
    /// Every need, by its place in the ABI's table.
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

    /// The name in manifests and on the wire.
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
                Error::new(
                    ErrorKind::Plugin,
                    format!("no metric input is called {name:?}"),
                )
                .hint(format!("there are: {known}"))
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

/// Where a tensor lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// Main memory.
    Cpu,
    /// A CUDA device by its number.
    Cuda(u32),
}

/// A tensor of somebody else's, borrowed. Whoever makes one vouches that `data` stays readable and
/// unchanged for `'a`, and on a CUDA device that the work that fills it has finished.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Address of the first element; may be null if there is none.
    pub data: *const c_void,
    /// Sizes.
    pub shape: &'a [i64],
    /// Strides in elements, as many as sizes.
    pub strides: &'a [i64],
    /// Type of an element.
    pub dtype: Dtype,
    /// Where the data lies.
    pub device: Device,
    /// The owner's borrow.
    pub owner: PhantomData<&'a ()>,
}

/// The inputs of one evaluation batch: what the metrics asked for, each once.
#[derive(Clone, Copy, Debug)]
pub struct MetricBatch<'a> {
    /// The optimizer step at which the evaluation takes place.
    pub step: u64,
    /// The inputs. A metric is handed those it needs and no others.
    pub tensors: &'a [(Need, TensorView<'a>)],
}

/// The port to an evaluation metric: a state that batches are added to and that merges across ranks.
pub trait Metric: Send {
    /// The metric's plugin id.
    fn id(&self) -> &str;

    /// What it wants to see of each batch.
    fn needs(&self) -> &[Need];

    /// Whether it can read CUDA memory; if not, its inputs are copied to the CPU.
    fn reads_cuda(&self) -> bool;

    /// Makes the state that of a new metric.
    fn reset(&mut self) -> Result<()>;

    /// Adds a batch.
    fn update(&mut self, batch: MetricBatch<'_>) -> Result<()>;

    /// The state as bytes, which say their own version.
    fn export_state(&mut self) -> Result<Vec<u8>>;

    /// Adds a state that another instance of the same metric exported.
    fn merge_state(&mut self, state: &[u8]) -> Result<()>;

    /// The named values. Infinity and NaN are values.
    fn compute(&mut self) -> Result<Vec<(String, f64)>>;

    /// Why it cannot be called again in this run, not even after a reset: it panicked too often.
    fn lost(&self) -> Option<String> {
        None
    }
}
