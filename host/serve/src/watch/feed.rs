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

/// Most events of a piece of a stream.
const PAGE_EVENTS: usize = 512;
/// Where a piece ends early, so that it stays far below the 4 MiB that clients accept; earlier where many
/// watch, for each of them may hold one.
const PAGE_BYTES: std::ops::RangeInclusive<usize> = 16 << 10..=1 << 20;
/// What the pieces of all watchers take together, about.
const PAGES_BYTES: usize = 8 << 20;
/// How often the log of another process is looked at.
const POLL: Duration = Duration::from_millis(50);

/// What the watchers of one run share: the news that there is more, and the newest page, so that a
/// hundred of them at the end of the log read it once.
#[derive(Debug)]
pub(crate) struct Feed {
    news: watch::Sender<News>,
    newest: Mutex<Option<Arc<Page>>>,
}

/// How far the log has come, and the page that came last, read once for whoever is at its beginning.
#[derive(Clone, Debug)]
pub(crate) struct News {
    pub(crate) progress: Progress,
    page: Option<Arc<Page>>,
}

impl News {
    /// The page that follows a cursor, if it is the one that came last.
    pub(crate) fn page_after(&self, cursor: u64) -> Option<&Arc<Page>> {
        let page = self.page.as_ref();
        page.filter(|page| page.after == cursor && !page.events.is_empty())
    }
}

/// A piece of a run's log.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    after: u64,
    /// The events, ready to send.
    pub(crate) events: Vec<proto::Event>,
    /// The last event's sequence number, or `after` if there is none.
    pub(crate) cursor: u64,
    /// How far the log had come when the events had been read, or further.
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

    /// How far the log has come.
    pub(crate) fn news(&self) -> News {
        self.news.borrow().clone()
    }

    /// A view of how far the log has come.
    pub(crate) fn subscribe(&self) -> watch::Receiver<News> {
        self.news.subscribe()
    }

    /// The events after a cursor; none at the log's end.
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
        // Whoever comes first reads; the others wait for it, and find the page.
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

    /// Whether somebody follows the run.
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
    /// The events after a cursor, in `most` bytes or, if the first is larger, that one alone.
    fn read(reader: &Reader, after: u64, most: usize) -> host_core::Result<Self> {
        let events = reader.events_after(after, PAGE_EVENTS)?;
        // After the events: if the run has ended by now, they may not be the last, and the cursor
        // then says so.
        Ok(Self::of(events, after, reader.progress()?, most))
    }

    /// The page that ends the log of a run at work, whose writer says how far it has come.
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

    /// As many of these events as a piece may have.
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

/// How large a piece may be while so many watch.
fn page_bytes(watchers: usize) -> usize {
    (PAGES_BYTES / watchers.max(1)).clamp(*PAGE_BYTES.start(), *PAGE_BYTES.end())
}

/// Passes on what [`follow`] heard. It is for a task of the server's own thread: to wake a watcher from
/// another one takes a system call each.
pub(crate) async fn pass_on(mut heard: watch::Receiver<News>, feed: Arc<Feed>) {
    while heard.changed().await.is_ok() {
        let news = heard.borrow_and_update().clone();
        feed.tell(news.progress, news.page);
    }
}

/// Hears from the writer of this process, on a thread of its own, until that ends or `stopping` does.
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
            // The writer has let go of the run, so the store says how it ended.
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
            // Watchers who cannot use the page read one of their own, so a failure is theirs to find.
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

/// Feeds from the store of another process, as long as somebody watches.
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
            // Wakes the watchers, who will find out for themselves what is the matter.
            Err(_) => {
                let last_seq = feed.last_seq();
                let status = RunStatus::Crashed;
                feed.tell(Progress { last_seq, status }, None);
            }
        }
    }
}
