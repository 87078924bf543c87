use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use serde::Serialize;

const DATA: &str = "Data";
const MODEL: &str = "Model";
const OPTIMIZER: &str = "Optimizer";
const CHECKPOINTS: &str = "Evaluation and checkpoints";
const RUN: &str = "Run";

/// Every argument of a training as a flag that may be absent. A field's name is its TOML key, and
/// its flag in kebab-case. The defaults are not here: they stand in the configuration's own types,
/// from which the help takes them.
#[derive(clap::Args, Clone, Debug, Default, Serialize)]
pub(crate) struct TrainArgs {
    /// Folder, file or quoted pattern ('src/**/*.rs') to train on: text or JSON lines (.jsonl), also
    /// compressed (.gz, .zst), or Parquet; links below a folder are followed, and each file counts
    /// once; give it again for more
    #[arg(long, value_name = "PATH", help_heading = DATA)]
    data: Option<Vec<PathBuf>>,

    /// The share of each data in the training tokens (0.7,0.3); without it, all are read as one
    #[arg(long, value_name = "SHARE,…", value_delimiter = ',', allow_negative_numbers = true, help_heading = DATA)]
    data_weights: Option<Vec<f64>>,

    /// The same as data for evaluation; without it, one file in `valid-every` of the data is held out
    #[arg(long, value_name = "PATH", help_heading = DATA)]
    valid_data: Option<Vec<PathBuf>>,

    /// Which files of a folder count, by extension (rs,py); without it, all
    #[arg(long, value_name = "EXT,…", value_delimiter = ',', help_heading = DATA)]
    extensions: Option<Vec<String>>,

    /// Leave out what fits this pattern: a name of files or folders ('*.min.js', node_modules), or with
    /// a slash a path below a data folder ('docs/**'); give it again for more
    #[arg(long, value_name = "PATTERN", help_heading = DATA)]
    exclude: Option<Vec<String>>,

    /// Field of a JSON line, or column of a Parquet file, that has the text
    #[arg(long, value_name = "NAME", help_heading = DATA)]
    text_column: Option<String>,

    /// One file in this many is held out for evaluation, by its name; of a single file with records
    /// one record in this many, of a single text its last part
    #[arg(long, value_name = "FILES", help_heading = DATA)]
    valid_every: Option<u64>,

    /// Threads that tokenize ahead of the loop; without it, one for every second core, at most 8
    #[arg(long, value_name = "THREADS", help_heading = DATA)]
    data_workers: Option<usize>,

    /// Tokens in a training or evaluation sequence
    #[arg(long, value_name = "TOKENS", help_heading = DATA)]
    seq_length: Option<i64>,

    /// Sequences in the buffer that the training stream is shuffled through
    #[arg(long, value_name = "SEQUENCES", help_heading = DATA)]
    shuffle_buffer: Option<usize>,

    /// Preset (tiny, demo, gpt2, codeparrot-small, codeparrot), Hugging Face config.json, a folder
    /// with one and perhaps with weights, or a model of the Hub or of any git repository:
    /// hub:USER/NAME, hub:USER/NAME@BRANCH, hub:URL@BRANCH
    #[arg(long, value_name = "MODEL", help_heading = MODEL)]
    model: Option<String>,

    /// A tokenizer.json, GPT-2's vocab.json with its merges.txt, or a folder with either; without it the
    /// model's own, else one trained on the data
    #[arg(long, value_name = "PATH", help_heading = MODEL)]
    tokenizer: Option<PathBuf>,

    /// The token between documents; without it, the one that the tokenizer's configuration says
    #[arg(long, value_name = "TOKEN", help_heading = MODEL)]
    end_of_text: Option<String>,

    /// Take the name of a special token in the data, such as <|endoftext|>, as text like any other
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", hide_possible_values = true, value_parser = BoolishValueParser::new(), help_heading = MODEL)]
    split_special_tokens: Option<bool>,

    /// Tokens in a vocabulary trained here; without it, the model's
    #[arg(long, value_name = "TOKENS", help_heading = MODEL)]
    vocab_size: Option<i64>,

