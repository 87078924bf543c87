use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The settings of a training run. Some are arguments of CodeParrot's training script, with the script's
/// names and defaults. This host adds the others. TOML uses the same names; flags are in kebab-case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Folders, files or patterns (`src/**/*.rs`) to train on. Symbolic links below a folder are followed,
    /// and each file counts once. A file is a single text unless it has a format with many documents: JSON
    /// lines (`.jsonl`, `.ndjson`, `.json.gz`, `.json.zst`, a `.json` whose first lines are objects), Parquet
    /// (`.parquet`), or the `.tokens` that `host data tokenize` writes. Text and JSON lines can be compressed
    /// (`.gz`, `.zst`).
    pub data: Vec<PathBuf>,
    /// For each entry of `data`, its share of the training tokens, relative to the other entries. The next
    /// document is taken from the entry that is furthest behind its share, and each entry has its own epochs.
    /// Empty: all entries form one set, and an epoch contains each document once.
    pub data_weights: Vec<f64>,
    /// Like `data`, but for evaluation. Empty: a part of `data` is held out (see `valid_every`).
    pub valid_data: Vec<PathBuf>,
    /// From folders, only files with these extensions are read. The extensions have no dot. Empty: all files.
    pub extensions: Vec<String>,
    /// Patterns for files and folders to leave out. A pattern without a slash, such as `*.min.js` or
    /// `node_modules`, is for names. A pattern with a slash, such as `docs/**`, is for paths below a folder
    /// of `data`.
    pub exclude: Vec<String>,
    /// The field of a JSON line or the column of a Parquet file that contains the text.
    pub text_column: String,
    /// If `valid_data` is empty, one in this many files is held out for evaluation. The files are chosen by
    /// name. A single file with records is split instead: one in this many records is held out, but at least
    /// one. The records are chosen by the hash of their text, so the file is read once before training. If
    /// the only file is a single text, its last part is held out. With `data_weights`, each entry of `data`
    /// is split separately.
    pub valid_every: u64,
    /// The number of threads that tokenize ahead of the loop. This number does not change the batches.
    /// `None`: one for every second core, at most 8.
    pub data_workers: Option<usize>,
    /// A preset (`tiny demo gpt2 codeparrot-small codeparrot`), a Hugging Face `config.json`, or a folder
    /// with a `config.json` and optionally weights. If the model is on a hub, the host fetches it first and
    /// passes the folder of the fetched files here.
    pub model: String,
    /// A `tokenizer.json`, GPT-2's `vocab.json` with its `merges.txt`, or a folder with either. `None`: the
    /// tokenizer of `model` if it has one, else the one next to a token file, else a byte-level BPE that is
    /// trained on `data` and cached.
    pub tokenizer: Option<PathBuf>,
    /// The token between documents. `None`: the one in the tokenizer's configuration, else
    /// `<|endoftext|>`.
    pub end_of_text: Option<String>,
    /// How the name of a special token in the data, such as `<|endoftext|>`, is treated. True: as plain text.
    /// False: as that token. For token files, this is decided when they are written.
    pub split_special_tokens: bool,
    /// Size of the vocabulary of a newly trained tokenizer. `None`: the model's `vocab_size`.
    pub vocab_size: Option<i64>,
    /// `cpu`, `cuda`, `cuda:N` or `auto`.
    pub device: String,
    /// `f32`, `f64` or `bf16`.
    pub precision: Precision,
    /// Sequences in a training micro-batch.
    pub train_batch_size: i64,
    /// Sequences in an evaluation batch.
    pub valid_batch_size: i64,
    /// AdamW's weight decay, for the parameter groups to which it applies.
    pub weight_decay: f64,
    /// Sequences in the buffer that shuffles the training stream.
    pub shuffle_buffer: usize,
    /// AdamW's peak learning rate.
    pub learning_rate: f64,
    /// The shape of the learning rate over the steps, with the names that transformers uses.
    pub lr_scheduler_type: SchedulerType,
    /// Optimizer steps over which the learning rate rises from 0.
    pub num_warmup_steps: u64,
    /// With `warmup_stable_decay`: the number of optimizer steps at the end, over which the learning rate
    /// falls to 0. `None`: a tenth of all steps.
    pub num_decay_steps: Option<u64>,
    /// Micro-batches per optimizer step.
    pub gradient_accumulation_steps: u64,
    /// Recompute activations in the backward pass. This takes longer, but needs less memory.
    pub gradient_checkpointing: bool,
    /// Maximum L2 norm of the gradient; larger gradients are scaled down to it. 0: no clipping.
    pub max_grad_norm: f64,
    /// Optimizer steps to train for.
    pub max_train_steps: u64,
    /// Batches per evaluation; -1 is the whole validation set.
    pub max_eval_steps: i64,
    /// Tokens per sequence.
    pub seq_length: i64,
    /// Seeds weights, dropout and shuffling.
    pub seed: i64,
    /// Optimizer steps between checkpoints, each with an evaluation. 0: only at the end.
    pub save_checkpoint_steps: u64,
    /// Also evaluate before the first step.
    pub eval_on_start: bool,
    /// Before the first step, report the validation set's perplexity under a unigram and a bigram model. The
    /// training data is read once to get the counts for these models.
    pub ngram_baselines: bool,
    /// The number of checkpoints to keep in the run folder; 0 keeps all. The newest checkpoint is always
    /// kept. Checkpoints that a sink still needs are kept too.
    pub keep_checkpoints: usize,
    /// The reaction to a loss or gradient that is not finite.
    pub on_nonfinite: OnNonfinite,
    /// Threads for training on the CPU. `None`: one per core.
    pub threads: Option<usize>,
    /// The maximum size, in MiB, of a bucket of gradients that several ranks sum at once. The rounding of the sums
    /// depends on it. `None`: 4 on the CPU, 25 on CUDA.
    pub bucket_cap_mb: Option<u32>,
    /// Use deterministic algorithms on CUDA, which are slower. The CPU always uses them.
    pub deterministic: bool,
}

impl TrainConfig {
    /// Returns the number of sequences in a step of this many ranks.
    pub fn global_batch(&self, ranks: usize) -> u64 {
        ranks as u64 * self.train_batch_size.unsigned_abs() * self.gradient_accumulation_steps
    }
}

/// The arithmetic of training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats.
    F32,
    /// 64-bit floats, for verification.
    F64,
    /// bfloat16 matrix products over 32-bit weights.
    Bf16,
}

/// The shape of the learning rate over the steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SchedulerType {
    /// Warm-up, then a linear decay to 0.
    Linear,
    /// Warm-up, then half a cosine down to 0.
    Cosine,
    /// Like `Cosine`, with transformers' default of one cycle.
    CosineWithRestarts,
    /// Warm-up, then a decay to 1e-7. The decay is linear, because the power is transformers' default of 1.
    Polynomial,
    /// Always the peak.
    Constant,
    /// Warm-up, then always the peak.
    ConstantWithWarmup,
    /// Warm-up, the peak, then half a cosine down to 0 over the last `num_decay_steps`.
    WarmupStableDecay,
}

/// The reaction to a loss or gradient that is not finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnNonfinite {
    /// End the run with an error; the last checkpoint remains.
    Stop,
    /// Leave the weights unchanged in this step, and emit a warning.
    Skip,
    /// Only emit a warning.
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
            bucket_cap_mb: None,
            deterministic: false,
        }
    }
}
