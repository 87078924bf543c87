//! Prepares a training run from its configuration, in named stages.

mod briefing;
mod origin;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use host_core::{Result, Step};

use self::briefing::{Briefing, Position};
use self::origin::Origin;
use crate::collective::Collective;
use crate::data::{
    Corpus, Fingerprint, Loader, LoaderCursor, Packer, StreamCursor, Validation, Workers,
};
use crate::device;
use crate::evaluate::{ByteTable, Evaluation};
use crate::memory;
use crate::model::{Decoder, Dtypes, ModelConfig};
use crate::out_of_memory;
use crate::random::RandomState;
use crate::schedule::Schedule;
use crate::tokenizer::Tokenizer;
use crate::torch_shim;
use crate::trainer::Trainer;
use crate::{SchedulerType, TrainConfig};

/// The starting point of a training run.
#[derive(Clone, Debug)]
pub enum Start {
    /// Step 0, with the weights of `model` if it has any, else with new weights.
    Fresh,
    /// The exact state of the checkpoint in this folder.
    From(PathBuf),
}

/// What training needs before the model is created.
struct Basis {
    /// `None` on a rank other than the lead.
    origin: Option<Origin>,
    corpus: Corpus,
    fingerprint: Fingerprint,
    tokenizer: Tokenizer,
    model: ModelConfig,
    briefing: Briefing,
    position: Option<Position>,
    warnings: Vec<String>,
}

impl Trainer {
    /// Reads the configuration, finds the data, trains or loads the tokenizer, and creates the model. `cache`
    /// is the folder for files that later runs reuse. `say` receives a short phrase before each slow stage.
    ///
    /// With several ranks, only the lead uses `start`, the model and the tokenizer of the configuration, and `cache`.
    /// The other ranks receive model, tokenizer and state from the lead.
    ///
    /// # Errors
    /// Returns an error for any fault in the configuration or the data that would make training fail later.
    pub fn prepare(
        config: &TrainConfig,
        start: &Start,
        cache: &Path,
        collective: Collective,
        say: &mut dyn FnMut(&str),
    ) -> Result<Self> {
        let threads = set_up_libtorch(config, &collective)?;
        let device = device::parse(&config.device, collective.local())?;
        let Basis {
            origin,
            corpus,
            fingerprint,
            tokenizer,
            model: model_config,
            briefing,
            position,
            mut warnings,
        } = match collective.is_lead() {
            true => Basis::of_lead(config, start, cache, &collective, say)?,
            false => Basis::of_follower(config, &collective)?,
        };
        let (_, neighbors) = collective.local();
        let memory = memory::check(config, &model_config.shape, device, neighbors)?;
        warnings.extend(memory.warning);
        collective.compare(&fingerprint.facts())?;
        collective.connect(device)?;
        let position = briefing.share_position(position, config.seq_length, &collective)?;
        let collective = match briefing.global_batch {
            Some(_) => collective.seeding_dropout(),
            None => collective,
        };

        let random = RandomState::seed(config.seed, device);
        let dtypes = Dtypes::of(config.precision);
        let model = match &origin {
            Some(origin) => origin.model(model_config, dtypes, device)?,
            None => out_of_memory::explained(|| Ok(Decoder::new(model_config, dtypes, device)))?,
        };
        let tokenizer = Arc::new(tokenizer.splitting_special_tokens(config.split_special_tokens));
        let data_workers = config
            .data_workers
            .unwrap_or_else(|| (Workers::default_count() / neighbors).max(1));
        let workers = Arc::new(Workers::start(&tokenizer, data_workers)?);
        let validation = read_validation(config, &corpus, &workers)?;
        let loader = start_loader(config, &corpus, &workers, position)?;
        let byte_lengths = tokenizer.byte_lengths(model.config.shape.vocab_size);
        let batch_size = usize::try_from(config.valid_batch_size).unwrap_or(1);
        Ok(Self {
            evaluation: Evaluation::new(
                validation,
                batch_size,
                ByteTable::new(&byte_lengths, device),
            ),
            schedule: Schedule::of(config),
            step: briefing.step,
            params: model.param_infos(),
            checkpoint_files: checkpoint_files(&tokenizer, &model, dtypes),
            config: config.clone(),
            files: corpus.train_files(),
            memory: memory.summary,
            stored: origin.and_then(Origin::into_stored),
            global_batch: collective
                .seeds_dropout()
                .then(|| config.global_batch(collective.size())),
            collective,
            loader,
            model,
            fingerprint,
            random,
            workers,
            warnings,
            threads,
            data_workers,
        })
    }
}