    /// cpu, cuda, cuda:N, or auto: a GPU where there is one
    #[arg(long, value_name = "DEVICE", help_heading = MODEL)]
    device: Option<String>,

    /// Arithmetic: 32-bit floats, 64-bit floats, or bfloat16 products over 32-bit weights
    #[arg(long, value_name = "TYPE", value_parser = ["f32", "f64", "bf16"], help_heading = MODEL)]
    precision: Option<String>,

    /// Recompute activations in the backward pass: less memory, more time
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", hide_possible_values = true, value_parser = BoolishValueParser::new(), help_heading = MODEL)]
    gradient_checkpointing: Option<bool>,

    /// Threads of a training on the CPU; without it, one for each core
    #[arg(long, value_name = "THREADS", help_heading = MODEL)]
    threads: Option<usize>,

    /// Deterministic algorithms on CUDA, at some cost; the CPU always has them
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", hide_possible_values = true, value_parser = BoolishValueParser::new(), help_heading = MODEL)]
    deterministic: Option<bool>,

    /// Optimizer steps to train for
    #[arg(long, value_name = "STEPS", help_heading = OPTIMIZER)]
    max_train_steps: Option<u64>,

    /// Sequences in a training micro-batch
    #[arg(long, value_name = "SEQUENCES", allow_negative_numbers = true, help_heading = OPTIMIZER)]
    train_batch_size: Option<i64>,

    /// Micro-batches that make one optimizer step
    #[arg(long, value_name = "BATCHES", help_heading = OPTIMIZER)]
    gradient_accumulation_steps: Option<u64>,

    /// AdamW's peak learning rate
    #[arg(long, value_name = "RATE", allow_negative_numbers = true, help_heading = OPTIMIZER)]
    learning_rate: Option<f64>,

