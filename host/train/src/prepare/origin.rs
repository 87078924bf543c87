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

/// The origin of a training run. It is either the configured model, or a checkpoint with the whole state of
/// the training run.
pub(super) struct Origin {
    source: ModelSource,
    resumed: Option<Resumed>,
}

/// The checkpoint from which a training run resumes.
struct Resumed {
    folder: PathBuf,
    stored: Stored,
}

impl Origin {
    /// Reads the model or the checkpoint.
    ///
    /// # Errors
    /// Returns an error if the checkpoint is damaged, if the model cannot be used, or if the configuration
    /// does not match the checkpoint or the model.
    pub(super) fn read(config: &TrainConfig, start: &Start) -> Result<Self> {
        // `Stored::read` verifies the checkpoint. It must therefore run before anything else uses the
        // checkpoint's files.
        let resumed = match start {
            Start::Fresh => None,
            Start::From(folder) => Some(Resumed {
                stored: Stored::read(folder)?,
                folder: folder.clone(),
            }),
        };
        let source = match &resumed {
            None => ModelSource::read(&config.model)?,
            // The configured model from which the run started may no longer exist.
            Some(resumed) => ModelSource::of(&resumed.folder)?,
        };
        if let Some(resumed) = &resumed {
            check_model(config, &resumed.folder, &source.config)?;
        }
        check_length(config, &source.config)?;
        Ok(Self { source, resumed })
    }

    /// Returns the number of finished steps.
    pub(super) fn step(&self) -> Step {
        let resumed = self.resumed.as_ref();
        resumed.map_or(Step(0), |resumed| resumed.stored.state.step)
    }

    /// Returns the checkpoint's tokenizer. For a new training run, finds or trains a tokenizer.
    ///
    /// # Errors
    /// Returns an error if the tokenizer cannot be read or trained, or does not match the token files.
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

    /// Returns the model's configuration and warnings. The configuration has an embedding row for each token
    /// id.
    ///
    /// # Errors
    /// Returns an error if the tokenizer or the data contains token ids for which the model has no rows.
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
            let message =
                format!("the tokenizer has ids up to {last}, but the model has only {rows} rows");
            return Err(Error::new(ErrorKind::Config, message)
                .hint("use the tokenizer that belongs to the model's weights"));
        }
        corpus.check_rows(model.shape.vocab_size)?;
        Ok((model, warnings))
    }

    /// Compares the settings and the data with the checkpoint's settings and data.
    ///
    /// # Errors
    /// Returns an error for the first difference that prevents a resume.
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

    /// Creates the model on the device, with the existing weights or new ones.
    ///
    /// # Errors
    /// Returns an error if the weights cannot be read, or there is not enough memory.
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

    /// Returns the number of sequences in a step, if the checkpoint is of a training on several ranks.
    pub(super) fn global_batch(&self) -> Option<u64> {
        self.resumed.as_ref()?.stored.state.global_batch
    }

    /// Returns the checkpoint's position in the data and its shuffle buffer. Removes the buffer from `self`.
    pub(super) fn take_cursor(&mut self) -> Option<(LoaderCursor, Vec<Box<[u32]>>)> {
        let stored = &mut self.resumed.as_mut()?.stored;
        let buffer = std::mem::take(&mut stored.buffer);
        Some((stored.state.data.clone(), buffer))
    }

    /// Returns the rest of the checkpoint's state.
    pub(super) fn into_stored(self) -> Option<Stored> {
        self.resumed.map(|resumed| resumed.stored)
    }
}

/// Returns the tokenizer of a new training run. It is the first of these that exists: the configured
/// tokenizer; the model's tokenizer; the tokenizer of the token files. If none of them exists, trains a new
/// tokenizer. No tokenizer is trained for a model with weights, because weights are useless without their own
/// tokenizer.
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
    // The folder of token files contains their tokenizer.
    if let Some(path) = known.or_else(|| corpus.token_folder()) {
        return Tokenizer::read(&path, end_of_text);
    }
    if let Some(folder) = source.folder.as_ref().filter(|_| source.is_folder) {
        let way = "set --tokenizer to the tokenizer with which the model was trained";
        if let Some(error) = Tokenizer::unreadable_in(folder) {
            let hint = match error.hint_text() {
                Some(hint) => format!("{hint}; or {way}"),
                None => way.to_owned(),
            };
            return Err(error.hint(hint));
        }
        if source.has_weights {
            let place = folder.display();
            let message = format!("the model has weights but no tokenizer: {place}");
            return Err(Error::new(ErrorKind::Config, message)
                .hint("set --tokenizer to the tokenizer with which the weights were trained"));
        }
    }
    let vocab_size = config.vocab_size.unwrap_or(source.config.shape.vocab_size);
    let tokenizer = Tokenizer::train(&corpus.train_files(), vocab_size, cache, say)?;
    match end_of_text.filter(|name| tokenizer.id(name) != Some(tokenizer.end_of_text())) {
        Some(name) => {
            let message =
                format!("end_of_text is {name}, but a new tokenizer uses a different token");
            Err(Error::new(ErrorKind::Config, message)
                .hint("remove --end-of-text, or set --tokenizer to a tokenizer with this token"))
        }
        None => Ok(tokenizer),
    }
}

