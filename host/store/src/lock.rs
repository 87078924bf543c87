use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use host_core::{Error, ErrorKind, Result};

/// The lock's file in a run folder.
const FILE: &str = "writer.lock";

/// The right to write to a run. At most one process has it. Within that process, at most one [`RunLock`]
/// exists.
///
/// It is an advisory lock of the kernel on `writer.lock`, so it is always released when its process ends. The
/// file is never removed; it contains the owner's process id, for people to read.
#[derive(Debug)]
pub(crate) struct RunLock(File);

impl RunLock {
    /// Acquires the lock.
    ///
    /// # Errors
    /// Returns an error if another owner holds the lock; the error names the process.
    pub(crate) fn take(run_dir: &Path) -> Result<Self> {
        let path = lock_path(run_dir);
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|e| Error::io("lock the run", &path, &e))?;
        // Retries for a short time, because a reader that checks whether the run is alive holds a shared lock
        // for a few microseconds.
        let patience = Instant::now() + Duration::from_millis(200);
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < patience => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(TryLockError::WouldBlock) => return Err(held(&mut file, &path)),
                Err(TryLockError::Error(e)) => return Err(Error::io("lock the run", &path, &e)),
            }
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(|e| Error::io("lock the run", &path, &e))?;
        Ok(Self(file))
    }
}

impl Drop for RunLock {
    fn drop(&mut self) {
        // If unlocking fails, the kernel releases the lock when the file is closed.
        let _ = self.0.unlock();
    }
}

/// Keeps writers out while the returned file is open, so that a store can be read without locks. `None` if a
/// writer holds the lock or the run never had a writer. A writer waits at most 200 ms for the lock, so
/// use this function only for short reads.
pub(crate) fn keep_still(run_dir: &Path) -> Option<File> {
    let file = File::open(lock_path(run_dir)).ok()?;
    file.try_lock_shared().is_ok().then_some(file)
}

/// Whether a writer holds the lock.
pub(crate) fn is_held(run_dir: &Path) -> bool {
    File::open(lock_path(run_dir))
        .is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

fn lock_path(run_dir: &Path) -> PathBuf {
    run_dir.join(FILE)
}

fn held(file: &mut File, path: &Path) -> Error {
    let mut pid = String::new();
    let owner = match file.read_to_string(&mut pid) {
        Ok(_) if !pid.trim().is_empty() => format!("process {}", pid.trim()),
        _ => "another process".to_owned(),
    };
    Error::new(
        ErrorKind::Config,
        format!("{owner} is writing to this run: {}", path.display()),
    )
    .hint("wait until it ends or stop it, or choose another run name")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_a_second_writer_names_the_first() {
        let dir = tempfile::tempdir().expect("a folder");
        assert!(!is_held(dir.path()));
        let lock = RunLock::take(dir.path()).expect("free");
        assert!(is_held(dir.path()));
        let error = RunLock::take(dir.path()).expect_err("held");
        let me = format!("process {} is writing", std::process::id());
        assert!(error.message().starts_with(&me), "{error}");
        drop(lock);
        assert!(!is_held(dir.path()));
        RunLock::take(dir.path()).expect("free again");
    }
}
