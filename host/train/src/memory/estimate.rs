//! Estimates the memory that a training run needs.

use tch::{Device, Kind};

use crate::config::TrainConfig;
use crate::model::{Dtypes, Shape};

/// The peak memory usage of a training run in bytes, by purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Estimate {
    pub(crate) weights: u64,
    pub(crate) gradients: u64,
    /// AdamW's two moments.
    pub(crate) optimizer: u64,
    /// The copy from which a checkpoint is written; always in main memory.
    pub(crate) snapshot: u64,
    /// The tensors of a training pass: tensors that the blocks keep for the backward pass, and temporary
    /// tensors. If the tensors of an evaluation need more memory, their size is used instead.
    pub(crate) activations: u64,
    /// Buffered sequences: the shuffle buffer and its copy in the snapshot.
    pub(crate) data: u64,
}

/// Main memory that libtorch, its threads, the store and the service allocate after the model is created. It
/// includes program code that is loaded when it first runs, kernels compiled by oneDNN, and per-thread
/// memory. This is a measured value, which hardly depends on the model.
const PROCESS: u64 = 45 << 20;

impl Estimate {
    /// Estimates the memory for training `model` with `config` on `device`.
    pub(crate) fn of(config: &TrainConfig, model: &Shape, device: Device) -> Self {
        let sizes = Sizes::of(config, model, device);
        let params = sizes.params;
        let weights = params * sizes.weight_bytes;
        let kept = sizes.kept();
        let head_gradients = 2.0 * sizes.head_weight();
        // With only one micro-batch per step, no gradients exist before the backward pass. During the
        // backward pass, they are allocated while the activations are freed.
        let accumulates = config.gradient_accumulation_steps > 1;
        let before_backward = if accumulates { weights } else { 0.0 };
        let at_head = before_backward + kept + sizes.head(head_gradients);
        let at_last_block =
            before_backward.max(weights / sizes.layers) + kept + sizes.block_backward();
        let at_end = weights + sizes.head_weight();
        let evaluation = sizes.evaluation();
        let peak = [at_head, at_last_block, at_end, evaluation];
        let peak = peak.into_iter().fold(0.0, f64::max);
        Self {
            weights: bytes(weights),
            gradients: bytes(weights),
            optimizer: bytes(2.0 * weights),
            snapshot: bytes(3.0 * weights),
            activations: bytes((peak - weights).max(0.0) * FRAGMENTATION),
            data: bytes(3.0 * 4.0 * sizes.length * config.shuffle_buffer as f64),
        }
    }

    /// Returns the bytes needed in the memory of the device. For the CPU, this is main memory.
    pub(crate) fn on_device(&self) -> u64 {
        self.weights + self.gradients + self.optimizer + self.activations
    }

    /// Returns the bytes of main memory that training on `device` needs in addition to the current usage.
    pub(crate) fn in_main(&self, device: Device) -> u64 {
        let on_device = if device.is_cuda() {
            0
        } else {
            self.on_device()
        };
        on_device + self.snapshot + self.data + PROCESS
    }
}

/// The sizes and options that the estimate depends on. The sizes are floating-point numbers.
struct Sizes {
    layers: f64,
    width: f64,
    inner: f64,
    heads: f64,
    vocabulary: f64,
    params: f64,
    batch: f64,
    eval_batch: f64,
    length: f64,
    checkpointing: bool,
    /// Bytes per element of weights, gradients, moments and the residual stream.
    weight_bytes: f64,
    /// Bytes per element of the operands of matrix products.
    product_bytes: f64,
    /// Whether all attention scores exist in memory at once.
    has_scores: bool,
    has_dropout: bool,
    /// Number of logits that exist at once in training.
    logits: f64,
}

impl Sizes {
    fn of(config: &TrainConfig, model: &Shape, device: Device) -> Self {
        let float = |number: i64| number.max(0) as f64;
        let dtypes = Dtypes::of(config.precision);
        let bytes = |kind: Kind| kind.elt_size_in_bytes() as f64;
        Self {
            layers: float(model.layers).max(1.0),
            width: float(model.width),
            inner: float(model.inner),
            heads: float(model.heads),
            vocabulary: float(model.vocab_size),
            params: float(model.parameters()),
            batch: float(config.train_batch_size),
            eval_batch: float(config.valid_batch_size),
            length: float(config.seq_length),
            checkpointing: config.gradient_checkpointing,
            weight_bytes: bytes(dtypes.param),
            product_bytes: bytes(dtypes.compute),
            // On the CPU, libtorch's attention has a fast path that never has all scores in memory at once.
            // With dropout, it does not use this path.
            has_scores: !device.is_cuda() && model.dropout.attention > 0.0,
            has_dropout: model.dropout.residual > 0.0,
            logits: crate::model::logits_at_once(device) as f64,
        }
    }

