use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{MetricValue, Result, RunName, Step};

/// A complete checkpoint in the run folder.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckpointDir {
    /// The optimizer step it was taken at.
    pub step: Step,
    /// Its folder; absolute.
    pub path: PathBuf,
    /// What is in it.
    pub manifest: Manifest,
    /// The evaluation's values at this step.
    pub metrics: Vec<MetricValue>,
}

/// `manifest.json`: every file of a checkpoint but itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// By path relative to the checkpoint's folder, with `/` between folders.
    pub files: BTreeMap<String, FileEntry>,
}

/// A file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Lower-case hexadecimal.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
}

impl Manifest {
    /// Size of all files in bytes, as the manifest says.
    pub fn total_bytes(&self) -> u64 {
        let sizes = self.files.values().map(|file| file.size);
        // A manifest may come from somebody else.
        sizes.fold(0, u64::saturating_add)
    }
}

/// A delivery to make.
#[derive(Clone, Copy, Debug)]
pub struct Publish<'a> {
    /// The run.
    pub run: &'a RunName,
    /// The checkpoint.
    pub checkpoint: &'a CheckpointDir,
    /// A folder of the sink's own, which exists.
    pub state_dir: &'a std::path::Path,
}

/// A question before the first step: will deliveries arrive?
#[derive(Clone, Copy, Debug)]
pub struct Preflight<'a> {
    /// The run.
    pub run: &'a RunName,
    /// A folder of the sink's own, which exists.
    pub state_dir: &'a std::path::Path,
    /// About how many bytes a checkpoint takes.
    pub checkpoint_bytes: u64,
    /// About how many of them are the model, its configuration and its tokenizer.
    pub model_bytes: u64,
}

/// A checkpoint that is wanted back.
#[derive(Clone, Copy, Debug)]
pub struct Fetch<'a> {
    /// Which one, in the destination's own words; `None` is the newest.
    pub revision: Option<&'a str>,
    /// Whether all that a resume needs is wanted, not the model, its configuration and its tokenizer
    /// alone.
    pub for_resume: bool,
    /// A folder of the sink's own, which exists.
    pub state_dir: &'a std::path::Path,
}

/// A checkpoint that was brought back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetched {
    /// Its folder, within the sink's own; whole, and laid out as it was delivered.
    pub path: PathBuf,
    /// What brings the very same back, if the sink says so.
    pub commit: Option<String>,
}

/// What a sink says about a delivery: a JSON object of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt(pub String);

/// Why a delivery did not happen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SinkError {
    /// It may go well later.
    Temporary(String),
    /// It will not.
    Permanent(String),
    /// It was asked to end.
    Cancelled,
}

/// The port to where checkpoints go. A sink lives on a worker thread of its own and may block.
pub trait CheckpointSink: Send {
    /// The sink's plugin id.
    fn id(&self) -> &str;

    /// Delivers; the same again changes nothing.
    fn publish(&mut self, publish: Publish<'_>) -> Result<Receipt, SinkError>;

    /// Whether deliveries will arrive, as far as can be known now; what was found, if the sink says so.
    /// Nothing is delivered.
    fn preflight(&mut self, preflight: Preflight<'_>) -> Result<Option<String>, SinkError> {
        let _ = preflight;
        Ok(None)
    }

    /// Brings a checkpoint back from where it was delivered; the same again changes nothing.
    fn fetch(&mut self, fetch: Fetch<'_>) -> Result<Fetched, SinkError> {
        let _ = fetch;
        Err(SinkError::Permanent(
            "it brings no checkpoint back".to_owned(),
        ))
    }

    /// What asks the call that is running, if any, to end soon. `[any]`
    fn canceller(&self) -> Box<dyn Fn() + Send + Sync>;

    /// Why it cannot be called again in this run: it panicked too often.
    fn lost(&self) -> Option<String> {
        None
    }
}
