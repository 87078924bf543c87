//! Runs on disk: their folders, how to find them, and their names in commands.

mod naming;
pub(crate) mod run_dir;
pub(crate) mod target;

pub(crate) use self::naming::{how_to_name, how_to_name_at, quoted};
pub(crate) use self::run_dir::RunDir;
