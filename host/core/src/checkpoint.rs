use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{MetricValue, Result, RunName, Step};

/// A complete checkpoint in the run folder.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckpointDir {
    /// The optimizer step at which the checkpoint was taken.
    pub step: Step,
    /// The absolute path of the checkpoint's folder.
    pub path: PathBuf,
    /// The manifest, which lists the checkpoint's files.
    pub manifest: Manifest,
    /// The values of the evaluation at this step.
    pub metrics: Vec<MetricValue>,
}

/// `manifest.json`, which lists every other file of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The files by path. A path is relative to the checkpoint's folder, and uses `/` between folders.
    pub files: BTreeMap<String, FileEntry>,
}

/// A file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// The SHA-256 of the content, in lower-case hexadecimal.
    pub sha256: String,
    /// The size in bytes.
    pub size: u64,
}

impl Manifest {
    /// Returns the total size of all files in bytes, according to the manifest.
    pub fn total_bytes(&self) -> u64 {
        let sizes = self.files.values().map(|file| file.size);
        // An untrusted manifest can contain any numbers.
        sizes.fold(0, u64::saturating_add)
    }
}

/// A request to deliver a checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct Publish<'a> {
    /// The run.
    pub run: &'a RunName,
    /// The checkpoint.
    pub checkpoint: &'a CheckpointDir,
    /// The sink's private folder. It exists.
    pub state_dir: &'a std::path::Path,
}

/// A request to check that deliveries will succeed. A sink receives it before the first step.
#[derive(Clone, Copy, Debug)]
pub struct Preflight<'a> {
    /// The run.
    pub run: &'a RunName,
    /// The sink's private folder. It exists.
    pub state_dir: &'a std::path::Path,
    /// The approximate size in bytes of a whole checkpoint.
    pub checkpoint_bytes: u64,
    /// The approximate size in bytes of the model with its configuration and its tokenizer.
    pub model_bytes: u64,
}

/// A request to fetch a delivered checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct Fetch<'a> {
    /// The revision, in the destination's own notation; `None` means the newest.
    pub revision: Option<&'a str>,
    /// Whether to fetch everything that a resume needs, or only the model, its configuration and its
    /// tokenizer.
    pub for_resume: bool,
    /// The sink's private folder. It exists.
    pub state_dir: &'a std::path::Path,
}

/// A checkpoint that a sink has fetched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetched {
    /// The checkpoint's folder, within the sink's private folder. The folder is complete, and has the layout
    /// of a delivered checkpoint.
    pub path: PathBuf,
    /// The revision that identifies exactly this checkpoint, if the sink returns one.
    pub commit: Option<String>,
}

/// A sink's confirmation of a delivery: a JSON object whose fields the sink defines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt(pub String);

/// Why a call to a sink failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SinkError {
    /// A later attempt may succeed.
    Temporary(String),
    /// No later attempt will succeed.
    Permanent(String),
    /// The call was cancelled.
    Cancelled,
}

/// The port to a destination of checkpoints. Each sink is called on its own worker thread, which it may
/// block.
pub trait CheckpointSink: Send {
    /// Returns the sink's plugin id.
    fn id(&self) -> &str;

    /// Delivers a checkpoint. Idempotent.
    fn publish(&mut self, publish: Publish<'_>) -> Result<Receipt, SinkError>;

    /// Checks, as far as possible, that deliveries will succeed. Returns a description of the result, if the
    /// sink provides a description. Delivers nothing.
    fn preflight(&mut self, preflight: Preflight<'_>) -> Result<Option<String>, SinkError> {
        let _ = preflight;
        Ok(None)
    }

    /// Fetches a checkpoint from the destination. Idempotent.
    fn fetch(&mut self, fetch: Fetch<'_>) -> Result<Fetched, SinkError> {
        let _ = fetch;
        Err(SinkError::Permanent(
            "it cannot fetch checkpoints".to_owned(),
        ))
    }

    /// Returns a function that cancels the running call, if there is one. A cancelled call should return
    /// soon. `[any]`
    fn canceller(&self) -> Box<dyn Fn() + Send + Sync>;

    /// Returns a reason if the sink has panicked too often and cannot be called again in this run. Otherwise,
    /// returns `None`.
    fn lost(&self) -> Option<String> {
        None
    }
}