    /// How the learning rate goes over the steps
    #[arg(long, value_name = "TYPE", help_heading = OPTIMIZER,
        value_parser = ["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "warmup_stable_decay"])]
    lr_scheduler_type: Option<String>,

    /// Optimizer steps over which the learning rate rises from 0
    #[arg(long, value_name = "STEPS", help_heading = OPTIMIZER)]
    num_warmup_steps: Option<u64>,

    /// Optimizer steps over which warmup_stable_decay falls to 0; without it, a tenth of all
    #[arg(long, value_name = "STEPS", help_heading = OPTIMIZER)]
    num_decay_steps: Option<u64>,

    /// AdamW's weight decay, for the groups that decay
    #[arg(long, value_name = "RATE", allow_negative_numbers = true, help_heading = OPTIMIZER)]
    weight_decay: Option<f64>,

    /// Largest L2 norm of the gradient; larger ones are scaled down to it; 0 never clips
    #[arg(long, value_name = "NORM", allow_negative_numbers = true, help_heading = OPTIMIZER)]
    max_grad_norm: Option<f64>,

    /// What a loss or gradient that is not finite does: end the run, skip the step, or nothing
    #[arg(long, value_name = "WHAT", value_parser = ["stop", "skip", "continue"], help_heading = OPTIMIZER)]
    on_nonfinite: Option<String>,

    /// Evaluate and write a checkpoint every this many optimizer steps; 0: at the end only
    #[arg(long, value_name = "STEPS", help_heading = CHECKPOINTS)]
    save_checkpoint_steps: Option<u64>,

    /// Checkpoints that stay in the run folder, and those that a sink lacks; 0 keeps all
    #[arg(long, value_name = "COUNT", help_heading = CHECKPOINTS)]
    keep_checkpoints: Option<usize>,

    /// Begin the new run at this checkpoint, exactly: its folder, or hub:USER/NAME@BRANCH where it was
    /// pushed with trainer=true; the data must be the same
    #[arg(long, value_name = "CHECKPOINT", help_heading = CHECKPOINTS)]
    resume_from_checkpoint: Option<String>,

    /// Sequences in an evaluation batch
    #[arg(long, value_name = "SEQUENCES", allow_negative_numbers = true, help_heading = CHECKPOINTS)]
    valid_batch_size: Option<i64>,

    /// Batches of an evaluation; -1 takes the whole validation set
    #[arg(long, value_name = "BATCHES", allow_negative_numbers = true, help_heading = CHECKPOINTS)]
    max_eval_steps: Option<i64>,

    /// Evaluate before the first step, too
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", hide_possible_values = true, value_parser = BoolishValueParser::new(), help_heading = CHECKPOINTS)]
    eval_on_start: Option<bool>,

    /// Report the perplexity of a unigram and a bigram model of the training tokens first
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", hide_possible_values = true, value_parser = BoolishValueParser::new(), help_heading = CHECKPOINTS)]
    ngram_baselines: Option<bool>,

    /// The run's name and its folder's in runs-dir; without it, one is made from the model and the time
    #[arg(long, value_name = "NAME", help_heading = RUN)]
    name: Option<String>,

    /// Folder that holds the runs' folders
    #[arg(long, value_name = "DIR", help_heading = RUN)]
    runs_dir: Option<PathBuf>,

    /// Seeds weights, dropout and shuffling
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = RUN)]
    seed: Option<i64>,

    /// Where gRPC listens; port 0 is a free one, printed and written to the run's grpc.addr
    #[arg(long, value_name = "ADDR:PORT", help_heading = RUN)]
    listen: Option<String>,

    /// Asks the sinks before the first step whether checkpoints will arrive, and whether the run's disk
    /// has room for two: fail: do not start if one is not ready; warn: warn and start; off: do not ask
    #[arg(long, value_name = "WHAT", value_parser = ["fail", "warn", "off"], help_heading = RUN)]
    preflight: Option<String>,

    /// Record the machine's load, memory, disk and network every this many seconds; 0: never
    #[arg(long, value_name = "SECS", help_heading = RUN)]
    system_metrics_secs: Option<u64>,

    /// Environment variable with the token that reading over gRPC takes; without it, reading is free on
    /// this machine
    #[arg(long, value_name = "NAME", help_heading = RUN)]
    read_token_env: Option<String>,

    /// Environment variable with the token that control takes; without it, one is made, in the run's
    /// control.token
    #[arg(long, value_name = "NAME", help_heading = RUN)]
    control_token_env: Option<String>,

    /// self-signed: gRPC with TLS and a certificate made for the run, whose fingerprint is printed.
    /// Beyond this machine --listen takes TLS and --read-token-env
    #[arg(long, value_name = "HOW", value_parser = ["self-signed"], help_heading = RUN)]
    tls: Option<String>,

    /// TLS with the certificate of this PEM file
    #[arg(long, value_name = "FILE", help_heading = RUN)]
    tls_cert: Option<PathBuf>,

    /// The certificate's key, a PEM file
    #[arg(long, value_name = "FILE", help_heading = RUN)]
    tls_key: Option<PathBuf>,

    /// Id or path of a plugin, its configuration behind it: local-disk:dir=/data/ckpt,keep=3; give it
    /// again for more. It joins the plugins of the TOML file and replaces the one of the same id.
    /// mode=process runs it in a process of its own, as sinks are unless mode=in_process; there a call
    /// that takes longer than time_limit_secs ends with its process (60; a sink's delivery: 3600)
    #[arg(long, value_name = "SPEC", help_heading = "Plugins")]
    plugin: Option<Vec<String>>,

    /// Lock that every plugin must fit, written by `host plugin lock`; without it, plugins.lock beside
    /// the TOML file, if there is one
    #[arg(long, value_name = "FILE", help_heading = "Plugins")]
    plugin_lock: Option<PathBuf>,
}

impl TrainArgs {
    /// Plugins and nothing else.
    pub(crate) fn of_plugins(plugin: Vec<String>) -> Self {
        Self {
            plugin: (!plugin.is_empty()).then_some(plugin),
            ..Self::default()
        }
    }

    /// What a resume may change.
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
