use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body::{Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Bytes;

use crate::budget::Charge;

/// Maximum memory that a decoded request occupies, in bytes per byte of the request. A list of short names
/// needs the most.
const UNDERSTOOD: usize = 16;

/// The bytes of the budget that a request holds until its call is answered.
pub(crate) type Held = Arc<Mutex<Charge>>;

/// A request body whose size is limited, and which must be complete within a time limit.
pub(crate) struct RequestBody {
    body: Body,
    /// How many more bytes are accepted.
    room: usize,
    held: Held,
    limit: Duration,
    end: Pin<Box<Sleep>>,
}

impl RequestBody {
    /// Wraps a request of at most `most` bytes.
    pub(crate) fn new(body: Body, most: usize, limit: Duration, held: Held) -> Self {
        Self {
            body,
            room: most,
            held,
            limit,
            end: Box::pin(sleep(limit)),
        }
    }

    fn take(&mut self, bytes: usize) -> Result<(), Status> {
        self.room = self
            .room
            .checked_sub(bytes)
            .ok_or_else(|| Status::out_of_range("the request is too large for this service"))?;
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.grow(bytes * UNDERSTOOD)
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.end.as_mut().poll(context).is_ready() {
            let secs = self.limit.as_secs_f64();
            let late = format!("the request did not arrive within {secs} s");
            return Poll::Ready(Some(Err(Status::deadline_exceeded(late))));
        }
        let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(context)) else {
            return Poll::Ready(None);
        };
        let frame = frame.and_then(|frame| {
            self.take(frame.data_ref().map_or(0, Bytes::len))?;
            Ok(frame)
        });
        Poll::Ready(Some(frame))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
