use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use serde::Serialize;

const DATA: &str = "Data";
const MODEL: &str = "Model";
const OPTIMIZER: &str = "Optimizer";
const CHECKPOINTS: &str = "Evaluation and checkpoints";
const RUN: &str = "Run";
pub(crate) const RANKS: &str = "Several processes";

/// The flags of a training run, each optional. The name of a field is its TOML key; the same name in kebab
/// case is its flag. The defaults are in `TrainConfig` and `HostConfig`; the command line adds them to the
/// help.
#[derive(clap::Args, Clone, Debug, Default, Serialize)]
pub(crate) struct TrainArgs {
    /// Folder, file or quoted pattern ('src/**/*.rs') to train on: text, JSON lines (.jsonl), Parquet or
    /// .tokens; repeat for more. Text and JSON lines can be compressed (.gz, .zst). In folders, links are
    /// followed, and each file is read once
    #[arg(long, value_name = "PATH", help_heading = DATA)]
    data: Option<Vec<PathBuf>>,

    /// Share of each --data in the training tokens (0.7,0.3) [default: all data is one set]
    #[arg(long, value_name = "SHARE,…", value_delimiter = ',', allow_negative_numbers = true, help_heading = DATA)]
    data_weights: Option<Vec<f64>>,

    /// Folder, file or quoted pattern to evaluate on, like --data [default: a part of the data is held
    /// out, see --valid-every]
    #[arg(long, value_name = "PATH", help_heading = DATA)]
    valid_data: Option<Vec<PathBuf>>,

    /// Extensions of the files to read in a folder (rs,py) [default: all files]
    #[arg(long, value_name = "EXT,…", value_delimiter = ',', help_heading = DATA)]
    extensions: Option<Vec<String>>,

    /// Exclude files and folders by name ('*.min.js', node_modules), or by path below a data folder if
    /// the pattern contains a slash ('docs/**'); repeat for more
    #[arg(long, value_name = "PATTERN", help_heading = DATA)]
    exclude: Option<Vec<String>>,

    /// JSON field or Parquet column that contains the text
    #[arg(long, value_name = "NAME", help_heading = DATA)]
    text_column: Option<String>,

    /// Hold out one in this many files for evaluation, chosen by name. If there is only one file, hold
    /// out one in this many of its records, or the end of its text
    #[arg(long, value_name = "FILES", help_heading = DATA)]
    valid_every: Option<u64>,

    /// Threads that tokenize ahead of the training loop [default: half the cores, at most 8]
    #[arg(long, value_name = "THREADS", help_heading = DATA)]
    data_workers: Option<usize>,

    /// Tokens per training or evaluation sequence
    #[arg(long, value_name = "TOKENS", help_heading = DATA)]
    seq_length: Option<i64>,

    /// Size in sequences of the buffer that shuffles the training data
    #[arg(long, value_name = "SEQUENCES", help_heading = DATA)]
    shuffle_buffer: Option<usize>,

    /// Preset (tiny, demo, gpt2, codeparrot-small, codeparrot), Hugging Face config.json, folder with a
    /// config.json and optional weights, or a repository on the Hub (hub:USER/NAME, hub:USER/NAME@BRANCH)
    /// or on any git server (hub:URL@BRANCH)
    #[arg(long, value_name = "MODEL", help_heading = MODEL)]
    model: Option<String>,

    /// A tokenizer.json, a GPT-2 vocab.json with merges.txt next to it, or a folder with either
    /// [default: the model's tokenizer, or else one trained on the data]
    #[arg(long, value_name = "PATH", help_heading = MODEL)]
    tokenizer: Option<PathBuf>,

    /// Token between documents [default: from the tokenizer's configuration]
    #[arg(long, value_name = "TOKEN", help_heading = MODEL)]
    end_of_text: Option<String>,

    /// Treat names of special tokens in the data, such as <|endoftext|>, as plain text
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", hide_possible_values = true, value_parser = BoolishValueParser::new(), help_heading = MODEL)]
    split_special_tokens: Option<bool>,

    /// Vocabulary size of a tokenizer trained on the data [default: the model's]
    #[arg(long, value_name = "TOKENS", help_heading = MODEL)]
    vocab_size: Option<i64>,

    /// Device to train on: cpu, cuda, cuda:N, or auto (a GPU if there is one)
    #[arg(long, value_name = "DEVICE", help_heading = MODEL)]
    device: Option<String>,

    /// Arithmetic: 32-bit floats, 64-bit floats, or bfloat16 matrix products with 32-bit weights
    #[arg(long, value_name = "TYPE", value_parser = ["f32", "f64", "bf16"], help_heading = MODEL)]
    precision: Option<String>,

