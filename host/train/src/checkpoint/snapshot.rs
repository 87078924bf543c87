use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use host_core::{CheckpointDir, Error, Manifest, MetricValue, Result};
use tch::Tensor;

use super::OBSERVER;
use super::folder::Layout;
use super::trainer_state::TrainerState;
use crate::manifest::{hash, sync};
use crate::weights::{self, CpuTensor};

/// A copy of the state that is needed to resume a run. The copy is in main memory. The next snapshot reuses
/// its buffers.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) state: TrainerState,
    model: Vec<CpuTensor>,
    optimizer: Vec<CpuTensor>,
    random: Vec<CpuTensor>,
    buffer: CpuTensor,
    observers: BTreeMap<String, Vec<u8>>,
    metrics: Vec<MetricValue>,
    /// How long the training loop waited for the snapshot.
    pub(super) stall: Duration,
}

/// The parts of a run that a snapshot copies.
pub(crate) struct CheckpointView<'a> {
    pub(crate) state: TrainerState,
    pub(crate) model: Vec<(&'a str, &'a Tensor)>,
    pub(crate) optimizer: Vec<(String, Tensor)>,
    pub(crate) random: Vec<(&'static str, Tensor)>,
    pub(crate) buffer: &'a [Box<[u32]>],
    pub(crate) observers: BTreeMap<String, Vec<u8>>,
    pub(crate) metrics: Vec<MetricValue>,
}

impl Snapshot {
    pub(super) fn copy_of(view: CheckpointView<'_>) -> Result<Self> {
        Ok(Self {
            buffer: buffer_tensor(view.buffer),
            random: random_tensors(&view.random)?,
            model: view
                .model
                .iter()
                .map(|(name, tensor)| CpuTensor::copy_of(*name, tensor))
                .collect::<Result<_>>()?,
            optimizer: view
                .optimizer
                .iter()
                .map(|(name, tensor)| CpuTensor::copy_of(name, tensor))
                .collect::<Result<_>>()?,
            state: view.state,
            observers: view.observers,
            metrics: view.metrics,
            stall: Duration::ZERO,
        })
    }

    pub(super) fn refresh(&mut self, view: CheckpointView<'_>) -> Result<()> {
        let model = view.model.iter().map(|(_, tensor)| *tensor);
        let optimizer = view.optimizer.iter().map(|(_, tensor)| tensor);
        let copies = self.model.iter_mut().chain(&mut self.optimizer);
        CpuTensor::refresh(copies.zip(model.chain(optimizer)))?;
        self.random = random_tensors(&view.random)?;
        self.buffer = buffer_tensor(view.buffer);
        self.state = view.state;
        self.observers = view.observers;
        self.metrics = view.metrics;
        Ok(())
    }

    /// Writes the checkpoint to a hidden folder and moves it into place. Returns the checkpoint and warnings.
    pub(super) fn write(
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
            // Removes the incomplete checkpoint, because the next one needs the disk space. If this fails,
            // the files stay in the hidden folder, which is not treated as a checkpoint.
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

fn buffer_tensor(buffer: &[Box<[u32]>]) -> CpuTensor {
    let length = buffer.first().map_or(0, |sequence| sequence.len());
    CpuTensor::of_u32("buffer", &buffer.concat(), [buffer.len(), length])
}

fn random_tensors(random: &[(&'static str, Tensor)]) -> Result<Vec<CpuTensor>> {
    random
        .iter()
        .map(|(name, tensor)| CpuTensor::copy_of(*name, tensor))
        .collect()
}
