//! Streams of a run's events.
//!
//! ```text
//! store's Commits --follow--> heard --pass_on--> Feed { news, newest page } --news--> Watcher --Pieces--> connection
//!        [serve-commits]              [serve]                                 (a cursor)       [serve]
//! ```
//!
//! Of the run that this process trains, a thread hears of commits, and a task on the server's own thread passes
//! them on: to wake a watcher from another thread takes a system call each. Another process's log is polled.
//!
//! One [`Feed`] for each run that is watched wakes all its watchers by one channel, whose value holds the
//! newest page: watchers at the end of the log take it from there, and those that are behind read the store
//! for themselves. Each watcher makes its next piece when the connection asks for it. [`Pieces`] hands the
//! pieces over and ends the stream of a client that takes none for too long.

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

/// One client that watches a run: a cursor. It holds one page at most, and that only while it is sent;
/// what the client has not asked for yet lies on disk.
#[derive(Debug)]
pub(crate) struct Watcher {
    pub(crate) runs: Arc<Runs>,
    pub(crate) run: RunName,
    pub(crate) feed: Arc<Feed>,
    pub(crate) news: watch::Receiver<News>,
    pub(crate) stopping: watch::Receiver<bool>,
    pub(crate) cursor: u64,
    pub(crate) follow: bool,
    /// How far the log had come when the last page was read.
    pub(crate) known: Option<Progress>,
    /// When to end at the latest, once the server is stopping.
    pub(crate) until: Option<Instant>,
    /// How long the client may take over a piece.
    pub(crate) stall: Duration,
}

/// How long a client may still be sent what there is when the server is stopping, so that those who
/// follow a run that has just ended see its end.
const LAST_PIECES: Duration = Duration::from_secs(1);

/// What comes after a piece of the stream.
enum Next {
    Pieces(Box<Watcher>),
    Error(Status),
    Nothing,
}

impl Watcher {
    /// The pieces of the stream. The call and its place among the watchers are held until it ends.
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
                        // One that was read for this watcher alone is not copied.
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

    /// The events after the cursor; none at the log's end.
    async fn page(&self) -> Result<Arc<Page>, Status> {
        let at_hand = self.news.borrow().page_after(self.cursor).cloned();
        match at_hand {
            Some(page) => Ok(page),
            None => self.feed.page(&self.runs, &self.run, self.cursor).await,
        }
    }

    /// Waits for news of the run, or for the server to stop.
    async fn wait(&mut self) {
        let news = self.news.borrow_and_update().progress;
        if news.last_seq > self.cursor {
            return;
        }
        if news.status != RunStatus::Running {
            // The store said otherwise a moment ago: one of the two is about to change its mind.
            tokio::time::sleep(Duration::from_millis(20)).await;
            return;
        }
        tokio::select! {
            // The feed, which this watcher keeps alive, holds the other end.
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
