use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use host_core::{
    CheckpointDir, Control, Emitter, Error, EventBody, Kind, Metric, MetricValue, ParamGroup,
    ParamInfo, Requests, Result, Step, StopReason, Supervised,
};
use tch::Tensor;

use crate::TrainConfig;
use crate::checkpoint::Stored;
use crate::data::{Corpus, LeftOut, Loader, Packer, Position, SourceFile, Validation, Workers};
use crate::device;
use crate::evaluate::Evaluation;
use crate::fit;
use crate::model::Gpt2;
use crate::model_config::{ModelConfig, ModelSource};
use crate::ngram;
use crate::observers::Observers;
use crate::out_of_memory;
use crate::precision::Arithmetic;
use crate::random::RandomState;
use crate::schedule::Schedule;
use crate::tokenizer::Tokenizer;
use crate::torch_shim;

/// Where a training begins.
#[derive(Clone, Debug)]
pub enum Start {
    /// At step 0, with the weights of `model` if it has some, else with new ones.
    Fresh,
    /// At the checkpoint in this folder, exactly.
    From(PathBuf),
}

/// A training that is ready to go: data found, tokenizer at hand, model built.
pub struct Trainer {
    pub(crate) config: TrainConfig,
    pub(crate) model: Gpt2,
    pub(crate) loader: Loader,
    pub(crate) evaluation: Evaluation,
    pub(crate) schedule: Schedule,
    pub(crate) step: Step,
    pub(crate) stored: Option<Stored>,
    pub(crate) data_sha256: String,
    pub(crate) checkpoint_files: Vec<(&'static str, String)>,
    pub(crate) random: RandomState,
    files: Arc<[SourceFile]>,
    workers: Arc<Workers>,
    params: Vec<ParamInfo>,
}

/// What the loop talks to.
pub struct Ports<'a> {
    /// The parameter groups, checked.
    pub groups: Vec<ParamGroup>,
    /// Where events go.
    pub emitter: Emitter,
    /// Who sees them, and may ask for something.
    pub observers: Observers,
    /// What clients ask for.
    pub requests: Requests,
    /// How often the run was resumed.
    pub generation: u32,
    /// What the outside asks for, and the plugins whose failure ends the run.
    pub control: Control,
    /// Called on the loop's thread when it goes on after an evaluation, and every few seconds: the time
    /// to report what surrounds the loop. Not at its last step.
    pub report: Box<dyn FnMut(Step) + 'a>,
    /// The folder that receives `step-000100` and its like. Absolute.
    pub checkpoints: PathBuf,
    /// Returns when the events emitted so far are on record, or cannot be for now: a checkpoint that
    /// stood before them would be resumed from without them. Called on the checkpoint writer's thread.
    pub await_events: Box<dyn Fn() + Send + 'a>,
    /// Told of each complete checkpoint, on the checkpoint writer's thread.
    pub on_checkpoint: Box<dyn FnMut(CheckpointDir) + Send + 'a>,
    /// Whether a checkpoint in the run folder is still needed by somebody, so that it is not pruned.
    pub is_needed: Box<dyn Fn(Step) -> bool + Send + 'a>,
    /// Asked when the disk has no room for the next checkpoint: whether one that is needed may be removed
    /// all the same. If so, that it was given up is on record.
    pub give_up: Box<dyn Fn(Step) -> bool + Send + 'a>,
}

/// How a training ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Why.
    pub reason: StopReason,
    /// The steps done, those before a resume included.
    pub step: Step,
}

