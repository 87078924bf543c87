use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use host_core::{Error, ErrorKind, Result};
use tempfile::TempDir;

use crate::{FILE, lock};

/// A copy of a store in a folder of this user's own.
///
/// What a run that was killed committed last lies in a log beside its store, and to read that, SQLite has
/// to write there. Where it may not, on a read-only file system or in another user's folder, a copy is
/// read.
#[derive(Debug)]
pub(crate) struct Copy {
    folder: TempDir,
    /// What was copied, as it was then.
    original: Vec<Stamp>,
}

/// The files that make up a store.
const FILES: [&str; 3] = ["", "-wal", "-journal"];
/// How often it is copied again because it changed meanwhile.
const ATTEMPTS: usize = 3;

/// A file's state; none if it is not there.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

impl Copy {
    /// Copies a run's store.
    ///
    /// # Errors
    /// Somebody writes to it, it cannot be read, or there is no room.
    pub(crate) fn make(run_dir: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("host-store-").tempdir();
        let folder = folder.map_err(|e| {
            Error::io(
                "make a folder for a copy of the run store in",
                &std::env::temp_dir(),
                &e,
            )
            .hint("TMPDIR chooses the folder for copies")
        })?;
        for _ in 0..ATTEMPTS {
            // A writer on this machine would change one file after the other.
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
            "another program writes to the run store: {}",
            run_dir.join(FILE).display()
        );
        Err(Error::new(ErrorKind::System, message)
            .hint("read it as the user who trains, or over gRPC: `host watch ADDR`"))
    }

    /// The copy.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join(FILE)
    }

    /// Whether the original is still what was copied.
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
                .hint("without this file the end of the run is missing; who owns it may read it"));
        }
    };
    File::create(&to)
        .and_then(|mut target| io::copy(&mut source, &mut target))
        .map(drop)
        .map_err(|e| {
            Error::io("copy the run store to", &to, &e).hint("TMPDIR chooses the folder for copies")
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
