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

/// An item of a stream of events.
pub(crate) type Piece = Result<proto::WatchEventsResponse, Status>;
type Source = Pin<Box<dyn Stream<Item = Piece> + Send>>;

/// The stream of a watcher's pieces. When the connection polls for a piece, the piece is created on the
/// connection's task. If the client reads nothing for too long, the source of the pieces is dropped. Only the
/// cursor is kept, for the last piece.
#[derive(Debug)]
pub(crate) struct Pieces {
    shared: Arc<Mutex<Shared>>,
    looks: AbortHandle,
}

/// The state that the stream shares with its monitor task.
struct Shared {
    /// `None` after the stream of an unresponsive client was ended.
    source: Option<Source>,
    /// The call and its permit. They are released when `source` is dropped.
    holds: Option<Holds>,
    news: watch::Receiver<News>,
    cursor: u64,
    /// How many times the connection has polled.
    asked: u64,
    /// Whether the last poll returned a piece. If so, the next poll comes only if the client reads the piece.
    has_piece: bool,
    /// Whether the last piece, which contains the reason for the end, was created.
    ended: bool,
}

pub(crate) type Holds = (Option<Call>, OwnedSemaphorePermit);

/// How many times a client is checked within its time limit. These checks replace a timer for each piece,
/// which would cost more than the piece.
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

/// Ends the stream if the client read nothing in [`LOOKS`] consecutive checks although events were available.
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
    /// Returns true if the client has something to read: a piece in flight, or events in the log.
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

/// Creates the last piece of a stream.
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
    // If the source panics, the task that polls it ends, so the source is not polled again.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