impl Trainer {
    /// Reads the configuration, finds the data, trains or loads the tokenizer, builds the model.
    /// `cache` is a folder for what is worth keeping between runs. `say` is told what takes long,
    /// in half a sentence.
    ///
    /// # Errors
    /// Anything in the configuration or the data that would fail later.
    pub fn prepare(
        config: &TrainConfig,
        start: &Start,
        cache: &Path,
        say: &mut dyn FnMut(&str),
    ) -> Result<Self> {
        torch_shim::keep_memory();
        torch_shim::set_deterministic(config.deterministic);
        let threads = config
            .threads
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        tch::set_num_threads(i32::try_from(threads).unwrap_or(1));
        let device = device::parse(&config.device)?;
        // The proof that a checkpoint is whole comes before anything else of it is read.
        let stored = match start {
            Start::Fresh => None,
            Start::From(folder) => Some((folder, Stored::read(folder)?)),
        };
        let source = match &stored {
            None => ModelSource::read(&config.model)?,
            // What the run began with need not be there any more.
            Some((folder, _)) => ModelSource::read(&folder.to_string_lossy())?,
        };
        check_length(config, &source.config)?;
        let corpus = Corpus::find(config)?;
        let files = corpus.train_files();

        let known = stored
            .as_ref()
            .map(|(folder, _)| (*folder).clone())
            .or_else(|| config.tokenizer.clone())
            .or_else(|| {
                source
                    .folder
                    .clone()
                    .filter(|folder| folder.join("tokenizer.json").is_file())
            });
        // Token files bring theirs along.
        let known = known.or_else(|| corpus.token_folder());
        let tokenizer = match known {
            Some(path) => Tokenizer::read(&path)?,
            None => Tokenizer::train(
                &files,
                config.vocab_size.unwrap_or(source.config.vocab_size),
                cache,
                say,
            )?,
        };
        corpus.check_tokens(&tokenizer)?;
        let (model_config, weights) = match &stored {
            Some((folder, _)) => (source.config, Some((*folder).clone())),
            None if source.has_weights => (source.config, source.folder),
            // New weights have as many rows as there are tokens.
            None => (
                ModelConfig {
                    vocab_size: tokenizer.vocab_size(),
                    ..source.config
                },
                None,
            ),
        };
        if tokenizer.vocab_size() > model_config.vocab_size {
            return Err(Error::new(
                Kind::Config,
                format!(
                    "the tokenizer has {} tokens, the model {}",
                    tokenizer.vocab_size(),
                    model_config.vocab_size
                ),
            )
            .hint("use the tokenizer that belongs to the model's weights"));
        }

        let random = RandomState::seed(config.seed, device);
        let arithmetic = Arithmetic(config.precision);
        let mut model =
            out_of_memory::explained(|| Ok(Gpt2::new(model_config, arithmetic, device)))?;
        if let Some(folder) = weights {
            model.load(&folder)?;
        }

        let tokenizer = Arc::new(tokenizer);
        let count = config.data_workers.unwrap_or_else(Workers::default_count);
        let workers = Arc::new(Workers::start(&tokenizer, count)?);
        let data_sha256 = corpus.fingerprint();
        let seq_length = usize::try_from(config.seq_length).unwrap_or(0);
        let limit = usize::try_from(config.max_eval_steps)
            .ok()
            .filter(|&steps| steps > 0);
        let limit =
            limit.map(|steps| steps * usize::try_from(config.valid_batch_size).unwrap_or(1));
        let validation = Validation::read(corpus.valid, &workers, seq_length, limit)?;
        let (stored, cursor) = match stored {
            None => (None, None),
            Some((_, mut stored)) => {
                if stored.state.data_sha256 != data_sha256 {
                    return Err(Error::new(Kind::Config, "the training data is not what it was when the checkpoint was made")
                        .hint("bring the files back, or begin a new run with --model set to the checkpoint's folder"));
                }
                let cursor = (
                    stored.state.data.clone(),
                    std::mem::take(&mut stored.buffer),
                );
                (Some(stored), Some(cursor))
            }
        };
        let position = cursor
            .as_ref()
            .map_or_else(Position::default, |(cursor, _)| Loader::position(cursor));
        let packer = Packer::endless(&corpus.train, &workers, seq_length, config.seed, position);
        let end_of_text = i64::from(tokenizer.end_of_text());
        let mut checkpoint_files = tokenizer.files().to_vec();
        let json = model.config.to_json(end_of_text, arithmetic.weights_name());
        checkpoint_files.push(("config.json", format!("{json:#}\n")));
        let json = serde_json::json!({ "bos_token_id": end_of_text, "eos_token_id": end_of_text });
        checkpoint_files.push(("generation_config.json", format!("{json:#}\n")));
        Ok(Self {
            loader: Loader::new(packer, config.shuffle_buffer, config.seed, cursor)?,
            evaluation: Evaluation {
                validation,
                byte_lengths: Tensor::from_slice(&tokenizer.byte_lengths(model.config.vocab_size))
                    .to_device(device),
                batch_size: usize::try_from(config.valid_batch_size).unwrap_or(1),
                metrics: Vec::new(),
            },
            schedule: Schedule {
                kind: config.lr_scheduler_type,
                peak: config.learning_rate,
                warmup_steps: config.num_warmup_steps,
                decay_steps: config
                    .num_decay_steps
                    .unwrap_or(config.max_train_steps / 10),
                total_steps: config.max_train_steps,
            },
            step: stored.as_ref().map_or(Step(0), |stored| stored.state.step),
            params: model.param_infos(),
            config: config.clone(),
            model,
            stored,
            data_sha256,
            checkpoint_files,
            random,
            files,
            workers,
        })
    }

