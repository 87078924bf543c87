//! Checkpoints: the loop copies its state, a thread of its own writes it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use host_core::{
    CheckpointDir, Emitter, Error, EventBody, FileEntry, Kind, Manifest, MetricValue, Result, Step,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::Tensor;

use crate::data::{Cursor, hex};
use crate::weights::{self, HostTensor};

/// `trainer/state.json`: what is no tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TrainerState {
    /// Of this file and its neighbours.
    format: u32,
    pub(crate) step: Step,
    pub(crate) data: Cursor,
    /// Names and sizes of the training files, hashed: another corpus cannot be gone on with.
    pub(crate) data_sha256: String,
}

const FORMAT: u32 = 1;

impl TrainerState {
    pub(crate) fn new(step: Step, data: Cursor, data_sha256: String) -> Self {
        Self {
            format: FORMAT,
            step,
            data,
            data_sha256,
        }
    }
}

/// All that a training needs to go on, copied to main memory. The buffers are used again.
#[derive(Debug)]
pub(crate) struct Snapshot {
    state: TrainerState,
    model: Vec<HostTensor>,
    optimizer: Vec<HostTensor>,
    random: Vec<HostTensor>,
    buffer: HostTensor,
    metrics: Vec<MetricValue>,
    stall: Duration,
}

/// The parts of a training that a snapshot copies.
pub(crate) struct Live<'a> {
    pub(crate) state: TrainerState,
    pub(crate) model: Vec<(&'a str, &'a Tensor)>,
    pub(crate) optimizer: Vec<(String, Tensor)>,
    pub(crate) random: Vec<(&'static str, Tensor)>,
    pub(crate) buffer: &'a [Box<[u32]>],
    pub(crate) metrics: Vec<MetricValue>,
}

/// What a checkpoint was, read back.
pub(crate) struct Stored {
    pub(crate) state: TrainerState,
    pub(crate) optimizer: HashMap<String, Tensor>,
    pub(crate) random: HashMap<String, Tensor>,
    pub(crate) buffer: Vec<Box<[u32]>>,
}

/// What every checkpoint of a run has in common.
#[derive(Debug)]
pub(crate) struct Layout {
    /// The folder that receives the checkpoints.
    pub(crate) folder: PathBuf,
    /// Files with the same content in every checkpoint: (name, content).
    pub(crate) files: Vec<(&'static str, String)>,
    /// How many checkpoints stay; 0 keeps all.
    pub(crate) keep: usize,
}

/// The loop's end of the checkpoint writer.
pub(crate) struct CheckpointWriter<'scope> {
    snapshots: SyncSender<Snapshot>,
    /// Snapshots that were written and may be filled again.
    returned: Receiver<Snapshot>,
    /// The one set of buffers, while it is not with the thread.
    buffers: Option<Snapshot>,
    thread: ScopedJoinHandle<'scope, ()>,
}

impl<'scope> CheckpointWriter<'scope> {
    /// Starts the thread, and reserves the buffers by a first copy. The thread tells `on_checkpoint` of each complete checkpoint, and prunes those
    /// that are too many unless `is_needed`.
    pub(crate) fn spawn<'env>(
        scope: &'scope Scope<'scope, 'env>,
        layout: Layout,
        emitter: Emitter,
        mut on_checkpoint: Box<dyn FnMut(CheckpointDir) + Send + 'env>,
        is_needed: Box<dyn Fn(Step) -> bool + Send + 'env>,
        reserve: Live<'_>,
    ) -> Result<Self> {
        fs::create_dir_all(&layout.folder)
            .map_err(|error| Error::io("make the checkpoint folder", &layout.folder, &error))?;
        let (snapshots, incoming) = sync_channel::<Snapshot>(1);
        let (back, returned) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("checkpoint".to_owned())
            .spawn_scoped(scope, move || {
                for snapshot in incoming {
                    let begin = Instant::now();
                    let step = snapshot.state.step;
                    match snapshot.write(&layout) {
                        Ok(dir) => {
                            emitter.emit(
                                step,
                                EventBody::CheckpointWritten {
                                    name: name(step),
                                    bytes: dir.manifest.total_bytes(),
                                    stall_secs: snapshot.stall.as_secs_f64(),
                                    write_secs: begin.elapsed().as_secs_f64(),
                                },
                            );
                            on_checkpoint(dir);
                            layout.prune(step, &*is_needed);
                        }
                        Err(error) => emitter.emit(
                            step,
                            EventBody::CheckpointFailed {
                                reason: error.to_string(),
                            },
                        ),
                    }
                    // The loop may be gone already.
                    let _ = back.send(snapshot);
                }
            })
            .map_err(|error| {
                Error::new(
                    Kind::System,
                    format!("cannot start the checkpoint thread: {error}"),
                )
            })?;
        Ok(Self {
            snapshots,
            returned,
            buffers: Some(Snapshot::copy_of(reserve)?),
            thread,
        })
    }

    /// Copies the state and hands it to the thread. Waits first if the checkpoint before is not
    /// finished. Returns how long it waited and how long it copied.
    pub(crate) fn save(&mut self, live: Live<'_>) -> Result<(Duration, Duration)> {
        let ended = |_| Error::new(Kind::System, "the checkpoint thread ended");
        let begin = Instant::now();
        let mut snapshot = match self.buffers.take() {
            Some(snapshot) => snapshot,
            None => self.returned.recv().map_err(|_| ()).map_err(ended)?,
        };
        let waited = begin.elapsed();
        snapshot.refresh(live)?;
        snapshot.stall = begin.elapsed();
        let copied = snapshot.stall - waited;
        self.snapshots
            .send(snapshot)
            .map_err(|_| ())
            .map_err(ended)?;
        Ok((waited, copied))
    }

    /// Waits until the last checkpoint is written.
    pub(crate) fn finish(self) {
        drop(self.snapshots);
        // A panic of the thread goes on in the scope that it belongs to.
        let _ = self.thread.join();
    }
}

