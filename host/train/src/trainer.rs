use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use host_core::{
    CheckpointDir, Control, Emitter, Error, EventBody, Kind, Metric, MetricValue, ParamGroup,
    ParamInfo, Requests, Result, Step, StopReason, Supervised,
};
use tch::Device;

use crate::checkpoint::Stored;
use crate::data::{
    Corpus, Fingerprint, LeftOut, Loader, Packer, Position, SourceFile, Validation, Workers,
};
use crate::device;
use crate::evaluate::{ByteTable, Evaluation, Names};
use crate::fit;
use crate::memory;
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
use crate::{SchedulerType, TrainConfig};

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
    pub(crate) fingerprint: Fingerprint,
    pub(crate) checkpoint_files: Vec<(&'static str, String)>,
    pub(crate) random: RandomState,
    /// What it needs of the memory, in words.
    memory: Option<String>,
    files: Arc<[SourceFile]>,
    workers: Arc<Workers>,
    params: Vec<ParamInfo>,
    /// What the run begins with warnings of.
    warnings: Vec<String>,
    threads: usize,
    data_workers: usize,
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
    /// Called on the loop's thread after plugins were called, with whether it may not be put off: the time
    /// to put back what they changed of the process.
    pub put_back: Box<dyn FnMut(Step, bool) + 'a>,
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
            Some((folder, _)) => ModelSource::of(folder)?,
        };
        if let Some((folder, _)) = &stored {
            check_model(config, folder, &source.config)?;
        }
        check_length(config, &source.config)?;
        let corpus = Corpus::find(config)?;
        let files = corpus.train_files();
        let tokenizer = match &stored {
            Some((folder, _)) => {
                let tokenizer = Tokenizer::read(folder, None)?;
                check_tokenizer(config, folder, &tokenizer)?;
                tokenizer
            }
            None => find_tokenizer(config, &source, &corpus, &files, cache, say)?,
        };
        corpus.check_tokens(&tokenizer)?;
        let mut warnings = corpus.notices.clone();
        warnings.extend(tokenizer.warning().map(str::to_owned));
        let (model_config, weights) = match &stored {
            Some((folder, _)) => (source.config, Some((*folder).clone())),
            None if source.has_weights => {
                warnings.extend(source.ignored);
                (source.config, source.folder)
            }
            None => {
                let (model_config, news) = with_rows(source, config, &tokenizer);
                warnings.extend(news);
                (model_config, None)
            }
        };
        if tokenizer.vocab_size() > model_config.vocab_size {
            return Err(Error::new(
                Kind::Config,
                format!(
                    "the tokenizer has ids up to {}, the model rows for {}",
                    tokenizer.vocab_size() - 1,
                    model_config.vocab_size
                ),
            )
            .hint("use the tokenizer that belongs to the model's weights"));
        }
        corpus.check_rows(model_config.vocab_size)?;
        let fingerprint = Fingerprint::of(&corpus);
        if let Some((folder, stored)) = &stored {
            stored.check_setup(folder, config)?;
            fingerprint.check(&stored.state.fingerprint, &corpus)?;
            stored.check(folder, &corpus.train, model_config.vocab_size)?;
        }
        let begin = stored.as_ref().map_or(0, |(_, stored)| stored.state.step.0);
        warnings.extend(only_warms_up(config, begin));

        let memory = memory::check(config, &model_config, device)?;
        warnings.extend(memory.warning);
        let random = RandomState::seed(config.seed, device);
        let arithmetic = Arithmetic(config.precision);
        let mut model =
            out_of_memory::explained(|| Ok(Gpt2::new(model_config, arithmetic, device)))?;
        if let Some(folder) = weights {
            model.load(&folder)?;
        }

        let tokenizer = Arc::new(tokenizer.splitting_special_tokens(config.split_special_tokens));
        let count = config.data_workers.unwrap_or_else(Workers::default_count);
        let workers = Arc::new(Workers::start(&tokenizer, count)?);
        let seq_length = usize::try_from(config.seq_length).unwrap_or(0);
        let limit = usize::try_from(config.max_eval_steps)
            .ok()
            .filter(|&steps| steps > 0);
        let limit =
            limit.map(|steps| steps * usize::try_from(config.valid_batch_size).unwrap_or(1));
        let validation = Validation::read(corpus.valid.clone(), &workers, seq_length, limit)?;
        let (stored, cursor) = match stored {
            None => (None, None),
            Some((_, mut stored)) => {
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
                byte_lengths: ByteTable::new(
                    &tokenizer.byte_lengths(model.config.vocab_size),
                    device,
                ),
                batch_size: usize::try_from(config.valid_batch_size).unwrap_or(1),
                metrics: Vec::new(),
                names: Names::default(),
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
            fingerprint,
            checkpoint_files,
            random,
            memory: memory.summary,
            files,
            workers,
            warnings,
            threads,
            data_workers: count,
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

    /// A configuration of this training with the values that are used where it leaves them open, so that it
    /// trains the same on a machine with other devices, cores or defaults.
    pub fn used(&self, config: &TrainConfig) -> TrainConfig {
        let device = match self.model.device {
            Device::Cuda(index) => format!("cuda:{index}"),
            _ => "cpu".to_owned(),
        };
        let decay = match config.lr_scheduler_type {
            SchedulerType::WarmupStableDecay => Some(self.schedule.decay_steps),
            _ => config.num_decay_steps,
        };
        TrainConfig {
            device,
            threads: Some(self.threads),
            data_workers: Some(self.data_workers),
            num_decay_steps: decay,
            ..config.clone()
        }
    }

    /// One line for people: parameters, layers, vocabulary, device, data, memory.
    pub fn summary(&self) -> String {
        let parameters: i64 = self.params.iter().map(ParamInfo::numel).sum();
        let bytes: u64 = self.files.iter().map(|file| file.bytes).sum();
        let config = &self.model.config;
        let memory = self.memory.as_ref();
        let memory = memory.map_or_else(String::new, |needs| format!("; needs about {needs}"));
        format!(
            "GPT-2 with {:.1} M parameters ({} layers, width {}, {} heads, vocabulary {}) on {:?}; {} files with {:.1} MB to train on, {} sequences of {} tokens to evaluate on{memory}",
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
        for message in &self.warnings {
            let message = message.clone();
            ports
                .emitter
                .emit(self.step, EventBody::Warning { message });
        }
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

/// The tokenizer of a training that begins: the one that is named, the model's, that of the token files, or
/// a new one. Weights mean nothing with another tokenizer than theirs.
fn find_tokenizer(
    config: &TrainConfig,
    source: &ModelSource,
    corpus: &Corpus,
    files: &[SourceFile],
    cache: &Path,
    say: &mut dyn FnMut(&str),
) -> Result<Tokenizer> {
    let models = source
        .folder
        .clone()
        .filter(|folder| Tokenizer::is_at(folder));
    let known = config.tokenizer.clone().or(models);
    let end_of_text = config.end_of_text.as_deref();
    // Token files bring theirs along.
    if let Some(path) = known.or_else(|| corpus.token_folder()) {
        return Tokenizer::read(&path, end_of_text);
    }
    if let Some(folder) = source.folder.as_ref().filter(|_| source.is_folder) {
        let way = "or name the tokenizer that the model was trained with: --tokenizer PATH";
        if let Some(error) = Tokenizer::unreadable_in(folder) {
            let hint = match error.hint_text() {
                Some(hint) => format!("{hint}; {way}"),
                None => way.to_owned(),
            };
            return Err(error.hint(hint));
        }
        if source.has_weights {
            let place = folder.display();
            let message = format!("the model has weights and no tokenizer: {place}");
            return Err(Error::new(Kind::Config, message)
                .hint("name the tokenizer that the weights were trained with: --tokenizer PATH"));
        }
    }
    let vocab_size = config.vocab_size.unwrap_or(source.config.vocab_size);
    let tokenizer = Tokenizer::train(files, vocab_size, cache, say)?;
    match end_of_text.filter(|name| tokenizer.id(name) != Some(tokenizer.end_of_text())) {
        Some(name) => {
            let message =
                format!("end_of_text is {name}, and a tokenizer trained here has another");
            Err(Error::new(Kind::Config, message)
                .hint("leave --end-of-text out, or give the tokenizer that has it by --tokenizer"))
        }
        None => Ok(tokenizer),
    }
}

/// The configuration of a model with new weights, and what to warn of. It has a row for each id. More
/// rows stay where a `config.json` states them, padded for speed perhaps; a preset's number is only what a
/// vocabulary may have, and so is a file's where the user gives another.
fn with_rows(
    source: ModelSource,
    config: &TrainConfig,
    tokenizer: &Tokenizer,
) -> (ModelConfig, Vec<String>) {
    let mut warnings = Vec::new();
    if let Some(folder) = source.folder.as_ref().filter(|_| source.is_folder) {
        let place = folder.display();
        warnings.push(format!(
            "the model's folder has no weights, and the training begins with new ones: {place}"
        ));
    }
    let (ids, stated) = (tokenizer.vocab_size(), source.config.vocab_size);
    let mut vocab_size = ids;
    if source.states_vocabulary && config.vocab_size.is_none() {
        vocab_size = ids.max(stated);
        if ids > stated {
            warnings.push(format!(
                "the model gets {ids} rows, one for each id of the tokenizer, and not the {stated} of its config.json"
            ));
        }
    }
    let model = ModelConfig {
        vocab_size,
        ..source.config
    };
    (model, warnings)
}

/// Compares what `model` names with the checkpoint that the training is resumed from, which brings its own.
fn check_model(config: &TrainConfig, folder: &Path, model: &ModelConfig) -> Result<()> {
    let named = Path::new(&config.model);
    let is_same = |a: &Path, b: &Path| {
        a == b
            || a.canonicalize()
                .is_ok_and(|a| b.canonicalize().is_ok_and(|b| a == b))
    };
    if is_same(named, folder) {
        return Ok(());
    }
    let leave_out = "leave --model out: the checkpoint brings its model along";
    let other = ModelSource::read(&config.model).map_err(|error| error.hint(leave_out))?;
    let mut difference = other.config.difference(model);
    if other.has_weights && other.config.vocab_size != model.vocab_size {
        difference = difference.or(Some("vocab_size"));
    }
    match difference {
        Some(name) => {
            let (model, place) = (&config.model, folder.display());
            let message =
                format!("model is {model}, whose {name} is not that of the checkpoint: {place}");
            Err(Error::new(Kind::Config, message).hint(leave_out))
        }
        None => Ok(()),
    }
}

/// The same for the tokenizer.
fn check_tokenizer(config: &TrainConfig, folder: &Path, tokenizer: &Tokenizer) -> Result<()> {
    let place = folder.display();
    if let Some(name) = &config.end_of_text
        && tokenizer.id(name) != Some(tokenizer.end_of_text())
    {
        let message = format!("end_of_text is {name}, and the checkpoint has another: {place}");
        return Err(Error::new(Kind::Config, message)
            .hint("leave --end-of-text out: the checkpoint knows its own"));
    }
    let Some(path) = &config.tokenizer else {
        return Ok(());
    };
    let leave_out = "leave --tokenizer out: the checkpoint brings its tokenizer along";
    let named = Tokenizer::read(path, config.end_of_text.as_deref())
        .map_err(|error| error.hint(leave_out))?;
    if named.sha256() == tokenizer.sha256() {
        return Ok(());
    }
    let path = path.display();
    let message = format!("tokenizer is {path}, which is not that of the checkpoint: {place}");
    Err(Error::new(Kind::Config, message).hint(leave_out))
}

/// What to warn of where the learning rate comes to its peak after the last step.
fn only_warms_up(config: &TrainConfig, begin: u64) -> Option<String> {
    let (warmup, last) = (config.num_warmup_steps, config.max_train_steps);
    let warms_up = config.lr_scheduler_type != SchedulerType::Constant;
    (warms_up && begin < last && warmup > 0 && warmup >= last).then(|| {
        format!(
            "the learning rate only rises and never comes to its peak: num_warmup_steps is {warmup}, max_train_steps {last}"
        )
    })
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
