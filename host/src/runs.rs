//! Runs on disk: their folders, how they are found, and how commands name them.

mod naming;
pub(crate) mod run_dir;
pub(crate) mod target;

pub(crate) use self::naming::{how_to_name, how_to_name_at, quoted};
pub(crate) use self::run_dir::RunDir;
