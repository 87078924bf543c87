//! Checkpoints: the training loop copies its state, and a separate thread writes the copy.

mod folder;
mod removal;
mod setup;
mod snapshot;
mod stored;
mod trainer_state;
mod writer;

pub(crate) use self::folder::{Layout, newest};
#[cfg(feature = "fuzz")]
pub(crate) use self::removal::remove;
pub(crate) use self::setup::Setup;
pub(crate) use self::snapshot::CheckpointView;
pub(crate) use self::stored::Stored;
pub use self::stored::global_batch;
pub(crate) use self::trainer_state::{BoundaryState, TrainerState};
pub(crate) use self::writer::CheckpointWriter;

/// Prefix of an observer's state file, `trainer/observer-LABEL`. Only the observer interprets its bytes.
const OBSERVER: &str = "observer-";
