//! What a sink has put into a run's folder: the file `.kept.json` there. It is beside what it speaks of,
//! so it is there after a restart and a resume, and never speaks of another disk.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::PathBuf;

use host_plugin_sdk::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::copy::{Placed, manifest_sha256};
use crate::dir::{Dir, failed};

const FILE: &str = ".kept.json";
/// Of some hundred thousand checkpoints.
const MOST_BYTES: u64 = 64 << 20;

/// The checkpoints of a run's folder that are the sink's: nothing else is ever replaced or removed.
#[derive(Debug)]
pub(crate) struct Kept<'a> {
    folder: &'a Dir,
    entries: Vec<Entry>,
}

/// A checkpoint that was put there, or is about to be: a crash may come before the rename.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) step: u64,
    #[serde(flatten)]
    pub(crate) placed: Placed,
    /// The evaluation's values as text, which is exact and has a word for what is not finite.
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

    /// A value of the evaluation; NaN is none.
    pub(crate) fn metric(&self, name: &str) -> Option<f64> {
        let value: f64 = self.metrics.get(name)?.parse().ok()?;
        (!value.is_nan()).then_some(value)
    }
}

impl<'a> Kept<'a> {
    /// What the file says; nothing if there is none.
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

    /// What the checkpoint of a step is called.
    pub(crate) fn name(step: u64) -> String {
        format!("step-{step:06}")
    }

    /// Where the checkpoint of a step is.
    pub(crate) fn path(&self, step: u64) -> PathBuf {
        self.folder.path().join(Self::name(step))
    }

    /// The checkpoint of this step that stands there and is the sink's.
    pub(crate) fn find(&self, step: u64) -> Option<&Entry> {
        self.entries
            .iter()
            .find(|entry| entry.step == step && self.stands(entry))
    }

    /// All that stand there, in the order in which they were put.
    pub(crate) fn standing(&self) -> Vec<&Entry> {
        let entries = self.entries.iter();
        entries.filter(|entry| self.stands(entry)).collect()
    }

    /// Takes note of one before it appears. What the file said of its step stays until it has.
    pub(crate) fn note(&mut self, entry: Entry) -> Result<()> {
        let is_same = |other: &Entry| {
            other.step == entry.step && other.placed.manifest_sha256 == entry.placed.manifest_sha256
        };
        self.entries.retain(|other| !is_same(other));
        self.entries.push(entry);
        self.save()
    }

    /// Takes the values of a later evaluation of the same checkpoint.
    pub(crate) fn update_metrics(
        &mut self,
        step: u64,
        metrics: &BTreeMap<String, f64>,
    ) -> Result<()> {
        // A checkpoint beside no evaluation says nothing of the one that was.
        if metrics.is_empty() {
            return Ok(());
        }
        let metrics = text(metrics);
        match self.find(step).cloned() {
            Some(entry) if entry.metrics != metrics => self.note(Entry { metrics, ..entry }),
            _ => Ok(()),
        }
    }

    /// Forgets what is not there any more. What only cannot be read just now is not forgotten.
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

    /// By its manifest: a folder that somebody else put there under its name has another.
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
