//! Streams of a run's events.
//!
//! ```text
//! store's Commits --follow--> heard --pass_on--> Feed { news, newest page } --news--> Watcher --Pieces--> connection
//!        [serve-commits]              [serve]                                 (a cursor)       [serve]
//! ```
//!
//! For the run that this process trains, one thread waits for commits. A task on the server's own thread
//! passes them on, since waking a watcher from another thread costs a system call. The logs of other
//! processes are polled.
//!
//! Each watched run has one [`Feed`], which wakes all watchers through one channel. The channel's value
//! contains the newest page. Watchers at the end of the log use this page; other watchers read the store.
//! Each watcher creates its next piece when the connection polls for it. [`Pieces`] passes the pieces on, and
//! ends the stream of a client that reads nothing for too long.

pub(crate) mod feed;
pub(crate) mod pieces;

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::unfold;
use host_core::RunName;
use host_proto::tracker::v1 as proto;
use host_store::{Progress, RunStatus};
use proto::WatchEndReason;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;

use self::feed::{Feed, News, Page};
use self::pieces::{Holds, Piece, Pieces, end};
use crate::source::Runs;

/// The server's state for one client that watches a run. It contains a page of events only while that page is
/// sent. Otherwise its cursor suffices, because all later events stay on disk.
#[derive(Debug)]
pub(crate) struct Watcher {
    pub(crate) runs: Arc<Runs>,
    pub(crate) run: RunName,
    pub(crate) feed: Arc<Feed>,
    pub(crate) news: watch::Receiver<News>,
    pub(crate) stopping: watch::Receiver<bool>,
    pub(crate) cursor: u64,
    pub(crate) follow: bool,
    /// The progress of the log when the last page was read.
    pub(crate) known: Option<Progress>,
    /// When the stream must end. Set once the server is stopping.
    pub(crate) until: Option<Instant>,
    /// How long the client may take to read a piece.
    pub(crate) stall: Duration,
}

/// After the server begins to stop, existing events are still sent for this long. This lets watchers of a run
/// that has just ended receive its last events.
const LAST_PIECES: Duration = Duration::from_secs(1);

/// What follows after a piece of the stream.
enum Next {
    Pieces(Box<Watcher>),
    Error(Status),
    Nothing,
}

impl Watcher {
    /// Returns the pieces of the stream. The call and its permit are held until the stream ends.
    pub(crate) fn stream(self, holds: Holds) -> Pieces {
        let (news, cursor, stall) = (self.news.clone(), self.cursor, self.stall);
        let pieces = unfold(Next::Pieces(Box::new(self)), async |next| match next {
            Next::Pieces(watcher) => Some(watcher.piece().await),
            Next::Error(status) => Some((Err(status), Next::Nothing)),
            Next::Nothing => None,
        });
        Pieces::new(pieces, holds, news, cursor, stall)
    }

    async fn piece(mut self: Box<Self>) -> (Piece, Next) {
        loop {
            let stopping = *self.stopping.borrow();
            if stopping {
                let until = *self
                    .until
                    .get_or_insert_with(|| Instant::now() + LAST_PIECES);
                if Instant::now() >= until {
                    return self.stopped();
                }
            }
            let progress = match self.known.take() {
                Some(known) if known.last_seq == self.cursor => known,
                _ => match self.page().await {
                    Err(status) => return (Err(status), Next::Nothing),
                    Ok(page) if page.events.is_empty() => page.progress,
                    Ok(page) => {
                        // A page that only this watcher reads is not copied.
                        let page = Arc::unwrap_or_clone(page);
                        self.known = Some(page.progress);
                        self.cursor = page.cursor;
                        let piece = proto::WatchEventsResponse {
                            events: page.events,
                            cursor: page.cursor,
                            end: None,
                        };
                        return (Ok(piece), Next::Pieces(self));
                    }
                },
            };
            if progress.last_seq > self.cursor {
                continue;
            }
            let reason = match progress.status {
                RunStatus::Finished(_) => WatchEndReason::RunFinished,
                RunStatus::Crashed => WatchEndReason::RunCrashed,
                RunStatus::Running if !self.follow => WatchEndReason::CaughtUp,
                RunStatus::Running if stopping => return self.stopped(),
                RunStatus::Running => {
                    self.wait().await;
                    continue;
                }
            };
            return (Ok(end(self.cursor, reason)), Next::Nothing);
        }
    }

    /// Returns the events after the cursor; empty at the end of the log.
    async fn page(&self) -> Result<Arc<Page>, Status> {
        let at_hand = self.news.borrow().page_after(self.cursor).cloned();
        match at_hand {
            Some(page) => Ok(page),
            None => self.feed.page(&self.runs, &self.run, self.cursor).await,
        }
    }

    /// Waits for new events of the run, or for the server to stop.
    async fn wait(&mut self) {
        let news = self.news.borrow_and_update().progress;
        if news.last_seq > self.cursor {
            return;
        }
        if news.status != RunStatus::Running {
            // The feed reports the end of the run, but the store still reported `Running` a moment ago. Wait
            // until they agree.
            tokio::time::sleep(Duration::from_millis(20)).await;
            return;
        }
        tokio::select! {
            // This cannot fail, because the feed holds the sender, and this watcher keeps the feed alive.
            _ = self.news.changed() => {}
            _ = self.stopping.wait_for(|stopping| *stopping) => {}
        }
    }

    fn stopped(&self) -> (Piece, Next) {
        let status = Status::unavailable(format!(
            "the server is stopping; resume from cursor {}",
            self.cursor
        ));
        let end = end(self.cursor, WatchEndReason::ServerStopping);
        (Ok(end), Next::Error(status))
    }
}