/// Returns warnings and the configuration of a model with new weights. The configuration has an embedding row
/// for each token id. If a `config.json` specifies more rows, for example as padding for speed, they are kept
/// unless the user sets `vocab_size`. The number of rows of a preset is only the default size of a new
/// vocabulary.
fn with_rows(
    source: &ModelSource,
    config: &TrainConfig,
    tokenizer: &Tokenizer,
) -> (ModelConfig, Vec<String>) {
    let mut warnings = Vec::new();
    if let Some(folder) = source.folder.as_ref().filter(|_| source.is_folder) {
        let place = folder.display();
        warnings.push(format!(
            "the model's folder has no weights; training starts with new ones: {place}"
        ));
    }
    let (ids, stated) = (tokenizer.vocab_size(), source.config.shape.vocab_size);
    let mut vocab_size = ids;
    if source.states_vocabulary && config.vocab_size.is_none() {
        vocab_size = ids.max(stated);
        if ids > stated {
            warnings.push(format!(
                "the model gets {ids} rows, one for each id of the tokenizer, instead of the {stated} in its config.json"
            ));
        }
    }
    (source.config.with_vocab_size(vocab_size), warnings)
}

/// Checks that the configured model matches the checkpoint's model. The run uses the model in the checkpoint.
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
    let leave_out = "remove --model: the checkpoint contains its model";
    let other = ModelSource::read(&config.model).map_err(|error| error.hint(leave_out))?;
    let mut difference = other.config.difference(model);
    if other.has_weights && other.config.shape.vocab_size != model.shape.vocab_size {
        difference = difference.or(Some("vocab_size"));
    }
    match difference {
        Some(name) => {
            let (model, place) = (&config.model, folder.display());
            let message =
                format!("model is {model}, whose {name} differs from the checkpoint's: {place}");
            Err(Error::new(ErrorKind::Config, message).hint(leave_out))
        }
        None => Ok(()),
    }
}

/// Checks that the configured tokenizer matches the checkpoint's tokenizer. The run uses the tokenizer in the
/// checkpoint.
fn check_tokenizer(config: &TrainConfig, folder: &Path, tokenizer: &Tokenizer) -> Result<()> {
    let place = folder.display();
    if let Some(name) = &config.end_of_text
        && tokenizer.id(name) != Some(tokenizer.end_of_text())
    {
        let message = format!("end_of_text is {name}, but the checkpoint uses another: {place}");
        return Err(Error::new(ErrorKind::Config, message)
            .hint("remove --end-of-text: the checkpoint contains the setting"));
    }
    let Some(path) = &config.tokenizer else {
        return Ok(());
    };
    let leave_out = "remove --tokenizer: the checkpoint contains its tokenizer";
    let named = Tokenizer::read(path, config.end_of_text.as_deref())
        .map_err(|error| error.hint(leave_out))?;
    if named.sha256() == tokenizer.sha256() {
        return Ok(());
    }
    let path = path.display();
    let message = format!("tokenizer is {path}, which differs from the checkpoint's: {place}");
    Err(Error::new(ErrorKind::Config, message).hint(leave_out))
}

/// Checks that the model can be trained on sequences of the configured length.
fn check_length(config: &TrainConfig, model: &ModelConfig) -> Result<()> {
    if config.seq_length < 2 {
        return Err(Error::new(
            ErrorKind::Config,
            format!(
                "seq_length is {}, but must be at least 2",
                config.seq_length
            ),
        )
        .hint("use --seq-length 2 or more: each token is predicted from those before it"));
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
