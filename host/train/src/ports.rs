use std::path::PathBuf;

use host_core::{CheckpointDir, Control, Emitter, ParamGroup, Requests, Step, StopReason};

use crate::observers::Observers;

/// What a training talks to.
pub struct Ports<'a> {
    /// The parameter groups, checked.
    pub groups: Vec<ParamGroup>,
    /// Where events go.
    pub emitter: Emitter,
    /// How often the run was resumed.
    pub generation: u32,
    /// What decides between two steps.
    pub boundary: BoundaryPorts<'a>,
    /// Where checkpoints go.
    pub checkpoints: CheckpointPorts<'a>,
}

/// What decides between two steps. Everything here is called on the loop's thread.
pub struct BoundaryPorts<'a> {
    /// The signals that end the run, and the plugins whose failure ends it.
    pub control: Control,
    /// See every event, and may ask for something.
    pub observers: Observers,
    /// What clients ask for.
    pub requests: Requests,
    /// Puts back what plugins changed of the process. Called after plugins were called; `true` says that it
    /// may not be put off.
    pub put_back: Box<dyn FnMut(Step, bool) + 'a>,
    /// Reports what surrounds the loop. Called when the loop continues after an evaluation and every few
    /// seconds, but not at the last step.
    pub report: Box<dyn FnMut(Step) + 'a>,
}

/// Where checkpoints go. Everything here is called on the checkpoint writer's thread.
pub struct CheckpointPorts<'a> {
    /// The folder that receives `step-000100` and its like. Absolute.
    pub folder: PathBuf,
    /// Returns when the events emitted so far are on record, or cannot be for now: a checkpoint that
    /// stood before them would be resumed from without them.
    pub await_events: Box<dyn Fn() + Send + 'a>,
    /// Receives each complete checkpoint.
    pub on_checkpoint: Box<dyn FnMut(CheckpointDir) + Send + 'a>,
    /// Whether a checkpoint that is older than the newest `keep_checkpoints` must stay.
    pub is_needed: Box<dyn Fn(Step) -> bool + Send + 'a>,
    /// Whether such a checkpoint may be removed all the same, because the disk has no room for the next. If
    /// so, the loss is on record.
    pub give_up: Box<dyn Fn(Step) -> bool + Send + 'a>,
}

/// How a training ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Why.
    pub reason: StopReason,
    /// The steps done, those before a resume included.
    pub step: Step,
}
