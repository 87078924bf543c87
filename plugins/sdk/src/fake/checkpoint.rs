use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs, process};

use host_plugin_abi::{HostCheckpoint, HostStr};
use sha2::{Digest, Sha256};

use crate::{CheckpointManifest, FileEntry};

/// A checkpoint on disk.
///
/// ```
/// use host_plugin_sdk::fake::{Checkpoint, Scratch};
///
/// let scratch = Scratch::new();
/// let checkpoint = Checkpoint::write(&scratch.path().join("step-1"), 1, &[("a/b", b"bytes")])
///     .of_run("first")
///     .with_metric("perplexity", f64::INFINITY)
///     .with_state_dir(&scratch.path().join("my-sink"));
/// assert!(checkpoint.dir().join("manifest.json").is_file());
/// assert!(checkpoint.state_dir().is_dir());
/// let size = checkpoint.read(|checkpoint| checkpoint.files()["a/b"].size); // as in a sink
/// assert_eq!(size, 5);
/// checkpoint.view(|raw| assert_eq!(raw.step, 1)); // as in C
///
/// // A checkpoint with a wrong manifest, to test how a sink handles it.
/// let broken = checkpoint.claim_manifest("{}");
/// ```
#[derive(Clone, Debug)]
pub struct Checkpoint {
    step: u64,
    run: String,
    dir: PathBuf,
    manifest_json: String,
    metrics: BTreeMap<String, serde_json::Value>,
    state_dir: PathBuf,
}

impl Checkpoint {
    /// Writes a checkpoint of the run `demo` to the folder `dir`. `files` contains the path and content of
    /// each file. A `manifest.json` is added. The sink's own folder is `state` next to `dir`.
    ///
    /// # Panics
    /// Panics if the checkpoint cannot be written.
    pub fn write(dir: &Path, step: u64, files: &[(&str, &[u8])]) -> Self {
        let mut manifest = CheckpointManifest::default();
        for (name, content) in files {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder for the file");
            fs::write(path, content).expect("a file of the checkpoint");
            let entry = FileEntry {
                sha256: Sha256::digest(content)
                    .iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect(),
                size: content.len() as u64,
            };
            manifest.files.insert((*name).to_owned(), entry);
        }
        let manifest_json = serde_json::to_string_pretty(&manifest).expect("JSON");
        fs::create_dir_all(dir).expect("the checkpoint's folder");
        fs::write(dir.join("manifest.json"), &manifest_json).expect("the manifest");
        let state_dir = dir.parent().expect("a folder above").join("state");
        fs::create_dir_all(&state_dir).expect("the sink's folder");
        Self {
            step,
            run: "demo".to_owned(),
            dir: dir.to_owned(),
            manifest_json,
            metrics: BTreeMap::new(),
            state_dir,
        }
    }

    /// Sets the run's name.
    #[must_use]
    pub fn of_run(mut self, run: &str) -> Self {
        run.clone_into(&mut self.run);
        self
    }

    /// Adds a value of the evaluation at the checkpoint's step.
    #[must_use]
    pub fn with_metric(mut self, name: &str, value: f64) -> Self {
        let json = if value.is_nan() {
            "nan".into()
        } else if value.is_infinite() {
            if value > 0.0 { "inf" } else { "-inf" }.into()
        } else {
            value.into()
        };
        self.metrics.insert(name.to_owned(), json);
        self
    }

    /// Sets the sink's own folder and creates it.
    ///
    /// # Panics
    /// Panics if the folder cannot be created.
    #[must_use]
    pub fn with_state_dir(mut self, state_dir: &Path) -> Self {
        fs::create_dir_all(state_dir).expect("the sink's folder");
        state_dir.clone_into(&mut self.state_dir);
        self
    }

    /// Passes this manifest to the sink, instead of the manifest in the checkpoint's folder.
    #[must_use]
    pub fn claim_manifest(mut self, manifest_json: &str) -> Self {
        manifest_json.clone_into(&mut self.manifest_json);
        self
    }

    /// Returns the checkpoint's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the sink's own folder.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Passes the checkpoint to a function, in the same form as to
    /// [`CheckpointSink::publish`](crate::CheckpointSink::publish).
    ///
    /// # Panics
    /// Panics if a path is not UTF-8, or if the claimed manifest is invalid.
    pub fn read<R>(&self, call: impl FnOnce(&crate::Checkpoint<'_>) -> R) -> R {
        // SAFETY: the view is valid during the call.
        self.view(|raw| call(&unsafe { crate::Checkpoint::new(raw) }.expect("valid checkpoint")))
    }

    /// Passes the checkpoint to a function as the C struct.
    ///
    /// # Panics
    /// Panics if a path is not UTF-8.
    pub fn view<R>(&self, call: impl FnOnce(&HostCheckpoint) -> R) -> R {
        let metrics_json = serde_json::to_string(&self.metrics).expect("JSON");
        call(&HostCheckpoint {
            struct_size: size_of::<HostCheckpoint>() as u32,
            flags: 0,
            step: self.step,
            run: HostStr::new(&self.run),
            dir: HostStr::new(self.dir.to_str().expect("UTF-8")),
            manifest_json: HostStr::new(&self.manifest_json),
            metrics_json: HostStr::new(&metrics_json),
            state_dir: HostStr::new(self.state_dir.to_str().expect("UTF-8")),
        })
    }
}

/// A folder for one test. It is removed with its contents on drop.
///
/// ```
/// use host_plugin_sdk::fake::Scratch;
///
/// let scratch = Scratch::new();
/// let path = scratch.path().to_owned();
/// std::fs::write(path.join("x"), "y").expect("written");
/// drop(scratch);
/// assert!(!path.exists());
/// ```
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Creates a new, empty folder.
    ///
    /// # Panics
    /// Panics if the folder cannot be created.
    #[expect(clippy::new_without_default, reason = "it creates a folder")]
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("host-plugin-{}-{number}", process::id()));
        // An earlier process with the same process id can have left a folder behind.
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("a folder for the test");
        Self(path)
    }

    /// Returns the folder's path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
