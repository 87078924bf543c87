use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What was delivered and what was tried, on disk in the sink's own folder. It makes a second try the
/// same as the first: the commit gets the same date and so the same id, and a push whose answer was
/// lost is recognised.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    deliveries: BTreeMap<String, Delivery>,
    /// Held for the time of a delivery: one process at a time works in the folder.
    lock: File,
}

/// One checkpoint's way to one branch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Delivery {
    pub(crate) step: u64,
    pub(crate) branch: String,
    /// The commit's date, in seconds since the Unix epoch.
    pub(crate) time_secs: u64,
    /// A commit that was pushed, but it is not known whether it arrived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pending: Option<String>,
    /// The commit that is on the branch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) commit: Option<String>,
}

impl Journal {
    /// Reads the journal of the folder and locks the folder.
    ///
    /// # Errors
    /// Another process works there, or the disk fails.
    pub(crate) fn open(state_dir: &Path) -> Result<Self> {
        let lock_path = state_dir.join("lock");
        let lock = File::create(&lock_path)
            .map_err(|error| Error::io("create lock file", &lock_path, &error))?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => Error::Temporary(format!(
                "another process is delivering from this folder: {}",
                state_dir.display()
            )),
            fs::TryLockError::Error(error) => Error::io("lock", &lock_path, &error),
        })?;
        let path = state_dir.join("journal.json");
        let deliveries = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                let path = path.display();
                Error::Permanent(format!("the journal cannot be read: {error}: {path}"))
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

    /// Keeps how far a delivery came; it is on disk when this returns.
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
        // Closing the file would not do: a child that another thread is just starting may still
        // have it open, and the lock with it.
        let _ = self.lock.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_there_again_and_one_process_has_it() {
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
