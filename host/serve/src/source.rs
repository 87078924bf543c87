use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use host_core::{Error, ErrorKind, RequestQueue, Result, RunName};
use host_store::{Commits, Progress, Reader, RunList, RunRow, RunStatus};
use tokio::sync::Semaphore;
use tonic::Status;

use crate::watch::feed::{self, Feed};

/// What a server shows.
#[derive(Clone, Debug)]
pub enum Source {
    /// The run that this process is writing.
    Live {
        /// The run's folder, which is named as the run.
        run_dir: PathBuf,
        /// How far its writer has come.
        commits: Commits,
        /// The way of requests to its loop.
        requests: RequestQueue,
    },
    /// The runs in a folder, whoever writes them.
    Folder(PathBuf),
}

/// The runs of a server, by name. No text of a request becomes a path but through [`RunName`].
#[derive(Debug)]
pub(crate) struct Runs {
    place: Place,
    /// Open readers that nobody uses now, the longest unused first.
    idle: Mutex<VecDeque<(RunName, Reader)>>,
    /// What the watchers of a run share.
    feeds: Mutex<HashMap<RunName, Weak<Feed>>>,
    /// Places for streams, and how many there are.
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

/// In the folder of a live run: where its own process listens.
pub const ADDRESS_FILE: &str = "grpc.addr";

/// Most readers that are kept open while nobody uses them.
const IDLE: usize = 16;

impl Runs {
    /// For at most so many watchers at once.
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

    /// The feed of the one run that is live, if that is what the server shows.
    pub(crate) fn live_feed(&self) -> Option<&Arc<Feed>> {
        match &self.place {
            Place::One { feed, .. } => Some(feed),
            Place::Folder(_) => None,
        }
    }

    /// How many streams there are.
    pub(crate) fn watchers(&self) -> usize {
        self.most_watchers - self.places.available_permits()
    }

    /// The names of all runs, in order. Blocks.
    pub(crate) fn names(&self) -> Result<Vec<RunName>> {
        match &self.place {
            Place::One { name, .. } => Ok(vec![name.clone()]),
            Place::Folder(list) => list.names(),
        }
    }

    /// What these runs are and how they stand, in the same order. Blocks.
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

    /// Where the runs lie, and what to call them together.
    pub(crate) fn place(&self) -> (String, String) {
        let (dir, name) = match &self.place {
            Place::One { name, run_dir, .. } => (run_dir.as_path(), name.to_string()),
            Place::Folder(list) => (list.runs_dir(), "runs".to_owned()),
        };
        (dir.display().to_string(), name)
    }

    /// The run that a request names, or the only one if it names none.
    pub(crate) async fn find(self: &Arc<Self>, asked: &str) -> Result<RunName, Status> {
        if let (true, Place::One { name, .. }) = (asked.is_empty(), &self.place) {
            // Without waiting for those who read.
            return Ok(name.clone());
        }
        if asked.is_empty() {
            let runs = Arc::clone(self);
            let names = blocking(move || runs.names()).await?;
            return match &names[..] {
                [only] => Ok(only.clone()),
                [] => Err(Status::not_found("there is no run")),
                _ => Err(Status::invalid_argument(
                    "which run? there are several; ListRuns lists them",
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
            Err(Status::not_found(format!("there is no run {name}")))
        }
    }

    /// Reads a run on a thread that may block.
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

    /// What the watchers of a run share; made, with whoever feeds it, for the first of them.
    pub(crate) async fn feed(self: &Arc<Self>, run: &RunName) -> Result<Arc<Feed>, Status> {
        if let Some(feed) = self.live_feed() {
            return Ok(Arc::clone(feed));
        }
        if let Some(feed) = lock(&self.feeds).get(run).and_then(Weak::upgrade) {
            return Ok(feed);
        }
        let progress = self.read(run, Reader::progress).await?;
        let mut feeds = lock(&self.feeds);
        // Another may have made it meanwhile.
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

    /// Why the loop of a run cannot be asked here.
    pub(crate) async fn trained_elsewhere(self: &Arc<Self>, run: &RunName) -> Status {
        let address = self.dir_of(run).join(ADDRESS_FILE);
        let look = move |reader: &Reader| {
            let is_running = reader.progress()?.status == RunStatus::Running;
            // A process that was killed leaves its address behind.
            let address = std::fs::read_to_string(address).ok();
            Ok(address.filter(|_| is_running))
        };
        match self.read(run, look).await {
            Err(status) => status,
            Ok(Some(address)) => Status::failed_precondition(format!(
                "run {run} is not trained by this server but by the one at {}",
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

/// Does what may block where it may.
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
        // The name is of a run, yet it is none, or none that this program can read.
        ErrorKind::Config => Status::failed_precondition(text(error)),
        _ => Status::data_loss(text(error)),
    }
}

/// An error's words, hint included.
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
    // What is kept here is whole at every moment, whoever panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
