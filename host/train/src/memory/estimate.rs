//! What a training will take of the memory, before it takes it.

use tch::{Device, Kind};

use crate::config::TrainConfig;
use crate::model::{Dtypes, Shape};

/// Bytes of a training at its peak, by what holds them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Estimate {
    pub(crate) weights: u64,
    pub(crate) gradients: u64,
    /// AdamW's two moments.
    pub(crate) optimizer: u64,
    /// The copy that a checkpoint is written from; always in main memory.
    pub(crate) snapshot: u64,
    /// What the blocks keep for the backward pass, and what a pass needs for a moment; or what an
    /// evaluation needs, if that is more.
    pub(crate) activations: u64,
    /// Sequences that wait: the shuffle buffer and its copy in the snapshot.
    pub(crate) data: u64,
}

/// What libtorch, its threads, the store and the service take in main memory beyond what the process has when
/// the model is made: code that is first used then, kernels that oneDNN compiles, threads' own memory.
/// Measured; it hardly depends on the model.
const PROCESS: u64 = 45 << 20;

impl Estimate {
    /// What `config` takes to train `model` on `device`.
    pub(crate) fn of(config: &TrainConfig, model: &Shape, device: Device) -> Self {
        let sizes = Sizes::of(config, model, device);
        let params = sizes.params;
        let weights = params * sizes.weight_bytes;
        let kept = sizes.kept();
        let head_gradients = 2.0 * sizes.head_weight();
        // With one micro-batch to a step the gradients come into being while the activations go.
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

    /// What the device's own memory must hold; of the CPU this is main memory, too.
    pub(crate) fn on_device(&self) -> u64 {
        self.weights + self.gradients + self.optimizer + self.activations
    }

    /// What main memory must hold for a training on the device, beyond what the process has.
    pub(crate) fn in_main(&self, device: Device) -> u64 {
        let on_device = if device.is_cuda() {
            0
        } else {
            self.on_device()
        };
        on_device + self.snapshot + self.data + PROCESS
    }
}

/// The sizes that count, as factors.
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
    /// Of weights, gradients, moments and the residual stream.
    weight_bytes: f64,
    /// Of what the matrix products read.
    product_bytes: f64,
    /// Whether the attention's scores stand in memory as a whole.
    has_scores: bool,
    has_dropout: bool,
    /// Elements of logits at once in training.
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
            // libtorch's own attention on the CPU leaves its fast path for dropout.
            has_scores: !device.is_cuda() && model.dropout.attention > 0.0,
            has_dropout: model.dropout.residual > 0.0,
            logits: crate::model::logits_at_once(device) as f64,
        }
    }

    fn head_weight(&self) -> f64 {
        self.width * self.vocabulary * self.weight_bytes
    }

    /// What one block keeps of a batch for the backward pass.
    fn kept_by_block(&self) -> f64 {
        let tokens = self.batch * self.length;
        // The residual stream before and between its two halves.
        let residual = 2.0 * self.width * self.weight_bytes;
        // What the four products read, queries, keys and values, and the activation function's input.
        let products = (6.0 * self.width + 2.0 * self.inner) * self.product_bytes;
        let dropout = if self.has_dropout {
            2.0 * self.width * self.weight_bytes
        } else {
            0.0
        };
        // libtorch's attention with scores has queries, keys and values a second time.
        let copies = if self.has_scores {
            3.0 * self.width * self.product_bytes
        } else {
            0.0
        };
        tokens * (HOLES * (residual + products) + copies + dropout) + SCORES_KEPT * self.scores()
    }

    /// One matrix of attention scores: for each head of each sequence.
    fn scores(&self) -> f64 {
        if !self.has_scores {
            return 0.0;
        }
        self.batch * self.heads * self.length * self.length * self.product_bytes
    }

    /// What is kept of a batch when the backward pass begins.
    fn kept(&self) -> f64 {
        let tokens = self.batch * self.length;
        let stream = tokens * self.width * self.weight_bytes;
        // In mixed precision the weights stand a second time, as the products read them.
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

    /// What the head and its loss take for a moment.
    fn head(&self, gradients: f64) -> f64 {
        let tokens = self.batch * self.length;
        let logits = self.logits.min(tokens.max(64.0) * self.vocabulary) * self.weight_bytes;
        3.0 * logits + gradients + 4.0 * tokens * self.width * self.weight_bytes
    }

    /// What the backward pass of one block takes for a moment; with gradient checkpointing it keeps what the
    /// others need not.
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

    /// What an evaluation takes for a moment: the logits and their logarithms.
    fn evaluation(&self) -> f64 {
        2.0 * self.eval_batch * self.length * self.vocabulary * self.weight_bytes
    }
}

/// What a block keeps lies between what it needed for a moment; measured over batches and widths.
const HOLES: f64 = 1.5;

/// Matrices of scores that libtorch's attention with dropout keeps: probabilities, the mask, their product.
const SCORES_KEPT: f64 = 3.0;

/// Those that exist for a moment on the way back.
const SCORES_MOMENT: f64 = 5.0;

/// Matrices of the feed-forward layer's width that exist for a moment on the way back: gradients, and the
/// products' operands in the order in which they are read.
const INNER_MOMENT: f64 = 5.0;

/// Freed pieces of memory that are too small for what comes next.
const FRAGMENTATION: f64 = 1.05;

fn bytes(number: f64) -> u64 {
    number as u64
}
