use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What a training is made from: the arguments of CodeParrot's training script under their names
/// and with their defaults, and what this host adds. As TOML keys they are the same words; as flags
/// they are in kebab-case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Folders, files or patterns (`src/**/*.rs`) to train on. Symbolic links below a folder are followed,
    /// and each file counts once. A file is one text, or has many documents by its name: JSON lines
    /// (`.jsonl`, `.ndjson`, `.json.gz`, `.json.zst`, a `.json` whose first lines are objects),
    /// `.parquet`, or the `.tokens` that `host data tokenize` writes. Text and JSON lines may be
    /// compressed (`.gz`, `.zst`).
    pub data: Vec<PathBuf>,
    /// The share of each of `data` in the training tokens, in relation to the others. The next document
    /// comes from the one that is furthest behind its share, and each has epochs of its own. Empty: all
    /// are one, and an epoch meets each document once.
    pub data_weights: Vec<f64>,
    /// The same as `data` for evaluation. Empty: some of `data` is held out, see `valid_every`.
    pub valid_data: Vec<PathBuf>,
    /// Which files of a folder count, by extension without the dot. Empty: all.
    pub extensions: Vec<String>,
    /// Files and folders that are left out: patterns of names (`*.min.js`, `node_modules`), or with a
    /// slash of paths below a folder of `data` (`docs/**`).
    pub exclude: Vec<String>,
    /// The field of a JSON line, or the column of a Parquet file, that has the text.
    pub text_column: String,
    /// One file in this many, chosen by its name, is held out for evaluation when `valid_data` is empty.
    /// If there is but one file, and it has records, one record in this many, chosen by the hash of
    /// its text, but at least one; the file is read once before the start then. Of a single text it is
    /// the last part. With `data_weights` each of `data` is split by itself.
    pub valid_every: u64,
    /// Threads that tokenize ahead of the loop; the batches do not depend on it. None: one for every
    /// second core, at most 8.
    pub data_workers: Option<usize>,
    /// A preset (`tiny demo gpt2 codeparrot-small codeparrot`), a Hugging Face `config.json`, or a
    /// folder with one and perhaps with weights. What lies on a hub is fetched before this is read.
    pub model: String,
    /// A `tokenizer.json`, GPT-2's `vocab.json` with its `merges.txt`, or a folder with either. None: that of `model` if it has one, else that beside a
    /// token file, else a byte-level BPE is trained on `data` and kept in the cache.
    pub tokenizer: Option<PathBuf>,
    /// The token between documents. None: the one that the tokenizer's configuration says, else
    /// `<|endoftext|>`.
    pub end_of_text: Option<String>,
    /// Whether the name of a special token in the data, such as `<|endoftext|>`, is text like any other. Else
    /// it is that token. Token files have made this choice already.
    pub split_special_tokens: bool,
    /// Size of a vocabulary trained here. None: the model's `vocab_size`.
    pub vocab_size: Option<i64>,
    /// `cpu`, `cuda`, `cuda:N` or `auto`.
    pub device: String,
    /// `f32`, `f64` or `bf16`.
    pub precision: Precision,
    /// Sequences in a training micro-batch.
    pub train_batch_size: i64,
    /// Sequences in an evaluation batch.
    pub valid_batch_size: i64,
    /// AdamW's weight decay, for the groups that decay.
    pub weight_decay: f64,
    /// Sequences in the buffer that the training stream is shuffled through.
    pub shuffle_buffer: usize,
    /// AdamW's peak learning rate.
    pub learning_rate: f64,
    /// How the learning rate goes, by transformers' names.
    pub lr_scheduler_type: SchedulerType,
    /// Optimizer steps over which the learning rate rises from 0.
    pub num_warmup_steps: u64,
    /// Optimizer steps over which `warmup_stable_decay` falls to 0. None: a tenth of all.
    pub num_decay_steps: Option<u64>,
    /// Micro-batches whose gradients make one optimizer step.
    pub gradient_accumulation_steps: u64,
    /// Trade computation for memory in the backward pass.
    pub gradient_checkpointing: bool,
    /// Largest L2 norm of the gradient; larger ones are scaled down to it. 0: no clipping.
    pub max_grad_norm: f64,
    /// Optimizer steps to train for.
    pub max_train_steps: u64,
    /// Batches of an evaluation; -1 is the whole validation set.
    pub max_eval_steps: i64,
    /// Tokens of a sequence.
    pub seq_length: i64,
    /// Seeds weights, dropout and shuffling.
    pub seed: i64,
    /// Evaluate and write a checkpoint every so many optimizer steps. 0: only at the end.
    pub save_checkpoint_steps: u64,
    /// Evaluate once before the first step, too.
    pub eval_on_start: bool,
    /// Report the validation set's perplexity under a unigram and a bigram model, counted on the
    /// training tokens, before the first step. Reads the training data once.
    pub ngram_baselines: bool,
    /// How many checkpoints stay in the run folder; 0 keeps all. The newest and those that a sink
    /// still needs stay in any case.
    pub keep_checkpoints: usize,
    /// What a loss or gradient that is not finite does.
    pub on_nonfinite: OnNonfinite,
    /// Threads of a CPU training. None: one for each core.
    pub threads: Option<usize>,
    /// Use deterministic algorithms on CUDA, at some cost. The CPU always does.
    pub deterministic: bool,
}

/// Arithmetic of the training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats.
    F32,
    /// 64-bit floats, for proofs.
    F64,
    /// bfloat16 matrix products over 32-bit weights.
    Bf16,
}

/// How the learning rate goes over the steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SchedulerType {
    /// Warm-up, then down to 0 in a line.
    Linear,
    /// Warm-up, then down to 0 in half a cosine.
    Cosine,
    /// The same; transformers' default of one cycle.
    CosineWithRestarts,
    /// Warm-up, then down to 1e-7 in a line: transformers' default power of 1.
    Polynomial,
    /// Always the peak.
    Constant,
    /// Warm-up, then always the peak.
    ConstantWithWarmup,
    /// Warm-up, the peak, and over the last `num_decay_steps` down to 0 in half a cosine.
    WarmupStableDecay,
}

/// What a loss or gradient that is not finite does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnNonfinite {
    /// The run ends with an error; the last checkpoint stands.
    Stop,
    /// The step changes no weight, and an event says so.
    Skip,
    /// Nothing but an event.
    Continue,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            data: Vec::new(),
            data_weights: Vec::new(),
            valid_data: Vec::new(),
            extensions: Vec::new(),
            exclude: Vec::new(),
            text_column: "content".to_owned(),
            valid_every: 20,
            data_workers: None,
            model: "codeparrot".to_owned(),
            tokenizer: None,
            end_of_text: None,
            split_special_tokens: false,
            vocab_size: None,
            device: "auto".to_owned(),
            precision: Precision::F32,
            train_batch_size: 2,
            valid_batch_size: 2,
            weight_decay: 0.1,
            shuffle_buffer: 10_000,
            learning_rate: 2e-4,
            lr_scheduler_type: SchedulerType::Cosine,
            num_warmup_steps: 750,
            num_decay_steps: None,
            gradient_accumulation_steps: 16,
            gradient_checkpointing: true,
            max_grad_norm: 1.0,
            max_train_steps: 50_000,
            max_eval_steps: -1,
            seq_length: 1024,
            seed: 1,
            save_checkpoint_steps: 64,
            eval_on_start: false,
            ngram_baselines: false,
            keep_checkpoints: 0,
            on_nonfinite: OnNonfinite::Stop,
            threads: None,
            deterministic: false,
        }
    }
}
