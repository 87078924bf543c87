use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::Path;

use host_core::{Error, ErrorKind, Result};
use tch::Tensor;

use super::OBSERVER;
use super::setup::check as check_unchanged;
use super::trainer_state::{BoundaryState, FORMAT, TrainerState};
use crate::config::TrainConfig;
use crate::data::Source;
use crate::manifest::verify;
use crate::regular_file::{self, SMALL};
use crate::weights;

/// Maximum bytes of an observer's state, far more than a plugin can return.
const OBSERVER_BYTES: u64 = 1 << 30;

/// A checkpoint that was read back, without the model.
pub(crate) struct Stored {
    pub(crate) state: TrainerState,
    pub(crate) optimizer: HashMap<String, Tensor>,
    pub(crate) random: HashMap<String, Tensor>,
    pub(crate) buffer: Vec<Box<[u32]>>,
    /// The observers' states by label.
    pub(crate) observers: BTreeMap<String, Vec<u8>>,
}

impl Stored {
    /// Reads a checkpoint, except for its model.
    ///
    /// # Errors
    /// Returns an error if the folder is not a valid checkpoint, or a file does not match the manifest.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        verify(folder)?;
        let trainer = folder.join("trainer");
        let file = trainer.join("state.json");
        let text = regular_file::read(&file, SMALL)
            .map_err(|error| Error::io("read the checkpoint", &file, &error))?;
        let state: TrainerState = serde_json::from_slice(&text).map_err(|error| {
            Error::new(
                ErrorKind::Config,
                format!(
                    "the checkpoint's state cannot be used: {error}: {}",
                    file.display()
                ),
            )
            .hint("use another copy of it, or an older checkpoint")
        })?;
        if state.format != FORMAT {
            return Err(Error::new(
                ErrorKind::Config,
                format!(
                    "the checkpoint's state has format {}, but this host reads format {FORMAT}: {}",
                    state.format,
                    file.display()
                ),
            )
            .hint("resume with the host version that wrote it"));
        }
        let tensors = |name: &str| {
            let mut all = HashMap::new();
            weights::read_file(&trainer.join(name), &mut |name, tensor| {
                all.insert(name.to_owned(), tensor);
                Ok(())
            })?;
            Ok::<_, Error>(all)
        };
        Ok(Self {
            state,
            optimizer: tensors("optimizer.safetensors")?,
            random: tensors("random.safetensors")?,
            buffer: weights::read_u32_rows(&trainer.join("data.safetensors"))?,
            observers: read_observers(&trainer)?,
        })
    }

    /// Takes the [`BoundaryState`] out of this checkpoint.
    pub(crate) fn take_boundary(&mut self) -> BoundaryState {
        BoundaryState {
            learning_rate_factor: self.state.learning_rate_factor,
            observers: std::mem::take(&mut self.observers),
            asked: std::mem::take(&mut self.state.asked),
        }
    }

    /// Checks that the settings on which the state depends are the same in `config`.
    ///
    /// # Errors
    /// Returns an error that names the first setting that differs.
    pub(crate) fn check_setup(&self, folder: &Path, config: &TrainConfig) -> Result<()> {
        if let Some(setup) = &self.state.setup {
            setup.check(config, folder)?;
        }
        match self.buffer.first().map(|sequence| sequence.len() as i64) {
            Some(length) => check_unchanged(folder, "seq_length", length, config.seq_length),
            None => Ok(()),
        }
    }

    /// Checks that a run with this data and this many vocabulary rows can start from this state. A state that
    /// this program wrote always passes if the data and the vocabulary are unchanged.
    ///
    /// # Errors
    /// Returns an error if the state is not valid for this run.
    pub(crate) fn check(&self, folder: &Path, sources: &[Source], rows: i64) -> Result<()> {
        let factor = self.state.learning_rate_factor;
        let fault = if !self.state.data.fits(sources) {
            "it points to a position that is not in the training data"
        } else if self
            .buffer
            .iter()
            .flatten()
            .any(|&id| i64::from(id) >= rows)
        {
            "a token in its buffer is not in the vocabulary"
        } else if !(factor.is_finite() && factor >= 0.0) {
            "its learning rate factor is negative or not finite"
        } else if self.state.step.0 > LAST_STEP {
            "its step is too high"
        } else {
            return Ok(());
        };
        let file = folder.join("trainer/state.json");
        let message = format!(
            "the checkpoint's state cannot be used: {fault}: {}",
            file.display()
        );
        Err(Error::new(ErrorKind::Config, message)
            .hint("use another copy of it, or an older checkpoint"))
    }
}

/// Returns the number of sequences in a step of the training that wrote this checkpoint, if it has run on several ranks.
/// Does not verify the checkpoint.
pub fn global_batch(folder: &Path) -> Option<u64> {
    let text = regular_file::read(&folder.join("trainer/state.json"), SMALL).ok()?;
    let state: TrainerState = serde_json::from_slice(&text).ok()?;
    state.global_batch
}

/// The highest step that a state can have. It is low enough that sums with it fit in 64 bits, and higher than
/// any run needs.
const LAST_STEP: u64 = 1 << 48;

fn read_observers(trainer: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let io = |error: io::Error| Error::io("read the checkpoint", trainer, &error);
    let mut states = BTreeMap::new();
    for entry in fs::read_dir(trainer).map_err(io)? {
        let entry = entry.map_err(io)?;
        if let Some(label) = entry.file_name().to_string_lossy().strip_prefix(OBSERVER) {
            let state = regular_file::read(&entry.path(), OBSERVER_BYTES).map_err(io)?;
            states.insert(label.to_owned(), state);
        }
    }
    Ok(states)
}
