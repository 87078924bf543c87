use std::collections::HashMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use host_core::{Error, Result, RunName};

use crate::{FILE, Reader, RunRow, RunStatus};

/// The runs in a folder.
///
/// The rows of ended runs are cached. A cached row is read again only if the metadata of its file shows a
/// change.
#[derive(Debug)]
pub struct RunList {
    runs_dir: PathBuf,
    kept: Mutex<HashMap<RunName, (Stamp, RunRow)>>,
}

/// Maximum number of cached rows. A row with its configuration takes a few kilobytes.
const KEPT: usize = 4096;
/// Maximum number of threads that read a list, and minimum number of runs per thread.
const READERS: usize = 8;
const RUNS_PER_READER: usize = 32;

/// A file's state, which every commit changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl RunList {
    /// Creates the list of a folder, which need not exist yet.
    pub fn new(runs_dir: &Path) -> Self {
        Self {
            runs_dir: runs_dir.to_owned(),
            kept: Mutex::default(),
        }
    }

    /// Returns the folder.
    pub fn runs_dir(&self) -> &Path {
        &self.runs_dir
    }

    /// Returns the names of the runs, sorted. Skips everything that is not a run.
    ///
    /// # Errors
    /// Returns an error if the folder cannot be read. A missing folder has no runs.
    pub fn names(&self) -> Result<Vec<RunName>> {
        let failed = |e: &std::io::Error| Error::io("list the runs", &self.runs_dir, e);
        let entries = match std::fs::read_dir(&self.runs_dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed(&e)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| failed(&e))?;
            if let Some(Ok(name)) = entry.file_name().to_str().map(str::parse::<RunName>)
                && entry.path().join(FILE).is_file()
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Returns all runs, sorted by name, with an error for each run that cannot be read.
    ///
    /// # Errors
    /// As for [`Self::names`].
    pub fn all(&self) -> Result<Vec<(RunName, Result<RunRow>)>> {
        Ok(self.rows(self.names()?))
    }

    /// Returns the rows of these runs in the same order, with an error for each run that cannot be read.
    pub fn rows(&self, names: Vec<RunName>) -> Vec<(RunName, Result<RunRow>)> {
        let read = |name: &RunName| self.row(name);
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        // Starting a thread takes as long as reading one or two runs.
        let share = names
            .len()
            .div_ceil(cores.min(READERS))
            .max(RUNS_PER_READER);
        let mut rows: Vec<Result<RunRow>> = Vec::with_capacity(names.len());
        std::thread::scope(|scope| {
            let (mine, others) = names.split_at(share.min(names.len()));
            let work = |names: &[RunName]| names.iter().map(read).collect::<Vec<_>>();
            let threads: Vec<_> = others
                .chunks(share)
                .map(|names| {
                    let named = std::thread::Builder::new().name("list-runs".to_owned());
                    let thread = named.spawn_scoped(scope, move || work(names));
                    (names, thread)
                })
                .collect();
            rows.extend(work(mine));
            for (names, thread) in threads {
                // If a thread did not start or panicked, the calling thread reads the rows in its place.
                let done = thread.ok().and_then(|thread| thread.join().ok());
                rows.extend(done.unwrap_or_else(|| work(names)));
            }
        });
        std::iter::zip(names, rows).collect()
    }

    fn row(&self, name: &RunName) -> Result<RunRow> {
        let run_dir = self.runs_dir.join(name.as_str());
        // The file's state is taken before the row is read, so that a change during reading is noticed the
        // next time.
        let stamp = Stamp::of(&run_dir);
        if let Some(stamp) = stamp
            && let Some((at, row)) = self.kept().get(name)
            && *at == stamp
        {
            return Ok(row.clone());
        }
        let row = match Reader::open_still(&run_dir) {
            Some((reader, _writers_wait)) => reader.run(),
            None => Reader::open(&run_dir)?.run(),
        }?;
        // Only the rows of ended runs are cached. The row of a running run can change without a write,
        // because the run can crash.
        if let (Some(stamp), RunStatus::Finished(_)) = (stamp, row.status) {
            let mut kept = self.kept();
            if kept.len() >= KEPT {
                kept.clear();
            }
            kept.insert(name.clone(), (stamp, row.clone()));
        }
        Ok(row)
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<RunName, (Stamp, RunRow)>> {
        // Even if a thread panicked while it held the lock, the map is consistent, because each of the map's
        // methods leaves it so.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stamp {
    /// Returns `None` while the store has a log that is not empty.
    fn of(run_dir: &Path) -> Option<Self> {
        has_no_log(run_dir).then_some(())?;
        let file = std::fs::metadata(run_dir.join(FILE)).ok()?;
        Some(Self::from(&file))
    }
}

impl From<&Metadata> for Stamp {
    fn from(file: &Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            bytes: file.len(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }
}

/// Whether all commits are in the store's file itself, and none in a log.
pub(crate) fn has_no_log(run_dir: &Path) -> bool {
    ["-wal", "-journal"].iter().all(|suffix| {
        let beside = run_dir.join(format!("{FILE}{suffix}"));
        std::fs::metadata(beside).map_or(true, |file| file.len() == 0)
    })
}

#[cfg(test)]
mod tests {
    use host_core::{EventBody, StopReason};

    use super::*;
    use crate::Writer;
    use crate::tests::{draft, metrics, record};

    #[test]
    fn a_cached_list_notices_resumed_new_and_removed_runs() {
        let runs = tempfile::tempdir().expect("a folder");
        let dir = runs.path().join("demo");
        let started = |generation| draft(1, EventBody::RunStarted { generation });
        let ended = |step, reason| {
            let message = String::new();
            draft(step, EventBody::RunFinished { reason, message })
        };
        let mut writer = Writer::create(&dir, &record()).expect("a run");
        let events = vec![started(0), ended(4, StopReason::Interrupted)];
        writer.append(events).expect("written");

        let list = RunList::new(runs.path());
        let look = || {
            let rows = list.all().expect("a list");
            let rows = rows.into_iter().map(|(_, row)| row.expect("readable"));
            rows.map(|row| (row.status, row.last_step.0))
                .collect::<Vec<_>>()
        };
        // Lists the run while its writer exists, then twice after the writer has ended.
        let interrupted = RunStatus::Finished(StopReason::Interrupted);
        assert_eq!(look(), [(interrupted, 4)]);
        assert!(list.kept().is_empty());
        drop(writer);
        assert_eq!(look(), [(interrupted, 4)]);
        assert_eq!(look(), [(interrupted, 4)]);
        assert_eq!(list.kept().len(), 1);

        let mut writer = Writer::open(&dir).expect("free");
        assert_eq!(look(), [(interrupted, 4)]);
        let goes_on = vec![started(1), draft(5, metrics(&[("lr", 0.1)]))];
        writer.append(goes_on).expect("written");
        assert_eq!(look(), [(RunStatus::Running, 5)]);
        let events = vec![ended(6, StopReason::Completed)];
        writer.append(events).expect("written");
        drop(writer);
        let completed = RunStatus::Finished(StopReason::Completed);
        assert_eq!(look(), [(completed, 6)]);

        // Another run with the same name takes its place.
        std::fs::rename(&dir, runs.path().join("elder")).expect("moved");
        drop(Writer::create(&dir, &record()).expect("a run"));
        assert_eq!(look(), [(RunStatus::Crashed, 0), (completed, 6)]);
        std::fs::remove_dir_all(&dir).expect("removed");
        assert_eq!(look(), [(completed, 6)]);
    }
}