impl Snapshot {
    fn copy_of(live: Live<'_>) -> Result<Self> {
        Ok(Self {
            buffer: buffer_tensor(live.buffer),
            random: random_tensors(&live.random)?,
            model: live
                .model
                .iter()
                .map(|(name, tensor)| HostTensor::copy_of(*name, tensor))
                .collect::<Result<_>>()?,
            optimizer: live
                .optimizer
                .iter()
                .map(|(name, tensor)| HostTensor::copy_of(name, tensor))
                .collect::<Result<_>>()?,
            state: live.state,
            metrics: live.metrics,
            stall: Duration::ZERO,
        })
    }

    fn refresh(&mut self, live: Live<'_>) -> Result<()> {
        let model = live.model.iter().map(|(_, tensor)| *tensor);
        let optimizer = live.optimizer.iter().map(|(_, tensor)| tensor);
        let copies = self.model.iter_mut().chain(&mut self.optimizer);
        HostTensor::refresh(copies.zip(model.chain(optimizer)))?;
        self.random = random_tensors(&live.random)?;
        self.buffer = buffer_tensor(live.buffer);
        self.state = live.state;
        self.metrics = live.metrics;
        Ok(())
    }

    /// Writes the checkpoint beside its place and moves it there by one rename.
    fn write(&self, layout: &Layout) -> Result<CheckpointDir> {
        let step = self.state.step;
        let path = layout.folder.join(name(step));
        let partial = layout.folder.join(format!(".{}.partial", name(step)));
        let written = self.write_into(&partial, layout).and_then(|manifest| {
            replace(&partial, &path)?;
            Ok(CheckpointDir {
                step,
                path,
                manifest,
                metrics: self.metrics.clone(),
            })
        });
        if written.is_err() {
            // What is left of it takes room that the next one needs; if it stays, it is not taken
            // for a checkpoint.
            let _ = fs::remove_dir_all(&partial);
        }
        written
    }

    fn write_into(&self, folder: &Path, layout: &Layout) -> Result<Manifest> {
        let io = |error: io::Error| Error::io("write the checkpoint", folder, &error);
        if folder.exists() {
            fs::remove_dir_all(folder).map_err(io)?;
        }
        let trainer = folder.join("trainer");
        fs::create_dir_all(&trainer).map_err(io)?;
        for (name, content) in &layout.files {
            fs::write(folder.join(name), content).map_err(io)?;
        }
        let state = serde_json::to_string_pretty(&self.state).unwrap_or_default();
        fs::write(trainer.join("state.json"), state + "\n").map_err(io)?;
        weights::write(&folder.join("model.safetensors"), self.model.iter())?;
        weights::write(
            &trainer.join("optimizer.safetensors"),
            self.optimizer.iter(),
        )?;
        weights::write(&trainer.join("random.safetensors"), self.random.iter())?;
        weights::write(
            &trainer.join("data.safetensors"),
            std::iter::once(&self.buffer),
        )?;

        let mut manifest = Manifest::default();
        for below in ["", "trainer/"] {
            for entry in fs::read_dir(folder.join(below)).map_err(io)? {
                let entry = entry.map_err(io)?;
                if entry.file_type().map_err(io)?.is_file() {
                    let name = format!("{below}{}", entry.file_name().to_string_lossy());
                    manifest
                        .files
                        .insert(name, hash_and_sync(&entry.path()).map_err(io)?);
                }
            }
        }
        let json = serde_json::to_string_pretty(&manifest).unwrap_or_default();
        fs::write(folder.join("manifest.json"), json + "\n").map_err(io)?;
        for path in [&folder.join("manifest.json"), &trainer, folder] {
            sync(path).map_err(io)?;
        }
        Ok(manifest)
    }
}