    /// The trainable parameters in the model's order; tied weights appear once.
    pub fn params(&self) -> &[ParamInfo] {
        &self.params
    }

    /// Adds metrics to the evaluation, beside the host's own `loss/eval`, and shows one batch to
    /// each, so that one that cannot work is known before the training begins.
    ///
    /// # Errors
    /// The first metric that fails, or two that give a value of the same name.
    pub fn add_metrics(&mut self, metrics: Vec<Supervised<dyn Metric>>) -> Result<()> {
        self.evaluation.metrics.extend(metrics);
        out_of_memory::explained(|| self.evaluation.rehearse(&self.model))
    }

    /// The step that `fit` begins at.
    pub fn step(&self) -> Step {
        self.step
    }

    /// One line for people: parameters, layers, vocabulary, files, device.
    pub fn summary(&self) -> String {
        let parameters: i64 = self.params.iter().map(ParamInfo::numel).sum();
        let bytes: u64 = self.files.iter().map(|file| file.bytes).sum();
        let config = &self.model.config;
        format!(
            "GPT-2 with {:.1} M parameters ({} layers, width {}, {} heads, vocabulary {}) on {:?}; {} files with {:.1} MB to train on, {} sequences of {} tokens to evaluate on",
            parameters as f64 / 1e6,
            config.n_layer,
            config.n_embd,
            config.n_head,
            config.vocab_size,
            self.model.device,
            self.files.len(),
            bytes as f64 / 1e6,
            self.evaluation.validation.sequences.len(),
            self.config.seq_length,
        )
    }

    /// Trains to the end or until the control says stop; returns when the last checkpoint is written.
    ///
    /// # Errors
    /// What made training impossible; the checkpoints written before stand.
    pub fn fit(self, mut ports: Ports<'_>) -> Result<Outcome> {
        if let Some(message) = self
            .evaluation
            .validation
            .left_out
            .message("evaluation data")
        {
            ports
                .emitter
                .emit(self.step, EventBody::Warning { message });
        }
        if self.config.ngram_baselines && self.step == Step(0) {
            let values: Vec<MetricValue> = ngram::baselines(
                self.files.clone(),
                &self.workers,
                self.model.config.vocab_size,
                &self.evaluation.validation,
            )?;
            ports.emitter.emit(self.step, EventBody::Metrics { values });
        }
        let losses = Arc::new(Losses {
            left_out: self.loader.left_out().clone(),
            emitter: ports.emitter.clone(),
            told: AtomicU64::new(0),
        });
        let with_checkpoint = losses.clone();
        let mut on_checkpoint = ports.on_checkpoint;
        ports.on_checkpoint = Box::new(move |dir| {
            with_checkpoint.tell(dir.step);
            on_checkpoint(dir);
        });
        let outcome = out_of_memory::explained(|| fit::fit(self, ports))?;
        losses.tell(outcome.step);
        Ok(outcome)
    }
}

/// Tells how much of the training data was left out, whenever that has become more. `[any]`
struct Losses {
    left_out: Arc<LeftOut>,
    emitter: Emitter,
    told: AtomicU64,
}

impl Losses {
    fn tell(&self, step: Step) {
        let count = self.left_out.count();
        if self.told.swap(count, Ordering::Relaxed) == count {
            return;
        }
        if let Some(message) = self.left_out.message("training data") {
            self.emitter.emit(step, EventBody::Warning { message });
        }
    }
}

fn check_length(config: &TrainConfig, model: &ModelConfig) -> Result<()> {
    if config.seq_length < 2 {
        return Err(
            Error::new(Kind::Config, format!("seq_length is {}", config.seq_length))
                .hint("a sequence needs at least 2 tokens: one to predict the other from"),
        );
    }
    if config.seq_length > model.n_positions {
        return Err(Error::new(
            Kind::Config,
            format!(
                "seq_length {} is longer than the model's {} positions",
                config.seq_length, model.n_positions
            ),
        )
        .hint(format!(
            "use --seq-length {} or less, or a model with more positions",
            model.n_positions
        )));
    }
    Ok(())
}
