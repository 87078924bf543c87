use std::collections::BTreeMap;
use std::path::{Component, Path};

use host_plugin_abi::HostCheckpoint;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, instance, sized};

/// A complete checkpoint in the run folder. It does not change while it is published.
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
///     // A sink keeps its state in its own folder.
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

/// The content of a checkpoint's `manifest.json`. It lists all files in the checkpoint's folder except
/// `manifest.json` itself.
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
    /// The files by path relative to the folder, with `/` as the separator.
    pub files: BTreeMap<String, FileEntry>,
}

/// A file of a checkpoint.
///
/// ```
/// use host_plugin_sdk::{CheckpointManifest, FileEntry};
///
/// /// The files of the new checkpoint that are not in the old one.
/// fn changed<'a>(new: &'a CheckpointManifest, old: &CheckpointManifest) -> Vec<&'a str> {
///     let is_new = |(path, file): &(&String, &FileEntry)| old.files.get(*path) != Some(file);
///     new.files.iter().filter(is_new).map(|(path, _)| &**path).collect()
/// }
/// assert!(changed(&Default::default(), &Default::default()).is_empty());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// SHA-256 of the content, in lower-case hexadecimal.
    pub sha256: String,
    /// Size in bytes.
    pub size: u64,
}

/// A metric's value in the host's JSON. Infinity and NaN are strings.
#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Finite(f64),
    Other(String),
}

impl<'a> Checkpoint<'a> {
    /// Returns the optimizer step of the checkpoint.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Returns the run's name, which is also valid as the name of a folder and of a git branch.
    pub fn run(&self) -> &'a str {
        self.run
    }

    /// Returns the absolute path of the checkpoint's folder. Do not write to it.
    pub fn dir(&self) -> &'a Path {
        self.dir
    }

    /// Returns the files by path relative to [`dir`](Self::dir), without `manifest.json`. All paths are
    /// inside the folder.
    pub fn files(&self) -> &BTreeMap<String, FileEntry> {
        &self.manifest.files
    }

    /// Returns the content of `manifest.json`.
    pub fn manifest(&self) -> &CheckpointManifest {
        &self.manifest
    }

    /// Returns the values of the evaluation at this step. Values can be infinite or NaN.
    pub fn metrics(&self) -> &BTreeMap<String, f64> {
        &self.metrics
    }

    /// Returns the sink's own folder. The folder exists, is kept after the run, and is not part of any
    /// checkpoint.
    pub fn state_dir(&self) -> &'a Path {
        self.state_dir
    }

    /// # Safety
    /// `checkpoint` is null, or points to data that is valid for `'a` according to the ABI.
    pub(crate) unsafe fn new(checkpoint: *const HostCheckpoint) -> Result<Self> {
        // SAFETY: guaranteed by the caller.
        let raw = unsafe { sized::read(checkpoint) }?;
        // SAFETY: as above.
        let text = |view, what| unsafe { instance::text(view, what) };
        let run = text(raw.run, "a run's name")?;
        if !stays_inside(run) || run.contains('/') {
            return Err(Error::new(format!(
                "the host passed a bad run name: {run:?}"
            )));
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

/// Whether the path, joined to a folder, stays inside the folder.
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
    fn metrics_can_be_infinite_or_nan() {
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
