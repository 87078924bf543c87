use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use host_core::{Error, ErrorKind, Result};
use tempfile::TempDir;

use crate::{FILE, lock};

/// A copy of a store in a temporary folder of this user.
///
/// The last commits of a killed run are in a log next to its store. SQLite can read these commits only if it
/// can write to the run's folder. If the folder belongs to another user or is on a read-only file system, a
/// copy is read instead.
#[derive(Debug)]
pub(crate) struct Copy {
    folder: TempDir,
    /// The state of the original files when they were copied.
    original: Vec<Stamp>,
}

/// The suffixes of the files that make up a store.
const FILES: [&str; 3] = ["", "-wal", "-journal"];
/// Maximum number of attempts to copy a store. An attempt fails if the store changes during the copy.
const ATTEMPTS: usize = 3;

/// A file's state; `None` if it does not exist.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

impl Copy {
    /// Copies a run's store.
    ///
    /// # Errors
    /// Returns an error if another program writes to the store, the store cannot be read, or the disk is
    /// full.
    pub(crate) fn make(run_dir: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("host-store-").tempdir();
        let folder = folder.map_err(|e| {
            Error::io(
                "create a folder for a copy of the run store",
                &std::env::temp_dir(),
                &e,
            )
            .hint("set TMPDIR to choose the folder for copies")
        })?;
        for _ in 0..ATTEMPTS {
            // A writer changes the files one after the other, so a copy made meanwhile could be inconsistent.
            if lock::is_held(run_dir) {
                break;
            }
            let original = stamps(run_dir);
            for suffix in FILES {
                copy(run_dir, folder.path(), suffix)?;
            }
            if stamps(run_dir) == original && !lock::is_held(run_dir) {
                return Ok(Self { folder, original });
            }
        }
        let message = format!(
            "another program is writing to the run store: {}",
            run_dir.join(FILE).display()
        );
        Err(Error::new(ErrorKind::System, message)
            .hint("read it as the user who runs the training, or over gRPC: `host watch ADDR`"))
    }

    /// Returns the path of the copy.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join(FILE)
    }

    /// Whether the original is still the same as when it was copied.
    pub(crate) fn is_current(&self, run_dir: &Path) -> bool {
        stamps(run_dir) == self.original
    }
}

fn copy(run_dir: &Path, folder: &Path, suffix: &str) -> Result<()> {
    let name = format!("{FILE}{suffix}");
    let (from, to) = (run_dir.join(&name), folder.join(&name));
    let mut source = match File::open(&from) {
        Ok(source) => source,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => {
            return Err(Error::io("read the run store", &from, &e)
                .hint("read the run as the file's owner; without this file, the run's last events are missing"));
        }
    };
    File::create(&to)
        .and_then(|mut target| io::copy(&mut source, &mut target))
        .map(drop)
        .map_err(|e| {
            Error::io("copy the run store", &to, &e)
                .hint("set TMPDIR to choose the folder for copies")
        })
}

fn stamps(run_dir: &Path) -> Vec<Stamp> {
    let stamp = |file: Metadata| {
        let (secs, nanos) = (file.mtime(), file.mtime_nsec());
        (file.dev(), file.ino(), file.len(), secs, nanos)
    };
    let look = |suffix: &&str| {
        let file = std::fs::metadata(run_dir.join(format!("{FILE}{suffix}")));
        file.ok().map(stamp)
    };
    FILES.iter().map(look).collect()
}