    fn head_weight(&self) -> f64 {
        self.width * self.vocabulary * self.weight_bytes
    }

    /// Returns the bytes that one block keeps for the backward pass of a batch.
    fn kept_by_block(&self) -> f64 {
        let tokens = self.batch * self.length;
        // The residual stream before the block and between its two halves.
        let residual = 2.0 * self.width * self.weight_bytes;
        // The inputs of the four matrix products; the queries, keys and values; and the activation function's
        // input.
        let products = (6.0 * self.width + 2.0 * self.inner) * self.product_bytes;
        let dropout = if self.has_dropout {
            2.0 * self.width * self.weight_bytes
        } else {
            0.0
        };
        // If all scores are in memory, libtorch's attention keeps a second copy of queries, keys and values.
        let copies = if self.has_scores {
            3.0 * self.width * self.product_bytes
        } else {
            0.0
        };
        tokens * (HOLES * (residual + products) + copies + dropout) + SCORES_KEPT * self.scores()
    }

    /// Returns the total bytes of the attention scores of a block: one matrix for each head of each sequence.
    fn scores(&self) -> f64 {
        if !self.has_scores {
            return 0.0;
        }
        self.batch * self.heads * self.length * self.length * self.product_bytes
    }

    /// Returns the bytes that are in use for a batch when the backward pass begins.
    fn kept(&self) -> f64 {
        let tokens = self.batch * self.length;
        let stream = tokens * self.width * self.weight_bytes;
        // Mixed precision keeps a second copy of the weights, in the type of the matrix products.
        let casts = if self.product_bytes < self.weight_bytes {
            self.params * self.product_bytes
        } else {
            0.0
        };
        casts
            + if self.checkpointing {
                self.layers * stream
            } else {
                self.layers * self.kept_by_block()
            }
            + 2.0 * stream
    }

    /// Returns the temporary bytes of the head and its loss.
    fn head(&self, gradients: f64) -> f64 {
        let tokens = self.batch * self.length;
        let logits = self.logits.min(tokens.max(64.0) * self.vocabulary) * self.weight_bytes;
        3.0 * logits + gradients + 4.0 * tokens * self.width * self.weight_bytes
    }

    /// Returns the temporary bytes of the backward pass of one block. With gradient checkpointing, they
    /// include the tensors that the block keeps, because the block is computed again.
    fn block_backward(&self) -> f64 {
        let tokens = self.batch * self.length;
        let again = if self.checkpointing {
            self.kept_by_block()
        } else {
            0.0
        };
        again
            + tokens * INNER_MOMENT * self.inner * self.weight_bytes
            + SCORES_MOMENT * self.scores()
    }

    /// Returns the temporary bytes of an evaluation: the logits and the log-probabilities.
    fn evaluation(&self) -> f64 {
        2.0 * self.eval_batch * self.length * self.vocabulary * self.weight_bytes
    }
}

/// Factor for memory fragmentation: freed temporary tensors leave gaps between the tensors that a block
/// keeps. The value was measured for several batch sizes and widths.
const HOLES: f64 = 1.5;

/// Number of score matrices that libtorch's attention with dropout keeps: the probabilities, the mask, and
/// the product of the two.
const SCORES_KEPT: f64 = 3.0;

/// Number of score matrices that exist temporarily during the backward pass.
const SCORES_MOMENT: f64 = 5.0;

/// Number of temporary matrices during the backward pass that have the width of the feed-forward layer. Some
/// are gradients. The others are copies of operands of matrix products, in a different memory layout.
const INNER_MOMENT: f64 = 5.0;

/// Overhead of fragmentation: freed blocks of memory can be too small for later allocations.
const FRAGMENTATION: f64 = 1.05;

fn bytes(number: f64) -> u64 {
    number as u64
}