    /// Recompute activations in the backward pass to save memory at the cost of time
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", hide_possible_values = true, value_parser = BoolishValueParser::new(), help_heading = MODEL)]
    gradient_checkpointing: Option<bool>,

    /// Threads for training on the CPU [default: one per core]
    #[arg(long, value_name = "THREADS", help_heading = MODEL)]
    threads: Option<usize>,

    /// Use deterministic algorithms on CUDA, at some cost; the CPU always uses them
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", hide_possible_values = true, value_parser = BoolishValueParser::new(), help_heading = MODEL)]
    deterministic: Option<bool>,

    /// Optimizer steps to train for
    #[arg(long, value_name = "STEPS", help_heading = OPTIMIZER)]
    max_train_steps: Option<u64>,

    /// Sequences per training micro-batch
    #[arg(long, value_name = "SEQUENCES", allow_negative_numbers = true, help_heading = OPTIMIZER)]
    train_batch_size: Option<i64>,

    /// Micro-batches per optimizer step
    #[arg(long, value_name = "BATCHES", help_heading = OPTIMIZER)]
    gradient_accumulation_steps: Option<u64>,

    /// Peak learning rate of AdamW
    #[arg(long, value_name = "RATE", allow_negative_numbers = true, help_heading = OPTIMIZER)]
    learning_rate: Option<f64>,

