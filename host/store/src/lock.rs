use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use host_core::{Error, ErrorKind, Result};

/// The lock's file in a run folder.
const FILE: &str = "writer.lock";

/// The right to write to a run, held by at most one process and, within it, at most one [`RunLock`].
///
/// It is an advisory lock of the kernel's on `writer.lock`, so it ends with its process however that
/// ends. The file stays; it holds the owner's process id, for people.
#[derive(Debug)]
pub(crate) struct RunLock(File);

impl RunLock {
    /// Takes the lock.
    ///
    /// # Errors
    /// Names the process that holds it.
    pub(crate) fn take(run_dir: &Path) -> Result<Self> {
        let path = lock_path(run_dir);
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|e| Error::io("lock the run", &path, &e))?;
        // A reader that looks whether the run is alive holds a shared lock for some microseconds.
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
        // The kernel does it at the latest when the file is closed.
        let _ = self.0.unlock();
    }
}

/// Keeps writers out while it is there, so that a file can be read as it lies; none if somebody
/// writes, or nobody ever has. A writer waits 200 ms for it, so it is for short reads alone.
pub(crate) fn keep_still(run_dir: &Path) -> Option<File> {
    let file = File::open(lock_path(run_dir)).ok()?;
    file.try_lock_shared().is_ok().then_some(file)
}

/// Whether somebody holds the lock now.
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
    fn the_second_writer_is_told_who_the_first_is() {
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
