use std::collections::HashMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use host_core::{Error, Result, RunName};

use crate::{FILE, Reader, RunRow, RunStatus};

/// The runs in a folder.
///
/// What a run that is over says of itself is kept and read again only when its file has changed, so a
/// list that is asked for again costs a look at each file.
#[derive(Debug)]
pub struct RunList {
    runs_dir: PathBuf,
    kept: Mutex<HashMap<RunName, (Stamp, RunRow)>>,
}

/// Rows that are kept at most, a few kilobytes each with their configurations.
const KEPT: usize = 4096;
/// Threads that read a list, and the fewest runs that are worth one.
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
    /// Of a folder, which need not be there yet.
    pub fn new(runs_dir: &Path) -> Self {
        Self {
            runs_dir: runs_dir.to_owned(),
            kept: Mutex::default(),
        }
    }

    /// The folder.
    pub fn runs_dir(&self) -> &Path {
        &self.runs_dir
    }

    /// The names of the runs, in order. What is no run is passed over.
    ///
    /// # Errors
    /// If the folder cannot be read. A folder that is not there has no runs.
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

    /// All runs, in the order of their names; for one that cannot be read, why.
    ///
    /// # Errors
    /// As of [`Self::names`].
    pub fn all(&self) -> Result<Vec<(RunName, Result<RunRow>)>> {
        Ok(self.rows(self.names()?))
    }

    /// What these runs are and how they stand, in the same order; for one that cannot be read, why.
    pub fn rows(&self, names: Vec<RunName>) -> Vec<(RunName, Result<RunRow>)> {
        let read = |name: &RunName| self.row(name);
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        // What a thread costs is a run or two.
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
                // Without a thread, or after its panic, the work is done here.
                let done = thread.ok().and_then(|thread| thread.join().ok());
                rows.extend(done.unwrap_or_else(|| work(names)));
            }
        });
        std::iter::zip(names, rows).collect()
    }

    fn row(&self, name: &RunName) -> Result<RunRow> {
        let run_dir = self.runs_dir.join(name.as_str());
        // Before it is read: a change meanwhile is then seen the next time.
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
        // One that says that it ended says so until something is written.
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
        // A map is whole between two calls, whoever panicked.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stamp {
    /// None while a log with something in it belongs to the file.
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

/// Whether all that was committed is in the file itself.
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
    fn a_list_that_is_kept_sees_runs_go_on_come_and_go() {
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
        // With its writer still there, and without, and again.
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

        // Another run takes its place.
        std::fs::rename(&dir, runs.path().join("elder")).expect("moved");
        drop(Writer::create(&dir, &record()).expect("a run"));
        assert_eq!(look(), [(RunStatus::Crashed, 0), (completed, 6)]);
        std::fs::remove_dir_all(&dir).expect("removed");
        assert_eq!(look(), [(completed, 6)]);
    }
}
