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

/// Maximum size of a chunk that is sent to the connection. It is smaller than the flow-control window of any
/// client, so that the server notices whenever the client reads.
const PIECE: usize = 16 << 10;

/// A response body that is sent in chunks. The bytes of each chunk are returned to the budget when the client
/// reads the chunk.
pub(crate) struct Answer {
    /// Produces the rest of the response; `None` when the response is complete.
    body: Option<Body>,
    /// Bytes that were produced but not sent yet.
    made: Bytes,
    /// The trailers of the response. `None` until the response is complete.
    trailers: Option<Frame<Bytes>>,
    /// The bytes charged to the budget for the call itself and for `made`.
    charge: Charge,
    place: Arc<Place>,
    _call: Option<Call>,
}

/// A response's entry in the `Calls` of its connection.
struct Place {
    calls: Arc<Calls>,
    number: u64,
}

impl Answer {
    /// Wraps a response body. `charge` contains the bytes that the call has already taken from the budget.
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

    /// If the whole response is available without waiting, produces it, charges its bytes to the budget, and
    /// frees its source.
    ///
    /// # Errors
    /// Returns an error if the budget is used up or if producing the response fails.
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
        // Polls the source again, so that it reports its end and is freed. A source can hold twice as many
        // bytes as the response.
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

    /// Returns the next chunk of the produced bytes.
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

/// Returns the trailers that end a partial response with an error.
fn trailers(status: &Status) -> Frame<Bytes> {
    let mut headers = HeaderMap::new();
    // This fails only for characters that headers do not allow, and no message here contains such characters.
    let _ = status.add_header(&mut headers);
    Frame::trailers(headers)
}

/// Bytes in flight to the client. They are dropped once the operating system has accepted them.
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
