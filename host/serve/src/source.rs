use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use host_core::{Error, ErrorKind, RequestQueue, Result, RunName};
use host_store::{Commits, Progress, Reader, RunList, RunRow, RunStatus};
use tokio::sync::Semaphore;
use tonic::Status;

use crate::watch::feed::{self, Feed};

/// The runs that a server serves.
#[derive(Clone, Debug)]
pub enum Source {
    /// The run that this process is writing.
    Live {
        /// The run's folder. The folder's name is the run's name.
        run_dir: PathBuf,
        /// Progress of the run's writer.
        commits: Commits,
        /// Queue of requests to the training loop.
        requests: RequestQueue,
    },
    /// All runs in a folder, including those that other processes write.
    Folder(PathBuf),
}

/// The runs of a server, by name. Text from a request becomes a path only through [`RunName`].
#[derive(Debug)]
pub(crate) struct Runs {
    place: Place,
    /// Open readers that are not in use, ordered from the least to the most recently used.
    idle: Mutex<VecDeque<(RunName, Reader)>>,
    /// One feed for each watched run. All watchers of the run share this feed.
    feeds: Mutex<HashMap<RunName, Weak<Feed>>>,
    /// Permits for streams; there are `most_watchers` permits in total.
    pub(crate) places: Arc<Semaphore>,
    most_watchers: usize,
}

#[derive(Debug)]
enum Place {
    One {
        name: RunName,
        run_dir: PathBuf,
        feed: Arc<Feed>,
    },
    Folder(RunList),
}

/// Name of a file in the folder of a live run. The file contains the address of the server in the training
/// process.
pub const ADDRESS_FILE: &str = "grpc.addr";

/// Maximum number of unused readers that are kept open.
const IDLE: usize = 16;

impl Runs {
    /// Opens a source for at most `most_watchers` concurrent watchers.
    pub(crate) fn new(source: &Source, most_watchers: usize) -> Result<Self> {
        let place = match source {
            Source::Folder(runs_dir) => Place::Folder(RunList::new(runs_dir)),
            Source::Live {
                run_dir, commits, ..
            } => Place::One {
                name: name_of(run_dir)?,
                run_dir: run_dir.clone(),
                feed: Arc::new(Feed::new(Progress {
                    last_seq: commits.last_seq(),
                    status: RunStatus::Running,
                })),
            },
        };
        Ok(Self {
            place,
            idle: Mutex::default(),
            feeds: Mutex::default(),
            places: Arc::new(Semaphore::new(most_watchers)),
            most_watchers,
        })
    }

    /// Returns the feed of the live run, or `None` if the source is a folder.
    pub(crate) fn live_feed(&self) -> Option<&Arc<Feed>> {
        match &self.place {
            Place::One { feed, .. } => Some(feed),
            Place::Folder(_) => None,
        }
    }

    /// Returns the number of open streams.
    pub(crate) fn watchers(&self) -> usize {
        self.most_watchers - self.places.available_permits()
    }

    /// Returns the names of all runs, sorted. Blocks.
    pub(crate) fn names(&self) -> Result<Vec<RunName>> {
        match &self.place {
            Place::One { name, .. } => Ok(vec![name.clone()]),
            Place::Folder(list) => list.names(),
        }
    }

    /// Reads the rows of these runs, in the same order. Blocks.
    pub(crate) fn rows(&self, names: Vec<RunName>) -> Vec<(RunName, Result<RunRow>)> {
        match &self.place {
            Place::One { .. } => names
                .into_iter()
                .map(|name| {
                    let row = self.read_now(&name, Reader::run);
                    (name, row)
                })
                .collect(),
            Place::Folder(list) => list.rows(names),
        }
    }

    /// Returns the path of the served folder and a name for its content, both for display. If only one run is
    /// served, these are the path and the name of that run.
    pub(crate) fn place(&self) -> (String, String) {
        let (dir, name) = match &self.place {
            Place::One { name, run_dir, .. } => (run_dir.as_path(), name.to_string()),
            Place::Folder(list) => (list.runs_dir(), "runs".to_owned()),
        };
        (dir.display().to_string(), name)
    }