impl Basis {
    /// Finds everything, and tells the other ranks.
    fn of_lead(
        config: &TrainConfig,
        start: &Start,
        cache: &Path,
        collective: &Collective,
        say: &mut dyn FnMut(&str),
    ) -> Result<Self> {
        let mut origin = Origin::read(config, start)?;
        let corpus = Corpus::find(config)?;
        let tokenizer = origin.tokenizer(config, &corpus, cache, say)?;
        let mut warnings = corpus.notices.clone();
        warnings.extend(tokenizer.warning().map(str::to_owned));
        let (model, news) = origin.model_config(config, &corpus, &tokenizer)?;
        warnings.extend(news);
        let fingerprint = Fingerprint::of(&corpus);
        origin.check_unchanged(config, &corpus, &fingerprint, &model)?;
        warnings.extend(only_warms_up(config, origin.step()));
        let position = origin.take_cursor();
        let (step, batch) = (origin.step(), origin.global_batch());
        let briefing = Briefing::new(&model, &tokenizer, step, position.as_ref(), batch);
        let briefing = collective.hand_out(Some(briefing))?;
        Ok(Self {
            origin: Some(origin),
            corpus,
            fingerprint,
            tokenizer,
            model,
            briefing,
            position,
            warnings,
        })
    }

    /// Finds the data, and receives the rest from the lead.
    fn of_follower(config: &TrainConfig, collective: &Collective) -> Result<Self> {
        let corpus = Corpus::find(config)?;
        let fingerprint = Fingerprint::of(&corpus);
        let briefing: Briefing = collective.hand_out(None)?;
        let (model, tokenizer) = briefing.read()?;
        Ok(Self {
            origin: None,
            corpus,
            fingerprint,
            tokenizer,
            model,
            briefing,
            position: None,
            warnings: Vec::new(),
        })
    }
}

/// Applies libtorch's process-wide settings. Returns the number of threads that libtorch's operations use. The ranks
/// of a machine divide its cores. All ranks use the same number of threads, because rounding depends on it.
fn set_up_libtorch(config: &TrainConfig, collective: &Collective) -> Result<usize> {
    torch_shim::keep_memory();
    torch_shim::set_deterministic(config.deterministic);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let (_, neighbors) = collective.local();
    let own = config.threads.unwrap_or((cores / neighbors).max(1));
    let all = collective.gather(own, "the choice of the number of threads")?;
    let threads = all.into_iter().min().unwrap_or(own);
    tch::set_num_threads(i32::try_from(threads).unwrap_or(1));
    Ok(threads)
}

/// Reads the sequences for the evaluation. Reads all of them, or as many as `max_eval_steps` batches need.
fn read_validation(
    config: &TrainConfig,
    corpus: &Corpus,
    workers: &Arc<Workers>,
) -> Result<Validation> {
    let size = |number: i64| usize::try_from(number).unwrap_or(1);
    let steps = usize::try_from(config.max_eval_steps).ok();
    let limit = steps
        .filter(|&steps| steps > 0)
        .map(|steps| steps * size(config.valid_batch_size));
    Validation::read(
        corpus.valid.clone(),
        workers,
        size(config.seq_length),
        limit,
    )
}

/// Starts loading the training data. A new run starts at the beginning of the data. A resumed run continues
/// with the position and the shuffle buffer of the checkpoint.
fn start_loader(
    config: &TrainConfig,
    corpus: &Corpus,
    workers: &Arc<Workers>,
    resume: Option<(LoaderCursor, Vec<Box<[u32]>>)>,
) -> Result<Loader> {
    let position = resume
        .as_ref()
        .map_or_else(StreamCursor::default, |(cursor, _)| {
            Loader::position(cursor)
        });
    let seq_length = usize::try_from(config.seq_length).unwrap_or(0);
    let packer = Packer::endless(&corpus.train, workers, seq_length, config.seed, position);
    Loader::new(packer, config.shuffle_buffer, config.seed, resume)
}

/// Returns the files that are the same in every checkpoint: tokenizer, `config.json`,
/// `generation_config.json`.
fn checkpoint_files(
    tokenizer: &Tokenizer,
    model: &Decoder,
    dtypes: Dtypes,
) -> Vec<(&'static str, String)> {
    let end_of_text = i64::from(tokenizer.end_of_text());
    let model = model.config.to_json(end_of_text, dtypes.name());
    let generation =
        serde_json::json!({ "bos_token_id": end_of_text, "eos_token_id": end_of_text });
    let mut files = tokenizer.files().to_vec();
    files.push(("config.json", format!("{model:#}\n")));
    files.push(("generation_config.json", format!("{generation:#}\n")));
    files
}

/// Returns a warning if the learning rate does not reach its peak before the last step.
fn only_warms_up(config: &TrainConfig, begin: Step) -> Option<String> {
    let (warmup, last) = (config.num_warmup_steps, config.max_train_steps);
    let warms_up = config.lr_scheduler_type != SchedulerType::Constant;
    (warms_up && begin.0 < last && warmup > 0 && warmup >= last).then(|| {
        format!(
            "the learning rate never reaches its peak: num_warmup_steps is {warmup}, max_train_steps is {last}"
        )
    })
}