    /// Learning rate schedule
    #[arg(long, value_name = "TYPE", help_heading = OPTIMIZER,
        value_parser = ["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "warmup_stable_decay"])]
    lr_scheduler_type: Option<String>,

    /// Optimizer steps over which the learning rate rises from 0 to its peak
    #[arg(long, value_name = "STEPS", help_heading = OPTIMIZER)]
    num_warmup_steps: Option<u64>,

    /// Optimizer steps over which warmup_stable_decay lowers the learning rate to 0 [default: a tenth of
    /// all steps]
    #[arg(long, value_name = "STEPS", help_heading = OPTIMIZER)]
    num_decay_steps: Option<u64>,

    /// Weight decay of AdamW, for the parameter groups that have any
    #[arg(long, value_name = "RATE", allow_negative_numbers = true, help_heading = OPTIMIZER)]
    weight_decay: Option<f64>,

    /// Clip the gradient to this L2 norm; 0 disables clipping
    #[arg(long, value_name = "NORM", allow_negative_numbers = true, help_heading = OPTIMIZER)]
    max_grad_norm: Option<f64>,

    /// What to do if the loss or the gradient is not finite: end the run, skip the step, or record an
    /// event and continue
    #[arg(long, value_name = "WHAT", value_parser = ["stop", "skip", "continue"], help_heading = OPTIMIZER)]
    on_nonfinite: Option<String>,

    /// Optimizer steps between checkpoints, each with an evaluation; 0: only at the end
    #[arg(long, value_name = "STEPS", help_heading = CHECKPOINTS)]
    save_checkpoint_steps: Option<u64>,

    /// Newest checkpoints to keep in the run folder, in addition to those that a sink has not received;
    /// 0: keep all
    #[arg(long, value_name = "COUNT", help_heading = CHECKPOINTS)]
    keep_checkpoints: Option<usize>,

    /// Start the new run from the exact state of this checkpoint: its folder, or hub:USER/NAME@BRANCH if
    /// it was pushed with trainer=true. The data must be the same
    #[arg(long, value_name = "CHECKPOINT", help_heading = CHECKPOINTS)]
    resume_from_checkpoint: Option<String>,

    /// auto: if the run's folder exists, resume the run from its newest checkpoint instead of starting it,
    /// so that a launcher or a scheduler can repeat the command. Needs --name, unless the launcher's job
    /// has a number
    #[arg(long, value_name = "WHEN", value_parser = ["never", "auto"], help_heading = CHECKPOINTS)]
    resume: Option<String>,

    /// Sequences per evaluation batch
    #[arg(long, value_name = "SEQUENCES", allow_negative_numbers = true, help_heading = CHECKPOINTS)]
    valid_batch_size: Option<i64>,

    /// Batches per evaluation; -1: the whole validation set
    #[arg(long, value_name = "BATCHES", allow_negative_numbers = true, help_heading = CHECKPOINTS)]
    max_eval_steps: Option<i64>,

    /// Also evaluate before the first step
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", hide_possible_values = true, value_parser = BoolishValueParser::new(), help_heading = CHECKPOINTS)]
    eval_on_start: Option<bool>,

    /// Before the first step, report the validation perplexity of a unigram and a bigram model of the
    /// training tokens
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", hide_possible_values = true, value_parser = BoolishValueParser::new(), help_heading = CHECKPOINTS)]
    ngram_baselines: Option<bool>,

    /// Name of the run and of its folder in --runs-dir [default: derived from the model and the time]
    #[arg(long, value_name = "NAME", help_heading = RUN)]
    name: Option<String>,

    /// Folder that contains the run folders
    #[arg(long, value_name = "DIR", help_heading = RUN)]
    runs_dir: Option<PathBuf>,

    /// Seed for weights, dropout and shuffling
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = RUN)]
    seed: Option<i64>,

    /// Address of the gRPC service; port 0 selects a free port. The actual address is printed and written
    /// to grpc.addr in the run folder
    #[arg(long, value_name = "ADDR:PORT", help_heading = RUN)]
    listen: Option<String>,

    /// Before the first step, check that every sink can deliver and that the run's disk has room for two
    /// checkpoints. fail: exit if a check fails; warn: warn and start anyway; off: do not check
    #[arg(long, value_name = "WHAT", value_parser = ["fail", "warn", "off"], help_heading = RUN)]
    preflight: Option<String>,

    /// Seconds between measurements of the machine's load, memory, disk, network and GPUs; 0: never
    #[arg(long, value_name = "SECS", help_heading = RUN)]
    system_metrics_secs: Option<u64>,

    /// Environment variable with the token that gRPC clients need for reading [default: on this machine,
    /// no token is needed]
    #[arg(long, value_name = "NAME", help_heading = RUN)]
    read_token_env: Option<String>,

    /// Environment variable with the token that gRPC clients need for control [default: a token is
    /// generated and written to control.token in the run folder]
    #[arg(long, value_name = "NAME", help_heading = RUN)]
    control_token_env: Option<String>,

    /// self-signed: use TLS with a certificate generated for the run, and print its fingerprint. To be
    /// reachable from other machines, --listen requires TLS and --read-token-env
    #[arg(long, value_name = "HOW", value_parser = ["self-signed"], help_heading = RUN)]
    tls: Option<String>,

    /// Use TLS with the certificate in this PEM file
    #[arg(long, value_name = "FILE", help_heading = RUN)]
    tls_cert: Option<PathBuf>,

    /// PEM file with the private key of --tls-cert
    #[arg(long, value_name = "FILE", help_heading = RUN)]
    tls_key: Option<PathBuf>,

    /// Seconds after which a rank that gives no sign of life is declared dead; then all ranks end
    #[arg(long, value_name = "SECS", help_heading = RANKS)]
    rank_timeout_secs: Option<u64>,

    /// MiB of gradients that the ranks sum at once, during the backward pass [default: 4 on the CPU, 25 on CUDA]
    #[arg(long, value_name = "MIB", help_heading = RANKS)]
    bucket_cap_mb: Option<u32>,

    /// Seconds that the ranks wait for each other at the start
    #[arg(long, value_name = "SECS", help_heading = RANKS)]
    rank_start_secs: Option<u64>,

    /// Plugin id or path, followed by its settings: local-disk:dir=/data/ckpt,keep=3; repeat for more. It
    /// is added to the plugins of the TOML file, or replaces the plugin with the same id. mode=process
    /// runs the plugin in a separate process (the default for sinks), mode=in_process in this one. A
    /// separate process is killed if a call exceeds time_limit_secs (60, or 3600 for a sink's delivery)
    #[arg(long, value_name = "SPEC", help_heading = "Plugins")]
    plugin: Option<Vec<String>>,

    /// Lock file that every plugin must match, written by `host plugin lock` [default: plugins.lock next
    /// to the TOML file, if it exists]
    #[arg(long, value_name = "FILE", help_heading = "Plugins")]
    plugin_lock: Option<PathBuf>,
}

impl TrainArgs {
    /// Returns arguments in which only the plugins are set.
    pub(crate) fn of_plugins(plugin: Vec<String>) -> Self {
        Self {
            plugin: (!plugin.is_empty()).then_some(plugin),
            ..Self::default()
        }
    }

    /// Returns arguments with new values for the settings that a resume is allowed to change.
    pub(crate) fn resuming(
        max_train_steps: Option<u64>,
        listen: Option<String>,
        preflight: Option<String>,
        (device, threads): (Option<String>, Option<usize>),
    ) -> Self {
        Self {
            max_train_steps,
            listen,
            preflight,
            device,
            threads,
            ..Self::default()
        }
    }
}
