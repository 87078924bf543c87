//! Checkpoints: the loop copies its state, a thread of its own writes it.

mod folder;
mod manifest;
mod removal;
mod setup;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use host_core::{
    Asked, CheckpointDir, Emitter, Error, EventBody, Kind, Manifest, MetricValue, Result, Step,
};
use serde::{Deserialize, Serialize};
use tch::Tensor;

pub(crate) use self::folder::{Layout, newest};
pub(crate) use self::manifest::verify_part;
use self::manifest::{hash, sync};
pub use self::manifest::{read as read_manifest, verify};
#[cfg(feature = "fuzz")]
pub(crate) use self::removal::remove;
pub(crate) use self::setup::{Setup, check as check_unchanged};
use crate::config::TrainConfig;
use crate::data::{Cursor, Fingerprint, Source};
use crate::regular_file::{self, SMALL};
use crate::weights::{self, HostTensor};

/// An observer's state is `trainer/observer-LABEL`, bytes of its own.
const OBSERVER: &str = "observer-";
/// Bytes of it at most, far more than a plugin may give.
const OBSERVER_BYTES: u64 = 1 << 30;

/// `trainer/state.json`: what is no tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct TrainerState {
    /// Of this file and its neighbours.
    format: u32,
    pub(crate) step: Step,
    pub(crate) data: Cursor,
    /// With other data a training cannot go on.
    #[serde(flatten)]
    pub(crate) fingerprint: Fingerprint,
    /// The settings that the state depends on; absent where an older version made the checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    setup: Option<Setup>,
    /// What the schedule's learning rate is multiplied by: what a client set, and observers lowered.
    pub(crate) learning_rate_factor: f64,
    /// What observers asked for and did not get yet.
    pub(crate) asked: Vec<Asked>,
}

const FORMAT: u32 = 2;

impl TrainerState {
    /// The state at a step before observers asked for anything.
    pub(crate) fn new(step: Step, data: Cursor, fingerprint: Fingerprint, setup: Setup) -> Self {
        Self {
            format: FORMAT,
            step,
            data,
            fingerprint,
            setup: Some(setup),
            learning_rate_factor: 1.0,
            asked: Vec::new(),
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
    observers: BTreeMap<String, Vec<u8>>,
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
    pub(crate) observers: BTreeMap<String, Vec<u8>>,
    pub(crate) metrics: Vec<MetricValue>,
}

/// What a checkpoint was, read back.
pub(crate) struct Stored {
    pub(crate) state: TrainerState,
    pub(crate) optimizer: HashMap<String, Tensor>,
    pub(crate) random: HashMap<String, Tensor>,
    pub(crate) buffer: Vec<Box<[u32]>>,
    /// The observers' states by label.
    pub(crate) observers: BTreeMap<String, Vec<u8>>,
}

/// The loop's end of the checkpoint writer.
pub(crate) struct CheckpointWriter<'scope> {
    snapshots: SyncSender<Snapshot>,
    /// Snapshots that were written and may be filled again.
    returned: Receiver<Snapshot>,
    /// The one set of buffers, while it is not with the thread.
    buffers: Option<Snapshot>,
    /// Gives back how the last checkpoint went.
    thread: ScopedJoinHandle<'scope, Result<()>>,
}

/// What the checkpoint thread asks and tells the outside.
pub(crate) struct Outside<'env> {
    /// Waits until the events so far are on record, so that no checkpoint stands before its history does.
    pub(crate) await_events: Box<dyn Fn() + Send + 'env>,
    /// Gets each complete checkpoint.
    pub(crate) on_checkpoint: Box<dyn FnMut(CheckpointDir) + Send + 'env>,
    /// Whether a checkpoint beyond `keep` must stay.
    pub(crate) is_needed: Box<dyn Fn(Step) -> bool + Send + 'env>,
    /// Whether such a one may go where the disk has no room for the next checkpoint.
    pub(crate) give_up: Box<dyn Fn(Step) -> bool + Send + 'env>,
}

