use std::path::{Path, PathBuf};

use host_core::{Error, ErrorKind, Result, Step};
use tch::Device;

use super::Start;
use crate::TrainConfig;
use crate::checkpoint::Stored;
use crate::data::{Corpus, Fingerprint, LoaderCursor};
use crate::model::{Decoder, Dtypes, ModelConfig, ModelSource};
use crate::out_of_memory;
use crate::tokenizer::Tokenizer;

/// What a training begins with: what `model` names, or a checkpoint, which brings everything along.
pub(super) struct Origin {
    source: ModelSource,
    resumed: Option<Resumed>,
}

/// The checkpoint that a training is resumed from.
struct Resumed {
    folder: PathBuf,
    stored: Stored,
}

impl Origin {
    /// Reads where a training begins.
    ///
    /// # Errors
    /// The checkpoint is not whole, the model cannot be used, or the configuration does not fit either.
    pub(super) fn read(config: &TrainConfig, start: &Start) -> Result<Self> {
        // The proof that a checkpoint is whole comes before anything else of it is read.
        let resumed = match start {
            Start::Fresh => None,
            Start::From(folder) => Some(Resumed {
                stored: Stored::read(folder)?,
                folder: folder.clone(),
            }),
        };
        let source = match &resumed {
            None => ModelSource::read(&config.model)?,
            // What the run began with need not be there any more.
            Some(resumed) => ModelSource::of(&resumed.folder)?,
        };
        if let Some(resumed) = &resumed {
            check_model(config, &resumed.folder, &source.config)?;
        }
        check_length(config, &source.config)?;
        Ok(Self { source, resumed })
    }

    /// The steps done.
    pub(super) fn step(&self) -> Step {
        let resumed = self.resumed.as_ref();
        resumed.map_or(Step(0), |resumed| resumed.stored.state.step)
    }

    /// The tokenizer: the checkpoint's, or the one that a new training begins with.
    ///
    /// # Errors
    /// It cannot be read or trained, or it is not that of the data.
    pub(super) fn tokenizer(
        &self,
        config: &TrainConfig,
        corpus: &Corpus,
        cache: &Path,
        say: &mut dyn FnMut(&str),
    ) -> Result<Tokenizer> {
        let tokenizer = match &self.resumed {
            Some(Resumed { folder, .. }) => {
                let tokenizer = Tokenizer::read(folder, None)?;
                check_tokenizer(config, folder, &tokenizer)?;
                tokenizer
            }
            None => find_tokenizer(config, &self.source, corpus, cache, say)?,
        };
        corpus.check_tokens(&tokenizer)?;
        Ok(tokenizer)
    }

    /// The model's configuration, with a row for each id of the tokenizer, and what to warn of.
    ///
    /// # Errors
    /// The tokenizer or the data has ids that the model has no rows for.
    pub(super) fn model_config(
        &self,
        config: &TrainConfig,
        corpus: &Corpus,
        tokenizer: &Tokenizer,
    ) -> Result<(ModelConfig, Vec<String>)> {
        let (model, warnings) = if self.resumed.is_some() {
            (self.source.config.clone(), Vec::new())
        } else if self.source.has_weights {
            let ignored = self.source.ignored.iter().cloned();
            (self.source.config.clone(), ignored.collect())
        } else {
            with_rows(&self.source, config, tokenizer)
        };
        if tokenizer.vocab_size() > model.shape.vocab_size {
            let (last, rows) = (tokenizer.vocab_size() - 1, model.shape.vocab_size);
            let message = format!("the tokenizer has ids up to {last}, the model rows for {rows}");
            return Err(Error::new(ErrorKind::Config, message)
                .hint("use the tokenizer that belongs to the model's weights"));
        }
        corpus.check_rows(model.shape.vocab_size)?;
        Ok((model, warnings))
    }

    /// Compares settings and data with those that the checkpoint was made with.
    ///
    /// # Errors
    /// The first difference that a training cannot be resumed with.
    pub(super) fn check_unchanged(
        &self,
        config: &TrainConfig,
        corpus: &Corpus,
        fingerprint: &Fingerprint,
        model: &ModelConfig,
    ) -> Result<()> {
        let Some(Resumed { folder, stored }) = &self.resumed else {
            return Ok(());
        };
        stored.check_setup(folder, config)?;
        fingerprint.check(&stored.state.fingerprint, corpus)?;
        stored.check(folder, &corpus.train, model.shape.vocab_size)
    }

