use std::sync::{Arc, Weak};
use std::time::Duration;

use host_core::{Event, RunName};
use host_proto::tracker::v1 as proto;
use host_store::{Commits, Progress, Reader, RunStatus};
use prost::Message as _;
use tokio::sync::{Mutex, watch};
use tonic::Status;

use crate::source::Runs;
use crate::to_proto;

/// Maximum number of events in a piece of a stream.
const PAGE_EVENTS: usize = 512;
/// Maximum size of a piece, far below the 4 MiB that clients accept. If there are many watchers, the limit is
/// lower, because each watcher can hold a piece.
const PAGE_BYTES: std::ops::RangeInclusive<usize> = 16 << 10..=1 << 20;
/// Approximate limit for the total size of the pieces that all watchers hold.
const PAGES_BYTES: usize = 8 << 20;
/// How often the log of another process is polled.
const POLL: Duration = Duration::from_millis(50);

/// The state that the watchers of one run share: the progress of the log and its newest page. The page is
/// shared so that a hundred watchers at the end of the log read it only once.
#[derive(Debug)]
pub(crate) struct Feed {
    news: watch::Sender<News>,
    newest: Mutex<Option<Arc<Page>>>,
}

/// The progress of the log, and the log's newest page. The page is for watchers that have read all earlier
/// events.
#[derive(Clone, Debug)]
pub(crate) struct News {
    pub(crate) progress: Progress,
    page: Option<Arc<Page>>,
}

impl News {
    /// Returns the newest page if it starts right after this cursor.
    pub(crate) fn page_after(&self, cursor: u64) -> Option<&Arc<Page>> {
        let page = self.page.as_ref();
        page.filter(|page| page.after == cursor && !page.events.is_empty())
    }
}

/// A part of a run's log.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    after: u64,
    /// The events, ready to send.
    pub(crate) events: Vec<proto::Event>,
    /// The last event's sequence number, or `after` if the page is empty.
    pub(crate) cursor: u64,
    /// The progress of the log, read after the events.
    pub(crate) progress: Progress,
}

impl Feed {
    pub(crate) fn new(progress: Progress) -> Self {
        Self {
            news: watch::Sender::new(News {
                progress,
                page: None,
            }),
            newest: Mutex::default(),
        }
    }

    /// Returns the current progress and newest page.
    pub(crate) fn news(&self) -> News {
        self.news.borrow().clone()
    }

    /// Returns a receiver for the progress of the log.
    pub(crate) fn subscribe(&self) -> watch::Receiver<News> {
        self.news.subscribe()
    }

    /// Returns a page of the events after a cursor. The page is empty if the cursor is at the log's end.
    pub(crate) async fn page(
        &self,
        runs: &Arc<Runs>,
        run: &RunName,
        after: u64,
    ) -> Result<Arc<Page>, Status> {
        let most = page_bytes(runs.watchers());
        let read = async || {
            let page = runs
                .read(run, move |reader| Page::read(reader, after, most))
                .await?;
            Ok(Arc::new(page))
        };
        let far_behind = self.news.borrow().progress.last_seq > after + PAGE_EVENTS as u64;
        if far_behind {
            return read().await;
        }
        // If several watchers need this page, the first one reads it, and the others wait for the lock.
        let mut newest = self.newest.lock().await;
        if let Some(page) = &*newest
            && page.after == after
            && !page.events.is_empty()
        {
            return Ok(Arc::clone(page));
        }
        let page = read().await?;
        *newest = Some(Arc::clone(&page));
        Ok(page)
    }

    /// Whether the run has watchers.
    fn is_watched(&self) -> bool {
        self.news.receiver_count() > 0
    }

    fn tell(&self, progress: Progress, page: Option<Arc<Page>>) {
        self.news.send_if_modified(|known| {
            let is_new = known.progress != progress;
            if is_new {
                *known = News { progress, page };
            }
            is_new
        });
    }

    fn last_seq(&self) -> u64 {
        self.news.borrow().progress.last_seq
    }
}

impl Page {
    /// Reads the events after a cursor, up to `most` bytes but at least one event.
    fn read(reader: &Reader, after: u64, most: usize) -> host_core::Result<Self> {
        let events = reader.events_after(after, PAGE_EVENTS)?;
        // The progress is read after the events. If the run ends in between, the last events can be missing
        // from the page, but then `last_seq` is beyond the page's cursor.
        Ok(Self::of(events, after, reader.progress()?, most))
    }

