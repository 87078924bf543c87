use std::path::{Path, PathBuf};

use host_core::{
    CheckpointDir, Control, Emitter, Metric, ParamGroup, ParamInfo, Result, Step, StopReason,
};

use crate::TrainConfig;

/// Where a training begins.
#[derive(Clone, Debug)]
pub enum Start {
    /// At step 0, with the weights of `model` if it has some, else with new ones.
    Fresh,
    /// At the checkpoint in this folder, exactly.
    From(PathBuf),
}

/// A training that is ready to go: data found, tokenizer at hand, model built.
pub struct Trainer {}

/// What the loop talks to.
pub struct Ports<'a> {
    /// The parameter groups, checked.
    pub groups: Vec<ParamGroup>,
    /// The evaluation's metrics beside the host's own `loss/eval`.
    pub metrics: Vec<Box<dyn Metric>>,
    /// Where events go.
    pub emitter: Emitter,
    /// What the outside asks for.
    pub control: Control,
    /// The folder that receives `step-000100` and its like. Absolute.
    pub checkpoints: PathBuf,
    /// Told of each complete checkpoint, on the checkpoint writer's thread.
    pub on_checkpoint: Box<dyn FnMut(CheckpointDir) + Send + 'a>,
    /// Whether a checkpoint in the run folder is still needed by somebody, so that it is not pruned.
    pub is_needed: Box<dyn Fn(Step) -> bool + Send + 'a>,
}

/// How a training ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Why.
    pub reason: StopReason,
    /// The steps done, those before a resume included.
    pub step: Step,
}

impl Trainer {
    /// Reads the configuration, finds the data, trains or loads the tokenizer, builds the model.
    /// `cache` is a folder for what is worth keeping between runs. `say` is told what takes long,
    /// in half a sentence.
    ///
    /// # Errors
    /// Anything in the configuration or the data that would fail later.
    pub fn prepare(
        config: &TrainConfig,
        start: &Start,
        cache: &Path,
        say: &mut dyn FnMut(&str),
    ) -> Result<Self> {
        let _ = (config, start, cache, say);
        todo!()
    }

    /// The trainable parameters in the model's order; tied weights appear once.
    pub fn params(&self) -> &[ParamInfo] {
        todo!()
    }

    /// The step that `fit` begins at.
    pub fn step(&self) -> Step {
        todo!()
    }

    /// One line for people: parameters, layers, vocabulary, files, device.
    pub fn summary(&self) -> String {
        todo!()
    }

    /// Trains to the end or until the control says stop; returns when the last checkpoint is written.
    ///
    /// # Errors
    /// What made training impossible; the checkpoints written before stand.
    pub fn fit(self, ports: Ports<'_>) -> Result<Outcome> {
        let _ = ports;
        todo!()
    }
}

/// What to sample.
#[derive(Clone, Debug)]
pub struct Generate {
    /// A checkpoint's folder, ours or transformers'.
    pub checkpoint: PathBuf,
    /// The text to go on from.
    pub prompt: String,
    /// Tokens to make at most.
    pub max_new_tokens: usize,
    /// 0 takes the likeliest token each time.
    pub temperature: f64,
    /// Only the so many likeliest tokens count; 0: all.
    pub top_k: i64,
    /// Seeds the choice.
    pub seed: i64,
    /// `cpu`, `cuda`, `cuda:N` or `auto`.
    pub device: String,
}

/// Samples from a checkpoint, handing on each piece of text as soon as it is whole.
///
/// # Errors
/// A checkpoint that cannot be read.
pub fn generate(request: &Generate, piece: &mut dyn FnMut(&str)) -> Result<()> {
    let _ = (request, piece);
    todo!()
}
