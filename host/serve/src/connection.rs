use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::call::Calls;
use crate::limits::Limits;

/// What a client says first, by RFC 9113.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Connections that have said it and wait for the server's loop.
const READY: usize = 16;
/// How long to wait when the system has no more files, before connections are taken again.
const PAUSE: Duration = Duration::from_millis(100);
/// An HTTP/2 server's two first frames for one that is not served: empty SETTINGS, and GOAWAY with
/// ENHANCE_YOUR_CALM and a word for people.
const REFUSAL: &[u8] = b"\0\0\0\x04\0\0\0\0\0\
    \0\0\x1c\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0btoo many connections";

/// A client's connection that has said what it speaks. It ends by itself when it has had no call for
/// long.
pub(crate) struct Connection {
    io: Io,
    /// How much of the preface, which was read, has not been handed on.
    unread: &'static [u8],
    calls: Arc<Calls>,
    idle: Duration,
    look: Pin<Box<Sleep>>,
    /// Its place among all.
    _place: OwnedSemaphorePermit,
}

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// The connections to serve, as they come. Nobody waits for a slow one.
pub(crate) fn incoming(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    limits: Limits,
) -> impl Stream<Item = io::Result<Connection>> {
    let (ready, connections) = mpsc::channel(READY);
    tokio::spawn(accept(listener, tls, limits, ready));
    futures_util::stream::unfold(connections, |mut connections| async {
        let connection = connections.recv().await?;
        Some((Ok(connection), connections))
    })
}

/// Takes connections until nobody serves them any more.
async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    limits: Limits,
    ready: mpsc::Sender<Connection>,
) {
    let places = Arc::new(Semaphore::new(limits.connections_here()));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ready.closed() => return,
        };
        let Ok((stream, _)) = accepted else {
            // A client that was gone again, or no more files.
            sleep(PAUSE).await;
            continue;
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            if tls.is_none() {
                // A new connection's buffer has room for it; if not, it is closed without a word.
                let _ = stream.try_write(REFUSAL);
            }
            continue;
        };
        let (tls, ready) = (tls.clone(), ready.clone());
        tokio::spawn(async move {
            // Whoever speaks something else, or nothing, is not answered.
            if let Ok(Ok(io)) = timeout(limits.handshake, greet(stream, tls)).await {
                let connection = Connection {
                    io,
                    unread: PREFACE,
                    calls: Calls::new(limits.calls_per_second),
                    idle: limits.idle,
                    look: Box::pin(sleep(limits.idle)),
                    _place: place,
                };
                // An error is a server that stops.
                let _ = ready.send(connection).await;
            }
        });
    }
}

/// Reads what the client says first.
async fn greet(stream: TcpStream, tls: Option<TlsAcceptor>) -> io::Result<Io> {
    stream.set_nodelay(true)?;
    let mut io = match tls {
        Some(tls) => Io::Tls(Box::new(tls.accept(stream).await?)),
        None => Io::Plain(stream),
    };
    let mut said = [0; PREFACE.len()];
    let mut length = 0;
    while length < said.len() {
        let read = io.read(&mut said[length..]).await?;
        length += read;
        if read == 0 || said[..length] != PREFACE[..length] {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(io)
}

impl Connected for Connection {
    /// For the gates before the services.
    type ConnectInfo = Arc<Calls>;

    fn connect_info(&self) -> Self::ConnectInfo {
        Arc::clone(&self.calls)
    }
}

impl Connection {
    /// Whether it has had no call for long. Wakes the task when that may be.
    fn is_idle(&mut self, context: &mut Context<'_>) -> bool {
        while self.look.as_mut().poll(context).is_ready() {
            let quiet = self.calls.quiet_for().unwrap_or_default();
            if quiet >= self.idle {
                return true;
            }
            let next = tokio::time::Instant::now() + (self.idle - quiet);
            self.look.as_mut().reset(next);
        }
        false
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.unread.is_empty() {
            let length = self.unread.len().min(buffer.remaining());
            let (now, later) = self.unread.split_at(length);
            buffer.put_slice(now);
            self.unread = later;
            return Poll::Ready(Ok(()));
        }
        if self.is_idle(context) {
            // As if the client had closed it.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Io::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_write_vectored(context, parts),
            Io::Tls(stream) => Pin::new(stream).poll_write_vectored(context, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(stream) => stream.is_write_vectored(),
            Io::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_flush(context),
            Io::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Io::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}