    /// Reads the newest page of an active run, whose writer reports `last_seq`.
    fn read_live(
        reader: &Reader,
        after: u64,
        last_seq: u64,
        most: usize,
    ) -> host_core::Result<Self> {
        let fresh = usize::try_from(last_seq - after).unwrap_or(usize::MAX);
        let events = reader.events_after(after, fresh.min(PAGE_EVENTS))?;
        let status = RunStatus::Running;
        let progress = Progress { last_seq, status };
        Ok(Self::of(events, after, progress, most))
    }

    /// Creates a page from as many of these events as fit.
    fn of(events: Vec<Event>, after: u64, progress: Progress, most: usize) -> Self {
        let mut bytes = 0;
        let mut page = Vec::with_capacity(events.len());
        for event in events {
            let event = to_proto::event(event);
            bytes += event.encoded_len();
            if bytes > most && !page.is_empty() {
                break;
            }
            page.push(event);
        }
        Self {
            after,
            cursor: page.last().map_or(after, |event| event.seq),
            events: page,
            progress,
        }
    }
}

/// Returns the maximum size of a piece for this number of watchers.
fn page_bytes(watchers: usize) -> usize {
    (PAGES_BYTES / watchers.max(1)).clamp(*PAGE_BYTES.start(), *PAGE_BYTES.end())
}

/// Passes the news from [`follow`] to the feed. Runs as a task on the server's own thread, since waking a
/// watcher from another thread costs a system call.
pub(crate) async fn pass_on(mut heard: watch::Receiver<News>, feed: Arc<Feed>) {
    while heard.changed().await.is_ok() {
        let news = heard.borrow_and_update().clone();
        feed.tell(news.progress, news.page);
    }
}

/// Waits for commits of this process's writer until the writer ends or `stopping` is set. Runs on its own
/// thread.
pub(crate) fn follow(
    runs: &Runs,
    feed: &Feed,
    commits: &Commits,
    heard: &watch::Sender<News>,
    stopping: &watch::Receiver<bool>,
) {
    let hear = |progress, page| {
        heard.send_replace(News { progress, page });
    };
    let mut seen = 0;
    while !*stopping.borrow() {
        let closed = commits.is_closed();
        let last_seq = commits.wait_beyond(seen, Duration::from_millis(100));
        if closed {
            // The writer has closed the run, so the store contains the reason why the run ended.
            let status = runs.names().and_then(|names| match names.first() {
                Some(name) => runs.read_now(name, Reader::progress),
                None => Ok(Progress {
                    last_seq,
                    status: RunStatus::Crashed,
                }),
            });
            let status = status.map_or(RunStatus::Crashed, |progress| progress.status);
            hear(Progress { last_seq, status }, None);
            return;
        }
        if last_seq > seen {
            // If reading fails, there is no page. Then the watchers read the store themselves and report the
            // error.
            let page = match (feed.is_watched(), runs.names()) {
                (true, Ok(names)) => names.first().and_then(|name| {
                    let most = page_bytes(runs.watchers());
                    let read = |reader: &Reader| Page::read_live(reader, seen, last_seq, most);
                    let page = runs.read_now(name, read);
                    page.ok().map(Arc::new)
                }),
                _ => None,
            };
            seen = last_seq;
            let status = RunStatus::Running;
            hear(Progress { last_seq, status }, page);
        }
    }
}

/// Polls the store of a run that another process writes, as long as the run has watchers.
pub(crate) async fn poll(runs: Arc<Runs>, run: RunName, feed: Weak<Feed>) {
    let mut seen = match feed.upgrade() {
        Some(feed) => feed.last_seq(),
        None => return,
    };
    loop {
        tokio::time::sleep(POLL).await;
        let most = page_bytes(runs.watchers());
        let look = move |reader: &Reader| {
            let progress = reader.progress()?;
            let page = match progress.last_seq > seen {
                true => Some(Arc::new(Page::read(reader, seen, most)?)),
                false => None,
            };
            Ok((progress, page))
        };
        let found = runs.read(&run, look).await;
        let Some(feed) = feed.upgrade() else { return };
        match found {
            Ok((progress, page)) => {
                seen = progress.last_seq;
                feed.tell(progress, page);
            }
            // Wakes the watchers. They read the store and report the error.
            Err(_) => {
                let last_seq = feed.last_seq();
                let status = RunStatus::Crashed;
                feed.tell(Progress { last_seq, status }, None);
            }
        }
    }
}
