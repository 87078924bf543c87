use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A record of deliveries and attempts, on disk in the sink's folder. A second attempt uses the recorded
/// date, so its commit has the same id as the commit of the first attempt. The record also makes it possible
/// to recognize a push that succeeded although its response was lost.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    deliveries: BTreeMap<String, Delivery>,
    /// Locked during a delivery, so that only one process at a time uses the folder.
    lock: File,
}

/// The delivery of one checkpoint to one branch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Delivery {
    pub(crate) step: u64,
    pub(crate) branch: String,
    /// The commit's date, in seconds since the Unix epoch.
    pub(crate) time_secs: u64,
    /// A commit that was pushed, but may not have arrived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pending: Option<String>,
    /// The commit that is on the branch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) commit: Option<String>,
}

impl Journal {
    /// Locks the folder and reads its journal.
    ///
    /// # Errors
    /// Returns an error if another process uses the folder, or if reading fails.
    pub(crate) fn open(state_dir: &Path) -> Result<Self> {
        let lock_path = state_dir.join("lock");
        let lock = File::create(&lock_path)
            .map_err(|error| Error::io("create lock file", &lock_path, &error))?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => Error::Temporary(format!(
                "another process is using this state folder: {}",
                state_dir.display()
            )),
            fs::TryLockError::Error(error) => Error::io("lock", &lock_path, &error),
        })?;
        let path = state_dir.join("journal.json");
        let deliveries = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                let path = path.display();
                Error::Permanent(format!("cannot read the journal: {error}: {path}"))
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(Error::io("read journal", &path, &error)),
        };
        Ok(Self {
            path,
            deliveries,
            lock,
        })
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Delivery> {
        self.deliveries.get(key)
    }

    /// Records the state of a delivery. The record is on disk when this function returns.
    pub(crate) fn set(&mut self, key: &str, delivery: Delivery) -> Result<()> {
        self.deliveries.insert(key.to_owned(), delivery);
        let written = self.write();
        written.map_err(|error| Error::io("write journal", &self.path, &error))
    }

    fn write(&self) -> std::io::Result<()> {
        let new = self.path.with_extension("new");
        let mut file = File::create(&new)?;
        serde_json::to_writer(&mut file, &self.deliveries)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        match self.path.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        // Closing the file is not enough. A child process that another thread is starting may still have a
        // copy of the file descriptor. That copy would keep the lock.
        let _ = self.lock.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_survives_a_restart_and_is_locked_while_open() {
        let folder = tempfile::tempdir().expect("a folder");
        let delivery = Delivery {
            step: 5,
            branch: "run".to_owned(),
            time_secs: 7,
            pending: Some("abc".to_owned()),
            commit: None,
        };
        let mut journal = Journal::open(folder.path()).expect("open");
        journal.set("key", delivery.clone()).expect("written");
        assert!(matches!(
            Journal::open(folder.path()),
            Err(Error::Temporary(_))
        ));
        drop(journal);
        let journal = Journal::open(folder.path()).expect("open again");
        assert_eq!(journal.get("key"), Some(&delivery));
        assert_eq!(journal.get("other"), None);
    }
}