    /// Returns the run with the requested name, or the only run if the name is empty.
    pub(crate) async fn find(self: &Arc<Self>, asked: &str) -> Result<RunName, Status> {
        if let (true, Place::One { name, .. }) = (asked.is_empty(), &self.place) {
            // Nothing is read in this case, so no thread for blocking work is needed.
            return Ok(name.clone());
        }
        if asked.is_empty() {
            let runs = Arc::clone(self);
            let names = blocking(move || runs.names()).await?;
            return match &names[..] {
                [only] => Ok(only.clone()),
                [] => Err(Status::not_found("the server has no runs")),
                _ => Err(Status::invalid_argument(
                    "the run's name is missing, and the server has several runs; ListRuns lists them",
                )),
            };
        }
        let name: RunName = asked
            .parse()
            .map_err(|error: Error| Status::invalid_argument(text(&error)))?;
        let there = match &self.place {
            Place::One { name: only, .. } => name == *only,
            Place::Folder(_) => {
                let file = self.dir_of(&name).join(host_store::FILE);
                blocking(move || Ok(file.is_file())).await?
            }
        };
        if there {
            Ok(name)
        } else {
            Err(Status::not_found(format!("unknown run: {name}")))
        }
    }

    /// Reads a run on a thread for blocking work.
    pub(crate) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        run: &RunName,
        read: impl FnOnce(&Reader) -> Result<T> + Send + 'static,
    ) -> Result<T, Status> {
        let (runs, run) = (Arc::clone(self), run.clone());
        blocking(move || runs.read_now(&run, read)).await
    }

    /// Reads a run. Blocks.
    pub(crate) fn read_now<T>(
        &self,
        run: &RunName,
        read: impl FnOnce(&Reader) -> Result<T>,
    ) -> Result<T> {
        let idle = {
            let mut idle = lock(&self.idle);
            let found = idle.iter().rposition(|(name, _)| name == run);
            found.and_then(|at| idle.remove(at))
        };
        let reader = match idle {
            Some((_, reader)) if reader.is_current() => reader,
            _ => Reader::open(&self.dir_of(run))?,
        };
        let result = read(&reader)?;
        let mut idle = lock(&self.idle);
        idle.push_back((run.clone(), reader));
        if idle.len() > IDLE {
            idle.pop_front();
        }
        Ok(result)
    }

    /// Returns the feed of a run. The first watcher creates the feed, together with the task that polls the
    /// run.
    pub(crate) async fn feed(self: &Arc<Self>, run: &RunName) -> Result<Arc<Feed>, Status> {
        if let Some(feed) = self.live_feed() {
            return Ok(Arc::clone(feed));
        }
        if let Some(feed) = lock(&self.feeds).get(run).and_then(Weak::upgrade) {
            return Ok(feed);
        }
        let progress = self.read(run, Reader::progress).await?;
        let mut feeds = lock(&self.feeds);
        // Another task may have created the feed in the meantime.
        if let Some(feed) = feeds.get(run).and_then(Weak::upgrade) {
            return Ok(feed);
        }
        let feed = Arc::new(Feed::new(progress));
        feeds.retain(|_, feed| feed.strong_count() > 0);
        feeds.insert(run.clone(), Arc::downgrade(&feed));
        tokio::spawn(feed::poll(
            Arc::clone(self),
            run.clone(),
            Arc::downgrade(&feed),
        ));
        Ok(feed)
    }

    /// Returns the error status for a control request to a run that this server does not train.
    pub(crate) async fn trained_elsewhere(self: &Arc<Self>, run: &RunName) -> Status {
        let address = self.dir_of(run).join(ADDRESS_FILE);
        let look = move |reader: &Reader| {
            let is_running = reader.progress()?.status == RunStatus::Running;
            // A killed process leaves its address file behind.
            let address = std::fs::read_to_string(address).ok();
            Ok(address.filter(|_| is_running))
        };
        match self.read(run, look).await {
            Err(status) => status,
            Ok(Some(address)) => Status::failed_precondition(format!(
                "run {run} is not trained by this server, but by the server at {}",
                address.trim()
            )),
            Ok(None) => Status::failed_precondition(format!("run {run} is not live")),
        }
    }

    fn dir_of(&self, run: &RunName) -> PathBuf {
        match &self.place {
            Place::One { run_dir, .. } => run_dir.clone(),
            Place::Folder(list) => list.runs_dir().join(run.as_str()),
        }
    }
}

/// Runs blocking work on a thread where blocking is allowed.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T, Status> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(status(&error)),
        Err(_) => Err(Status::internal("reading the run failed")),
    }
}

fn status(error: &Error) -> Status {
    match error.kind() {
        // The folder exists but contains no run that this version can read.
        ErrorKind::Config => Status::failed_precondition(text(error)),
        _ => Status::data_loss(text(error)),
    }
}

/// Returns an error's message with its hint.
pub(crate) fn text(error: &Error) -> String {
    match error.hint_text() {
        Some(hint) => format!("{error}; {hint}"),
        None => error.to_string(),
    }
}

fn name_of(run_dir: &Path) -> Result<RunName> {
    run_dir
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
        .parse()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each update is atomic, so the data is consistent even after a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
