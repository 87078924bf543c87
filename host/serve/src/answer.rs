use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http_body::{Body as _, Frame};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Bytes;
use tonic::codegen::http::HeaderMap;

use crate::budget::Charge;
use crate::call::{Call, Calls};

/// What is handed to the connection at once. It is less than any client's window, so that one that
/// takes anything is seen to.
const PIECE: usize = 16 << 10;

/// An answer's body, in pieces that are given back to the budget as the client takes them.
pub(crate) struct Answer {
    /// What makes the rest; none when the answer is over.
    body: Option<Body>,
    /// What was made and is not handed on.
    made: Bytes,
    /// The end of an answer that was made as a whole.
    trailers: Option<Frame<Bytes>>,
    /// What the call itself and `made` hold of the budget.
    charge: Charge,
    place: Arc<Place>,
    _call: Option<Call>,
}

/// An answer's place in the books of its connection.
struct Place {
    calls: Arc<Calls>,
    number: u64,
}

impl Answer {
    /// Of a call that holds `charge` already.
    pub(crate) fn new(
        body: Body,
        charge: Charge,
        calls: Arc<Calls>,
        is_stream: bool,
        call: Option<Call>,
    ) -> Self {
        let number = calls.answer(is_stream);
        Self {
            body: Some(body),
            made: Bytes::new(),
            trailers: None,
            charge,
            place: Arc::new(Place { calls, number }),
            _call: call,
        }
    }

    /// Has the whole of an answer made that does not wait for anything, so that it takes its part of the
    /// budget now, and what it was made from is gone.
    ///
    /// # Errors
    /// There is no room for it.
    pub(crate) fn make(&mut self, context: &mut Context<'_>) -> Result<(), Status> {
        while self.made.is_empty() && self.trailers.is_none() {
            match self.poll_made(context) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.keep(data)?,
                    Err(frame) => self.trailers = Some(frame),
                },
                Poll::Ready(Some(Err(status))) => return Err(status),
                Poll::Ready(None) | Poll::Pending => return Ok(()),
            }
        }
        // What made it, which may hold twice as much, is done when it says so.
        match self.poll_made(context) {
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(more) => {
                    let first = std::mem::take(&mut self.made);
                    self.keep(more)?;
                    self.made = [first, std::mem::take(&mut self.made)].concat().into();
                }
                Err(end) => {
                    self.trailers = Some(end);
                    self.body = None;
                    self.made = Bytes::copy_from_slice(&self.made);
                }
            },
            Poll::Ready(Some(Err(status))) => return Err(status),
            Poll::Ready(None) | Poll::Pending => {}
        }
        Ok(())
    }

    fn poll_made(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(body).poll_frame(context));
        if frame.is_none() {
            self.body = None;
        }
        Poll::Ready(frame)
    }

    fn keep(&mut self, data: Bytes) -> Result<(), Status> {
        self.charge.grow(data.len())?;
        self.place.calls.made(self.place.number, data.len());
        self.made = data;
        Ok(())
    }

    /// The next piece of what was made.
    fn piece(&mut self) -> Bytes {
        let bytes = self.made.split_to(self.made.len().min(PIECE));
        Bytes::from_owner(Piece {
            place: Arc::clone(&self.place),
            _charge: self.charge.split(bytes.len()),
            bytes,
        })
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if !self.made.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(self.piece()))));
            }
            if let Some(trailers) = self.trailers.take() {
                return Poll::Ready(Some(Ok(trailers)));
            }
            let frame = match ready!(self.poll_made(context)) {
                Some(Ok(frame)) => frame,
                other => return Poll::Ready(other),
            };
            match frame.into_data() {
                Ok(data) => {
                    if let Err(status) = self.keep(data) {
                        self.body = None;
                        return Poll::Ready(Some(Ok(trailers(&status))));
                    }
                }
                Err(frame) => return Poll::Ready(Some(Ok(frame))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.made.is_empty()
            && self.trailers.is_none()
            && self.body.as_ref().is_none_or(Body::is_end_stream)
    }
}

/// The end of an answer that has begun.
fn trailers(status: &Status) -> Frame<Bytes> {
    let mut headers = HeaderMap::new();
    // It fails for a message that a header cannot hold, and ours can be held.
    let _ = status.add_header(&mut headers);
    Frame::trailers(headers)
}

/// Bytes on their way to the client. They are let go when the system has taken them.
struct Piece {
    bytes: Bytes,
    place: Arc<Place>,
    _charge: Charge,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let Place { calls, number } = &*self.place;
        calls.taken(*number, self.bytes.len());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.calls.answered(self.number);
    }
}
