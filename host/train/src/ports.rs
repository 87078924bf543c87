use std::path::PathBuf;

use host_core::{CheckpointDir, Control, Emitter, ParamGroup, Requests, Step, StopReason};

use crate::observers::Observers;

/// The interfaces between a training run and the rest of the host.
pub struct Ports<'a> {
    /// The parameter groups, already checked.
    pub groups: Vec<ParamGroup>,
    /// Sends the run's events.
    pub emitter: Emitter,
    /// Number of times the run was resumed.
    pub generation: u32,
    /// The ports that are used between two steps.
    pub boundary: BoundaryPorts<'a>,
    /// The ports for checkpoints.
    pub checkpoints: CheckpointPorts<'a>,
}

/// The ports that are used between two steps. All of them are used on the loop's thread.
pub struct BoundaryPorts<'a> {
    /// Stops the run after a signal or the failure of a plugin.
    pub control: Control,
    /// The observers, which receive every event and can make requests.
    pub observers: Observers,
    /// The requests of clients.
    pub requests: Requests,
    /// Restores the process state that plugins have changed. The training loop calls this after it has called
    /// plugins. The second argument is `true` if the state must be restored at once, and `false` if a later
    /// call can restore it.
    pub put_back: Box<dyn FnMut(Step, bool) + 'a>,
    /// Emits metrics that are measured outside the training loop, such as the cost of plugins. The loop calls
    /// this every few seconds, and when it continues after an evaluation, but not at the last step.
    pub report: Box<dyn FnMut(Step) + 'a>,
}

/// The ports for checkpoints. All of them are called on the checkpoint writer's thread.
pub struct CheckpointPorts<'a> {
    /// The absolute path of the folder that contains a folder for each checkpoint (`step-000100`).
    pub folder: PathBuf,
    /// Waits until the events emitted so far are committed, or until it is clear that they cannot be
    /// committed for now. Without this wait, events could be missing after a resume from the checkpoint.
    pub await_events: Box<dyn Fn() + Send + 'a>,
    /// Receives each complete checkpoint.
    pub on_checkpoint: Box<dyn FnMut(CheckpointDir) + Send + 'a>,
    /// Decides about a checkpoint that is not among the newest `keep_checkpoints`. Returns true if the
    /// checkpoint must be kept.
    pub is_needed: Box<dyn Fn(Step) -> bool + Send + 'a>,
    /// Called with the step of a needed checkpoint if the disk has no space for the next one. Returns true if
    /// the needed checkpoint may be removed anyway. In that case, this function has recorded its loss.
    pub give_up: Box<dyn Fn(Step) -> bool + Send + 'a>,
}

/// The result of a training run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Why the run ended.
    pub reason: StopReason,
    /// The number of finished steps, including those before a resume.
    pub step: Step,
}
