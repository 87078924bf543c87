//! The file `.kept.json` in a run's folder. It lists the checkpoints that the sink has written to this
//! folder. The file is next to the checkpoints, so it is available after a resume and always describes the
//! disk that it is on.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::PathBuf;

use host_plugin_sdk::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::copy::{Placed, manifest_sha256};
use crate::dir::{Dir, failed};

const FILE: &str = ".kept.json";
/// Size limit of the file: enough for some hundred thousand checkpoints.
const MOST_BYTES: u64 = 64 << 20;

/// The checkpoints in a run's folder that the sink created. No other checkpoints are ever replaced or
/// removed.
#[derive(Debug)]
pub(crate) struct Kept<'a> {
    folder: &'a Dir,
    entries: Vec<Entry>,
}

/// A checkpoint that was created or is being created. If a crash prevents the rename to the final name, the
/// entry has no checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) step: u64,
    #[serde(flatten)]
    pub(crate) placed: Placed,
    /// The evaluation's values as text. Text is exact and, unlike JSON numbers, can express infinities and
    /// NaN.
    metrics: BTreeMap<String, String>,
}

impl Entry {
    pub(crate) fn new(step: u64, placed: Placed, metrics: &BTreeMap<String, f64>) -> Self {
        Self {
            step,
            placed,
            metrics: text(metrics),
        }
    }

    /// Returns a value of the evaluation. Returns `None` if the value is missing or NaN.
    pub(crate) fn metric(&self, name: &str) -> Option<f64> {
        let value: f64 = self.metrics.get(name)?.parse().ok()?;
        (!value.is_nan()).then_some(value)
    }
}

impl<'a> Kept<'a> {
    /// Reads the file. The list is empty if the file does not exist.
    pub(crate) fn read(folder: &'a Dir) -> Result<Self> {
        let path = folder.path().join(FILE);
        let entries = match folder.read(FILE, MOST_BYTES) {
            Ok(json) => serde_json::from_slice(&json)
                .map_err(|error| Error::new(format!("cannot read: {error}: {}", path.display())))?,
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(failed("read", &path, &error)),
        };
        Ok(Self { folder, entries })
    }

    /// Returns the folder name of a step's checkpoint.
    pub(crate) fn name(step: u64) -> String {
        format!("step-{step:06}")
    }

    /// Returns the path of a step's checkpoint.
    pub(crate) fn path(&self, step: u64) -> PathBuf {
        self.folder.path().join(Self::name(step))
    }

    /// Returns the entry of the step's checkpoint, if it exists and the sink created it.
    pub(crate) fn find(&self, step: u64) -> Option<&Entry> {
        self.entries
            .iter()
            .find(|entry| entry.step == step && self.stands(entry))
    }

    /// Returns the entries of all existing checkpoints, in the order in which they were created.
    pub(crate) fn standing(&self) -> Vec<&Entry> {
        let entries = self.entries.iter();
        entries.filter(|entry| self.stands(entry)).collect()
    }

    /// Adds the entry of a checkpoint that is about to become visible. The entry of an earlier checkpoint of
    /// the same step is kept as well, because that checkpoint is still visible.
    pub(crate) fn note(&mut self, entry: Entry) -> Result<()> {
        let is_same = |other: &Entry| {
            other.step == entry.step && other.placed.manifest_sha256 == entry.placed.manifest_sha256
        };
        self.entries.retain(|other| !is_same(other));
        self.entries.push(entry);
        self.save()
    }

    /// Updates the entry with the values of a later evaluation of the same checkpoint.
    pub(crate) fn update_metrics(
        &mut self,
        step: u64,
        metrics: &BTreeMap<String, f64>,
    ) -> Result<()> {
        // If a later delivery has no evaluation, the earlier values are kept.
        if metrics.is_empty() {
            return Ok(());
        }
        let metrics = text(metrics);
        match self.find(step).cloned() {
            Some(entry) if entry.metrics != metrics => self.note(Entry { metrics, ..entry }),
            _ => Ok(()),
        }
    }

    /// Removes the entries of checkpoints that no longer exist. Keeps the entries of checkpoints that
    /// temporarily cannot be read.
    pub(crate) fn forget_removed(&mut self) -> Result<()> {
        let is_there = |entry: &Entry| match self.manifest(entry) {
            Ok(sha256) => sha256 == entry.placed.manifest_sha256,
            Err(error) => error.kind() != ErrorKind::NotFound,
        };
        let there: Vec<Entry> = self
            .entries
            .iter()
            .filter(|e| is_there(e))
            .cloned()
            .collect();
        if there.len() == self.entries.len() {
            return Ok(());
        }
        self.entries = there;
        self.save()
    }

    /// Whether the checkpoint exists. Compares the manifest's digest, because another folder can have the
    /// checkpoint's name.
    fn stands(&self, entry: &Entry) -> bool {
        self.manifest(entry)
            .is_ok_and(|sha256| sha256 == entry.placed.manifest_sha256)
    }

    fn manifest(&self, entry: &Entry) -> io::Result<String> {
        let checkpoint = self.folder.dir(Self::name(entry.step))?;
        manifest_sha256(&checkpoint)
    }

    fn save(&self) -> Result<()> {
        let json = serde_json::to_string_pretty(&self.entries)? + "\n";
        self.folder
            .write(FILE, json.as_bytes())
            .map_err(|error| failed("write", &self.folder.path().join(FILE), &error))
    }
}

fn text(metrics: &BTreeMap<String, f64>) -> BTreeMap<String, String> {
    let text = |(name, value): (&String, &f64)| (name.clone(), value.to_string());
    metrics.iter().map(text).collect()
}
