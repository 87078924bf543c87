//! Checkpoints: the loop copies its state, a thread of its own writes it.

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
pub(crate) use self::trainer_state::{BoundaryState, TrainerState};
pub(crate) use self::writer::CheckpointWriter;

/// An observer's state is `trainer/observer-LABEL`, bytes of its own.
const OBSERVER: &str = "observer-";