impl Layout {
    /// Removes the oldest checkpoints beyond `keep`, but not the newest nor any that is needed.
    fn prune(&self, newest: Step, is_needed: &dyn Fn(Step) -> bool) {
        if self.keep == 0 {
            return;
        }
        let Ok(entries) = fs::read_dir(&self.folder) else {
            return;
        };
        let mut steps: Vec<Step> = entries
            .filter_map(|entry| step_of(&entry.ok()?.file_name().to_string_lossy()))
            .collect();
        steps.sort_unstable();
        let excess = steps.len().saturating_sub(self.keep);
        for &step in &steps[..excess] {
            if step != newest && !is_needed(step) {
                // It stops being a checkpoint by one rename; what cannot be removed is tried again
                // when the next is pruned.
                let doomed = self.folder.join(format!(".{}.pruned", name(step)));
                if fs::rename(self.folder.join(name(step)), &doomed).is_ok() {
                    let _ = fs::remove_dir_all(doomed);
                }
            }
        }
    }
}

impl Stored {
    /// Reads what a checkpoint holds besides the model.
    ///
    /// # Errors
    /// A folder that is no checkpoint of ours, or a file that is not what the manifest says.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        verify(folder)?;
        let trainer = folder.join("trainer");
        let file = trainer.join("state.json");
        let text = fs::read_to_string(&file)
            .map_err(|error| Error::io("read the checkpoint", &file, &error))?;
        let state: TrainerState = serde_json::from_str(&text).map_err(|error| {
            Error::new(
                Kind::Config,
                format!(
                    "the checkpoint's state cannot be used: {error}: {}",
                    file.display()
                ),
            )
        })?;
        if state.format != FORMAT {
            return Err(Error::new(
                Kind::Config,
                format!(
                    "the checkpoint's state has format {}, and this host reads {FORMAT}: {}",
                    state.format,
                    file.display()
                ),
            )
            .hint("resume with the version of the host that wrote it"));
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
        })
    }
}

/// Compares every file of a checkpoint with its manifest.
///
/// # Errors
/// Names the first file that is missing or not what it was.
pub fn verify(folder: &Path) -> Result<Manifest> {
    let file = folder.join("manifest.json");
    let text = fs::read_to_string(&file).map_err(|error| {
        Error::io("read the checkpoint's manifest", &file, &error)
            .hint("a folder without a manifest is no complete checkpoint; use another one")
    })?;
    let manifest: Manifest = serde_json::from_str(&text).map_err(|error| {
        Error::new(
            Kind::Config,
            format!(
                "the checkpoint's manifest cannot be used: {error}: {}",
                file.display()
            ),
        )
    })?;
    for (name, entry) in &manifest.files {
        let path = folder.join(name);
        let found = hash(&path).map_err(|error| Error::io("read the checkpoint", &path, &error))?;
        if found != *entry {
            return Err(Error::new(
                Kind::Config,
                format!(
                    "the checkpoint is damaged: a file is not what its manifest says: {}",
                    path.display()
                ),
            )
            .hint("remove the checkpoint's folder: the resume then goes on from the one before"));
        }
    }
    Ok(manifest)
}

/// A checkpoint's folder name. The digits keep the names in the steps' order.
pub(crate) fn name(step: Step) -> String {
    format!("step-{:06}", step.0)
}

fn step_of(name: &str) -> Option<Step> {
    name.strip_prefix("step-")?.parse().ok().map(Step)
}

/// Puts `partial` in the place of `path`, where a superseded checkpoint of the same step may stand.
fn replace(partial: &Path, path: &Path) -> Result<()> {
    let io = |error: io::Error| Error::io("move the checkpoint into place", path, &error);
    let old = partial.with_extension("superseded");
    if path.exists() {
        fs::rename(path, &old).map_err(io)?;
    }
    fs::rename(partial, path).map_err(io)?;
    sync(path.parent().unwrap_or(path)).map_err(io)?;
    if old.exists() {
        fs::remove_dir_all(&old).map_err(io)?;
    }
    Ok(())
}

fn buffer_tensor(buffer: &[Box<[u32]>]) -> HostTensor {
    let length = buffer.first().map_or(0, |sequence| sequence.len());
    HostTensor::of_u32("buffer", &buffer.concat(), [buffer.len(), length])
}

fn random_tensors(random: &[(&'static str, Tensor)]) -> Result<Vec<HostTensor>> {
    random
        .iter()
        .map(|(name, tensor)| HostTensor::copy_of(*name, tensor))
        .collect()
}

fn hash_and_sync(path: &Path) -> io::Result<FileEntry> {
    sync(path)?;
    hash(path)
}

fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn hash(path: &Path) -> io::Result<FileEntry> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    let mut size = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => {
                hash.update(&buffer[..n]);
                size += n as u64;
            }
        }
    }
    Ok(FileEntry {
        sha256: hex(&hash.finalize()),
        size,
    })
}