impl<'scope> CheckpointWriter<'scope> {
    /// Starts the thread, and reserves the buffers by a first copy. The thread prunes the checkpoints that
    /// are too many; where the disk is full, the oldest that the outside gives up go first.
    pub(crate) fn spawn<'env>(
        scope: &'scope Scope<'scope, 'env>,
        mut layout: Layout,
        emitter: Emitter,
        outside: Outside<'env>,
        reserve: Live<'_>,
    ) -> Result<Self> {
        let Outside {
            await_events,
            mut on_checkpoint,
            is_needed,
            give_up,
        } = outside;
        fs::create_dir_all(&layout.folder)
            .map_err(|error| Error::io("make the checkpoint folder", &layout.folder, &error))?;
        let step = reserve.state.step;
        let warn = |emitter: &Emitter, step, warnings: Vec<String>| {
            for message in warnings {
                emitter.emit(step, EventBody::Warning { message });
            }
        };
        warn(&emitter, step, layout.sweep());
        let (snapshots, incoming) = sync_channel::<Snapshot>(1);
        let (back, returned) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("checkpoint".to_owned())
            .spawn_scoped(scope, move || {
                let mut last = Ok(());
                for snapshot in incoming {
                    let begin = Instant::now();
                    let step = snapshot.state.step;
                    let mut written = snapshot.write(&mut layout, &*await_events);
                    while written.as_ref().is_err_and(Error::is_disk_full) {
                        let Some(warnings) = layout.make_room(&*give_up) else {
                            break;
                        };
                        warn(&emitter, step, warnings);
                        written = snapshot.write(&mut layout, &*await_events);
                    }
                    last = match written {
                        Ok((dir, warnings)) => {
                            warn(&emitter, step, warnings);
                            emitter.emit(
                                step,
                                EventBody::CheckpointWritten {
                                    name: folder::name(step),
                                    bytes: dir.manifest.total_bytes(),
                                    stall_secs: snapshot.stall.as_secs_f64(),
                                    write_secs: begin.elapsed().as_secs_f64(),
                                },
                            );
                            on_checkpoint(dir);
                            warn(&emitter, step, layout.prune(step, &*is_needed));
                            Ok(())
                        }
                        Err(error) => {
                            let reason = error.to_string();
                            emitter.emit(step, EventBody::CheckpointFailed { reason });
                            Err(error)
                        }
                    };
                    // The loop may be gone already.
                    let _ = back.send(snapshot);
                }
                last
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
        let begin = Instant::now();
        self.settle()?;
        let mut snapshot = self.buffers.take().expect("the thread gave them back");
        let waited = begin.elapsed();
        snapshot.refresh(live)?;
        snapshot.stall = begin.elapsed();
        let copied = snapshot.stall - waited;
        self.snapshots
            .send(snapshot)
            .map_err(|_| Error::new(Kind::System, "the checkpoint thread ended"))?;
        Ok((waited, copied))
    }

    /// Waits until the last snapshot is written or has failed.
    pub(crate) fn settle(&mut self) -> Result<()> {
        if self.buffers.is_none() {
            let ended = |_| Error::new(Kind::System, "the checkpoint thread ended");
            self.buffers = Some(self.returned.recv().map_err(ended)?);
        }
        Ok(())
    }

    /// Waits until the last checkpoint is written.
    ///
    /// # Errors
    /// It was not, and there is no next one to make up for it.
    pub(crate) fn finish(self) -> Result<()> {
        drop(self.snapshots);
        let last = self.thread.join();
        last.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            .map_err(|error| {
                let message = format!("the last checkpoint was not written: {}", error.message());
                let way_out = "`host resume` then resumes from the checkpoint before it";
                Error::new(error.kind(), message).hint(match error.hint_text() {
                    Some(hint) => format!("{hint}; {way_out}"),
                    None => format!("see to the folder; {way_out}"),
                })
            })
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
            observers: live.observers,
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
        self.observers = live.observers;
        self.metrics = live.metrics;
        Ok(())
    }

    /// Writes the checkpoint beside its place and moves it there by one rename. Returns it with warnings.
    fn write(
        &self,
        layout: &mut Layout,
        await_events: &dyn Fn(),
    ) -> Result<(CheckpointDir, Vec<String>)> {
        let step = self.state.step;
        let partial = layout.partial(step);
        let written = self.write_into(&partial, layout).and_then(|manifest| {
            await_events();
            let (path, warnings) = layout.put(&partial, step)?;
            let dir = CheckpointDir {
                step,
                path,
                manifest,
                metrics: self.metrics.clone(),
            };
            Ok((dir, warnings))
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

        for (label, state) in &self.observers {
            fs::write(trainer.join(format!("{OBSERVER}{label}")), state).map_err(io)?;
        }

        let mut manifest = Manifest::default();
        for below in ["", "trainer/"] {
            for entry in fs::read_dir(folder.join(below)).map_err(io)? {
                let entry = entry.map_err(io)?;
                if entry.file_type().map_err(io)?.is_file() {
                    let name = format!("{below}{}", entry.file_name().to_string_lossy());
                    sync(&entry.path()).map_err(io)?;
                    manifest
                        .files
                        .insert(name, hash(&entry.path()).map_err(io)?);
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

impl Stored {
    /// Reads what a checkpoint holds besides the model.
    ///
    /// # Errors
    /// A folder that is no checkpoint of ours, or a file that is not what the manifest says.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        verify(folder)?;
        let trainer = folder.join("trainer");
        let file = trainer.join("state.json");
        let text = regular_file::read(&file, SMALL)
            .map_err(|error| Error::io("read the checkpoint", &file, &error))?;
        let state: TrainerState = serde_json::from_slice(&text).map_err(|error| {
            Error::new(
                Kind::Config,
                format!(
                    "the checkpoint's state cannot be used: {error}: {}",
                    file.display()
                ),
            )
            .hint("use another copy of it, or an older checkpoint")
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
            observers: read_observers(&trainer)?,
        })
    }
}

impl Stored {
    /// Compares the settings that the state depends on.
    ///
    /// # Errors
    /// The first that cannot change at a resume.
    pub(crate) fn check_setup(&self, folder: &Path, config: &TrainConfig) -> Result<()> {
        if let Some(setup) = &self.state.setup {
            setup.check(config, folder)?;
        }
        match self.buffer.first().map(|sequence| sequence.len() as i64) {
            Some(length) => check_unchanged(folder, "seq_length", length, config.seq_length),
            None => Ok(()),
        }
    }

    /// Looks whether a training with these settings, this data and this many rows of the vocabulary can begin
    /// at this state. A state that was written here always can, if nothing has changed.
    ///
    /// # Errors
    /// The first setting that cannot change, or a state that no training has.
    pub(crate) fn check(&self, folder: &Path, sources: &[Source], rows: i64) -> Result<()> {
        let factor = self.state.learning_rate_factor;
        let fault = if !self.state.data.fits(sources) {
            "its place in the data is not in this data"
        } else if self
            .buffer
            .iter()
            .flatten()
            .any(|&id| i64::from(id) >= rows)
        {
            "a token in its buffer is not in the vocabulary"
        } else if !(factor.is_finite() && factor >= 0.0) {
            "its learning rate factor is negative"
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
        Err(Error::new(Kind::Config, message)
            .hint("use another copy of it, or an older checkpoint"))
    }
}

/// More steps than anybody trains: sums with them fit into 64 bits.
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
