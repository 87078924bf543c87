use std::collections::BTreeMap;
use std::path::{Component, Path};

use host_plugin_abi::HostCheckpoint;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, instance, sized};

/// A complete checkpoint in the run folder, which nobody changes while it is published.
///
/// ```
/// use host_plugin_sdk::fake;
///
/// let scratch = fake::Scratch::new();
/// let folder = scratch.path().join("step-000100");
/// let checkpoint = fake::Checkpoint::write(&folder, 100, &[("model.safetensors", b"weights")])
///     .of_run("first")
///     .with_metric("loss/eval", 2.5);
/// checkpoint.read(|checkpoint| {
///     assert_eq!((checkpoint.run(), checkpoint.step()), ("first", 100));
///     assert_eq!(checkpoint.metrics()["loss/eval"], 2.5);
///     for (path, file) in checkpoint.files() {
///         let bytes = std::fs::read(checkpoint.dir().join(path)).expect("complete");
///         assert_eq!(bytes.len() as u64, file.size);
///     }
///     assert_eq!(checkpoint.manifest().files.len(), 1);
///     // What a sink has to know the next time, it keeps in a folder of its own.
///     std::fs::write(checkpoint.state_dir().join("last"), "100").expect("there is room");
/// });
/// ```
#[derive(Clone, Debug)]
pub struct Checkpoint<'a> {
    step: u64,
    run: &'a str,
    dir: &'a Path,
    manifest: CheckpointManifest,
    metrics: BTreeMap<String, f64>,
    state_dir: &'a Path,
}

/// A checkpoint's `manifest.json`: every file of its folder but that one.
///
/// ```
/// use host_plugin_sdk::CheckpointManifest;
///
/// let json = r#"{"files": {"config.json": {"sha256": "5feceb66", "size": 120}}}"#;
/// let manifest: CheckpointManifest = serde_json::from_str(json).expect("a manifest");
/// assert_eq!(manifest.files["config.json"].size, 120);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointManifest {
    /// By path relative to the folder, with `/` between folders.
    pub files: BTreeMap<String, FileEntry>,
}

/// A file of a checkpoint.
///
/// ```
/// use host_plugin_sdk::{CheckpointManifest, FileEntry};
///
/// /// What is in the new checkpoint and not in the old one.
/// fn changed<'a>(new: &'a CheckpointManifest, old: &CheckpointManifest) -> Vec<&'a str> {
///     let is_new = |(path, file): &(&String, &FileEntry)| old.files.get(*path) != Some(file);
///     new.files.iter().filter(is_new).map(|(path, _)| &**path).collect()
/// }
/// assert!(changed(&Default::default(), &Default::default()).is_empty());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Lower-case hexadecimal.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
}

/// As the host writes a metric's value: JSON has no infinity.
#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Finite(f64),
    Other(String),
}

impl<'a> Checkpoint<'a> {
    /// The optimizer step it was taken at.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The run's name. It can name a folder and a git branch.
    pub fn run(&self) -> &'a str {
        self.run
    }

    /// Its folder; absolute. Not to be written to.
    pub fn dir(&self) -> &'a Path {
        self.dir
    }

    /// Its files by their path within [`dir`](Self::dir), without `manifest.json` itself. No path
    /// leaves the folder.
    pub fn files(&self) -> &BTreeMap<String, FileEntry> {
        &self.manifest.files
    }

    /// What `manifest.json` says.
    pub fn manifest(&self) -> &CheckpointManifest {
        &self.manifest
    }

    /// The evaluation's values at this step. Infinity and NaN are values.
    pub fn metrics(&self) -> &BTreeMap<String, f64> {
        &self.metrics
    }

    /// A folder of the sink's own, which exists, survives the run and is part of no checkpoint.
    pub fn state_dir(&self) -> &'a Path {
        self.state_dir
    }

    /// # Safety
    /// `checkpoint` is null, or what it points to is as the ABI promises and stays so for `'a`.
    pub(crate) unsafe fn new(checkpoint: *const HostCheckpoint) -> Result<Self> {
        // SAFETY: the caller's promise.
        let raw = unsafe { sized::read(checkpoint) }?;
        // SAFETY: as above.
        let text = |view, what| unsafe { instance::text(view, what) };
        let run = text(raw.run, "a run's name")?;
        if !stays_inside(run) || run.contains('/') {
            return Err(Error::new(format!("the host passed the run name {run:?}")));
        }
        let manifest = text(raw.manifest_json, "a manifest")?;
        let manifest: CheckpointManifest = serde_json::from_str(manifest)
            .map_err(|error| Error::new(format!("bad checkpoint manifest: {error}")))?;
        if let Some(path) = manifest.files.keys().find(|path| !stays_inside(path)) {
            let message = format!("bad checkpoint manifest: a file outside the folder: {path}");
            return Err(Error::new(message));
        }
        Ok(Self {
            step: raw.step,
            run,
            dir: Path::new(text(raw.dir, "a folder")?),
            manifest,
            metrics: metrics(text(raw.metrics_json, "metrics")?)?,
            state_dir: Path::new(text(raw.state_dir, "a folder")?),
        })
    }
}

fn metrics(json: &str) -> Result<BTreeMap<String, f64>> {
    let bad = |why: String| Error::new(format!("bad checkpoint metrics: {why}"));
    let numbers: BTreeMap<String, Number> =
        serde_json::from_str(json).map_err(|error| bad(error.to_string()))?;
    numbers
        .into_iter()
        .map(|(name, number)| match number {
            Number::Finite(value) => Ok((name, value)),
            Number::Other(text) => match text.as_str() {
                "inf" => Ok((name, f64::INFINITY)),
                "-inf" => Ok((name, f64::NEG_INFINITY)),
                "nan" => Ok((name, f64::NAN)),
                _ => Err(bad(format!("{name} is {text:?}"))),
            },
        })
        .collect()
}

/// Whether joining the path to a folder gives something in that folder.
fn stays_inside(path: &str) -> bool {
    !path.is_empty()
        && Path::new(path)
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_may_be_infinite_or_no_number() {
        let read = metrics(r#"{"a": 1.5, "b": "inf", "c": "-inf", "d": "nan", "e": 3}"#);
        let read = read.expect("read");
        assert_eq!(read["a"], 1.5);
        assert_eq!(read["b"], f64::INFINITY);
        assert_eq!(read["c"], f64::NEG_INFINITY);
        assert!(read["d"].is_nan());
        assert_eq!(read["e"], 3.0);
        assert!(metrics(r#"{"a": "many"}"#).is_err());
    }

    #[test]
    fn a_path_stays_in_its_folder() {
        for good in ["a", "trainer/optimizer.safetensors", ".gitattributes"] {
            assert!(stays_inside(good), "{good}");
        }
        for bad in ["", "/etc/passwd", "../a", "a/../../b", "./a"] {
            assert!(!stays_inside(bad), "{bad}");
        }
    }
}
