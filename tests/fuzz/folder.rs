//! A folder for the files of a fuzzer's input. All inputs use the same folder. It is in memory if `/dev/shm`
//! exists.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A folder, removed when the process ends normally.
pub(crate) struct Folder(TempDir);

impl Folder {
    /// Creates the folder.
    pub(crate) fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let place = match memory.is_dir() {
            true => memory.to_owned(),
            false => std::env::temp_dir(),
        };
        Self(tempfile::tempdir_in(place).expect("a folder"))
    }

    /// Returns a path below the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file below the folder, replacing an old one.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).expect("written");
        path
    }
}
