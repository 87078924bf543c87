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

/// What a byte of a request may become when it is understood: a list of short names takes most.
const UNDERSTOOD: usize = 16;

/// What a request holds of the budget until its call is answered.
pub(crate) type Held = Arc<Mutex<Charge>>;

/// A request's body, as large as its service takes and as late as the server waits for it.
pub(crate) struct RequestBody {
    body: Body,
    /// Bytes that may still come.
    room: usize,
    held: Held,
    limit: Duration,
    end: Pin<Box<Sleep>>,
}

impl RequestBody {
    /// A request of at most `most` bytes.
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
            .ok_or_else(|| Status::out_of_range("the request is longer than this service takes"))?;
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
