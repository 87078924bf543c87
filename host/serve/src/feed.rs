use std::sync::{Arc, Weak};
use std::time::Duration;

use host_core::RunName;
use host_proto::tracker::v1 as proto;
use host_store::{Commits, Progress, Reader, RunStatus};
use prost::Message as _;
use tokio::sync::{Mutex, watch};
use tonic::Status;

use crate::source::Runs;
use crate::to_proto;

/// Most events of a piece of a stream.
const PAGE_EVENTS: usize = 512;
/// Where a piece ends early, so that it stays far below the 4 MiB that clients accept.
const PAGE_BYTES: usize = 1 << 20;
/// How often the log of another process is looked at.
const POLL: Duration = Duration::from_millis(50);

/// What the watchers of one run share: the news that there is more, and the newest page, so that a
/// hundred of them at the end of the log read it once.
#[derive(Debug)]
pub(crate) struct Feed {
    progress: watch::Sender<Progress>,
    newest: Mutex<Option<Arc<Page>>>,
}

/// A piece of a run's log.
#[derive(Debug)]
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
            progress: watch::Sender::new(progress),
            newest: Mutex::default(),
        }
    }

    /// A view of how far the log has come.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// The events after a cursor; none at the log's end.
    pub(crate) async fn page(
        &self,
        runs: &Arc<Runs>,
        run: &RunName,
        after: u64,
    ) -> Result<Arc<Page>, Status> {
        let read = async || {
            let page = runs
                .read(run, move |reader| Page::read(reader, after))
                .await?;
            Ok(Arc::new(page))
        };
        let far_behind = self.progress.borrow().last_seq > after + PAGE_EVENTS as u64;
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

    fn tell(&self, progress: Progress) {
        self.progress
            .send_if_modified(|known| std::mem::replace(known, progress) != progress);
    }
}

impl Page {
    fn read(reader: &Reader, after: u64) -> host_core::Result<Self> {
        let events = reader.events_after(after, PAGE_EVENTS)?;
        // After the events: if the run has ended by now, they may not be the last, and the cursor
        // then says so.
        let progress = reader.progress()?;
        let mut bytes = 0;
        let mut page = Vec::with_capacity(events.len());
        for event in events {
            let event = to_proto::event(event);
            bytes += event.encoded_len();
            if bytes > PAGE_BYTES && !page.is_empty() {
                break;
            }
            page.push(event);
        }
        Ok(Self {
            after,
            cursor: page.last().map_or(after, |event| event.seq),
            events: page,
            progress,
        })
    }
}

/// Feeds from the writer of this process, on a thread of its own, until that ends or `stopping` does.
pub(crate) fn follow(
    runs: &Runs,
    feed: &Feed,
    commits: &Commits,
    stopping: &watch::Receiver<bool>,
) {
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
            feed.tell(Progress { last_seq, status });
            return;
        }
        if last_seq > seen {
            seen = last_seq;
            feed.tell(Progress {
                last_seq,
                status: RunStatus::Running,
            });
        }
    }
}

/// Feeds from the store of another process, as long as somebody watches.
pub(crate) async fn poll(runs: Arc<Runs>, run: RunName, feed: Weak<Feed>) {
    loop {
        tokio::time::sleep(POLL).await;
        let progress = runs.read(&run, Reader::progress).await;
        let Some(feed) = feed.upgrade() else { return };
        match progress {
            Ok(progress) => feed.tell(progress),
            // Wakes the watchers, who will find out for themselves what is the matter.
            Err(_) => {
                let last_seq = feed.progress.borrow().last_seq;
                let status = RunStatus::Crashed;
                feed.tell(Progress { last_seq, status });
            }
        }
    }
}