    /// The model on the device, with the weights that there are, or new ones.
    ///
    /// # Errors
    /// The weights cannot be read, or the memory is full.
    pub(super) fn model(
        &self,
        config: ModelConfig,
        dtypes: Dtypes,
        device: Device,
    ) -> Result<Decoder> {
        let weights = match &self.resumed {
            Some(resumed) => Some(&resumed.folder),
            None => self
                .source
                .folder
                .as_ref()
                .filter(|_| self.source.has_weights),
        };
        let mut model = out_of_memory::explained(|| Ok(Decoder::new(config, dtypes, device)))?;
        if let Some(folder) = weights {
            model.load(folder)?;
        }
        Ok(model)
    }

    /// Where the checkpoint was in the data, with its shuffle buffer. The buffer is no longer in the
    /// checkpoint then.
    pub(super) fn take_cursor(&mut self) -> Option<(LoaderCursor, Vec<Box<[u32]>>)> {
        let stored = &mut self.resumed.as_mut()?.stored;
        let buffer = std::mem::take(&mut stored.buffer);
        Some((stored.state.data.clone(), buffer))
    }

    /// What is left to take over of the checkpoint.
    pub(super) fn into_stored(self) -> Option<Stored> {
        self.resumed.map(|resumed| resumed.stored)
    }
}

/// The tokenizer of a training that begins: the one that is named, the model's, that of the token files, or
/// a new one. Weights mean nothing with another tokenizer than theirs.
fn find_tokenizer(
    config: &TrainConfig,
    source: &ModelSource,
    corpus: &Corpus,
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
            return Err(Error::new(ErrorKind::Config, message)
                .hint("name the tokenizer that the weights were trained with: --tokenizer PATH"));
        }
    }
    let vocab_size = config.vocab_size.unwrap_or(source.config.shape.vocab_size);
    let tokenizer = Tokenizer::train(&corpus.train_files(), vocab_size, cache, say)?;
    match end_of_text.filter(|name| tokenizer.id(name) != Some(tokenizer.end_of_text())) {
        Some(name) => {
            let message =
                format!("end_of_text is {name}, and a tokenizer trained here has another");
            Err(Error::new(ErrorKind::Config, message)
                .hint("leave --end-of-text out, or give the tokenizer that has it by --tokenizer"))
        }
        None => Ok(tokenizer),
    }
}

/// The configuration of a model with new weights, and what to warn of. It has a row for each id. More
/// rows stay where a `config.json` states them, padded for speed perhaps; a preset's number is only what a
/// vocabulary may have, and so is a file's where the user gives another.
fn with_rows(
    source: &ModelSource,
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
    let (ids, stated) = (tokenizer.vocab_size(), source.config.shape.vocab_size);
    let mut vocab_size = ids;
    if source.states_vocabulary && config.vocab_size.is_none() {
        vocab_size = ids.max(stated);
        if ids > stated {
            warnings.push(format!(
                "the model gets {ids} rows, one for each id of the tokenizer, and not the {stated} of its config.json"
            ));
        }
    }
    (source.config.with_vocab_size(vocab_size), warnings)
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
    if other.has_weights && other.config.shape.vocab_size != model.shape.vocab_size {
        difference = difference.or(Some("vocab_size"));
    }
    match difference {
        Some(name) => {
            let (model, place) = (&config.model, folder.display());
            let message =
                format!("model is {model}, whose {name} is not that of the checkpoint: {place}");
            Err(Error::new(ErrorKind::Config, message).hint(leave_out))
        }
        None => Ok(()),
    }
}

/// Compares what `tokenizer` names with the checkpoint, which brings its own.
fn check_tokenizer(config: &TrainConfig, folder: &Path, tokenizer: &Tokenizer) -> Result<()> {
    let place = folder.display();
    if let Some(name) = &config.end_of_text
        && tokenizer.id(name) != Some(tokenizer.end_of_text())
    {
        let message = format!("end_of_text is {name}, and the checkpoint has another: {place}");
        return Err(Error::new(ErrorKind::Config, message)
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
    Err(Error::new(ErrorKind::Config, message).hint(leave_out))
}

/// Whether sequences of this length can be trained on.
fn check_length(config: &TrainConfig, model: &ModelConfig) -> Result<()> {
    if config.seq_length < 2 {
        return Err(Error::new(
            ErrorKind::Config,
            format!("seq_length is {}", config.seq_length),
        )
        .hint("a sequence needs at least 2 tokens: one to predict the other from"));
    }
    if config.seq_length > model.shape.positions {
        return Err(Error::new(
            ErrorKind::Config,
            format!(
                "seq_length {} is longer than the model's {} positions",
                config.seq_length, model.shape.positions
            ),
        )
        .hint(format!(
            "use --seq-length {} or less, or a model with more positions",
            model.shape.positions
        )));
    }
    Ok(())
}
