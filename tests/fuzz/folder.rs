//! A folder for the files of an input, reused for the next one. It is in memory where `/dev/shm` exists.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A folder, removed when the process ends normally.
pub(crate) struct Folder(TempDir);

impl Folder {
    /// Makes it.
    pub(crate) fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let place = match memory.is_dir() {
            true => memory.to_owned(),
            false => std::env::temp_dir(),
        };
        Self(tempfile::tempdir_in(place).expect("a folder"))
    }

    /// A path below it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file below it, replacing an old one.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).expect("written");
        path
    }
}
