use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::Stream;
use host_proto::tracker::v1 as proto;
use host_store::{Progress, RunStatus};
use proto::WatchEndReason;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::task::AbortHandle;
use tonic::Status;

use crate::call::Call;
use crate::watch::feed::News;

/// What a stream of events consists of.
pub(crate) type Piece = Result<proto::WatchEventsResponse, Status>;
type Source = Pin<Box<dyn Stream<Item = Piece> + Send>>;

/// A watcher's pieces, each made when the connection asks for it, on the connection's own task. A client
/// that takes nothing for long is told from which cursor to go on; from then on nothing is held for it.
#[derive(Debug)]
pub(crate) struct Pieces {
    shared: Arc<Mutex<Shared>>,
    looks: AbortHandle,
}

/// What the stream and the task that looks after it have in common.
struct Shared {
    /// None when the client was given up.
    source: Option<Source>,
    /// The call and its place among the watchers, as long as there is a source.
    holds: Option<Holds>,
    news: watch::Receiver<News>,
    cursor: u64,
    /// How often the connection asked.
    asked: u64,
    /// Whether the last that it asked for was there, so that it is to ask again.
    has_piece: bool,
    /// Whether the piece that says why the stream ends was made.
    ended: bool,
}

pub(crate) type Holds = (Option<Call>, OwnedSemaphorePermit);

/// Looks, in the time that a client has, at whether it takes anything. A timer for each piece would
/// cost more than the piece.
const LOOKS: u32 = 4;

impl Pieces {
    pub(crate) fn new(
        source: impl Stream<Item = Piece> + Send + 'static,
        holds: Holds,
        news: watch::Receiver<News>,
        cursor: u64,
        stall: Duration,
    ) -> Self {
        let shared = Arc::new(Mutex::new(Shared {
            source: Some(Box::pin(source)),
            holds: Some(holds),
            news,
            cursor,
            asked: 0,
            has_piece: false,
            ended: false,
        }));
        let looks = tokio::spawn(look_after(Arc::downgrade(&shared), stall / LOOKS));
        Self {
            shared,
            looks: looks.abort_handle(),
        }
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        self.looks.abort();
    }
}

impl Stream for Pieces {
    type Item = Piece;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Piece>> {
        let shared = &mut *lock(&self.shared);
        shared.asked += 1;
        shared.has_piece = false;
        let piece = match &mut shared.source {
            Some(source) => ready!(source.as_mut().poll_next(context)),
            None if shared.ended => None,
            None => Some(Ok(end(shared.cursor, WatchEndReason::TooSlow))),
        };
        shared.has_piece = true;
        match &piece {
            Some(Ok(piece)) => {
                shared.cursor = piece.cursor;
                shared.ended = piece.end.is_some();
            }
            Some(Err(_)) | None => shared.ended = true,
        }
        Poll::Ready(piece)
    }
}

/// Gives the client up when it has taken nothing for so many looks while there was something to take.
async fn look_after(shared: Weak<Mutex<Shared>>, pause: Duration) {
    let (mut asked, mut in_vain) = (0, 0);
    while in_vain < LOOKS {
        tokio::time::sleep(pause).await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let shared = lock(&shared);
        let takes = std::mem::replace(&mut asked, shared.asked) != shared.asked;
        match takes || !shared.is_due() {
            true => in_vain = 0,
            false => in_vain += 1,
        }
    }
    if let Some(shared) = shared.upgrade() {
        lock(&shared).give_up();
    }
}

impl Shared {
    /// Whether there is something for the client, on its way or in the log.
    fn is_due(&self) -> bool {
        let all_taken = Progress {
            last_seq: self.cursor,
            status: RunStatus::Running,
        };
        self.has_piece || self.news.borrow().progress != all_taken
    }

    fn give_up(&mut self) {
        self.source = None;
        self.holds = None;
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("cursor", &self.cursor)
            .field("asked", &self.asked)
            .finish_non_exhaustive()
    }
}

/// The last piece of a stream.
pub(crate) fn end(cursor: u64, reason: WatchEndReason) -> proto::WatchEventsResponse {
    proto::WatchEventsResponse {
        events: Vec::new(),
        cursor,
        end: Some(proto::WatchEnd {
            reason: reason.into(),
        }),
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    // A source that panicked is not asked again: its task is gone.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
