use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::budget::Budget;
use crate::call::{Calls, End};
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

/// An HTTP/2 server's two first frames for one that speaks in the clear where TLS is spoken: the same with
/// INADEQUATE_SECURITY.
const CLEAR_REFUSAL: &[u8] = b"\0\0\0\x04\0\0\0\0\0\
    \0\0\x2e\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0cthis port takes TLS: give https://ADDR";
/// How long a client that is sent away may take to read why.
const FAREWELL: Duration = Duration::from_secs(1);

/// A client's connection that has said what it speaks. It ends by itself when it has had no call for
/// long, or does not take what it asked for.
pub(crate) struct Connection {
    io: Io,
    /// How much of the preface, which was read, has not been handed on.
    unread: &'static [u8],
    calls: Arc<Calls>,
    look: Pin<Box<Sleep>>,
    /// How it ended, once it has.
    end: Option<End>,
    /// Its place among all; none if it is one of the reserve.
    _place: Option<OwnedSemaphorePermit>,
}

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Who may connect, and how.
pub(crate) struct Door {
    pub(crate) tls: Option<TlsAcceptor>,
    pub(crate) limits: Limits,
    pub(crate) budget: Arc<Budget>,
    /// Whether there is a control token, for which connections are kept in reserve.
    pub(crate) has_control: bool,
}

/// The connections to serve, as they come. Nobody waits for a slow one.
pub(crate) fn incoming(
    listener: TcpListener,
    door: Door,
) -> impl Stream<Item = io::Result<Connection>> {
    let (ready, connections) = mpsc::channel(READY);
    tokio::spawn(accept(listener, door, ready));
    futures_util::stream::unfold(connections, |mut connections| async {
        let connection = connections.recv().await?;
        Some((Ok(connection), connections))
    })
}

/// Takes connections until nobody serves them any more.
async fn accept(listener: TcpListener, door: Door, ready: mpsc::Sender<Connection>) {
    let Door {
        tls,
        limits,
        budget,
        has_control,
    } = door;
    let places = Arc::new(Semaphore::new(limits.connections_here()));
    let mut reserve = Reserve::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ready.closed() => return,
        };
        let Ok((stream, peer)) = accepted else {
            // A client that was gone again, or no more files.
            sleep(PAUSE).await;
            continue;
        };
        let peer = peer.ip();
        let place = Arc::clone(&places).try_acquire_owned().ok();
        let calls = match &place {
            Some(_) => Some(Calls::new(peer, &limits)),
            None if has_control && peer.to_canonical().is_loopback() => {
                reserve.place(peer, &limits)
            }
            None => None,
        };
        let Some(calls) = calls else {
            if tls.is_none() {
                // A new connection's buffer has room for it; if not, it is closed without a word.
                let _ = stream.try_write(REFUSAL);
            }
            continue;
        };
        budget.join(&calls);
        let (tls, ready) = (tls.clone(), ready.clone());
        tokio::spawn(async move {
            // Whoever speaks something else, or nothing, is not served.
            let greeted = tokio::select! {
                greeted = timeout(limits.handshake, greet(stream, tls)) => greeted,
                () = ended(&calls) => return,
            };
            if let Ok(Ok(io)) = greeted {
                let connection = Connection {
                    io,
                    unread: PREFACE,
                    calls,
                    look: Box::pin(sleep(Duration::ZERO)),
                    end: None,
                    _place: place,
                };
                // An error is a server that stops.
                let _ = ready.send(connection).await;
            }
        });
    }
}

/// Waits until the connection is over before it could say anything.
async fn ended(calls: &Calls) {
    let mut look = Box::pin(sleep(Duration::ZERO));
    poll_fn(|context| {
        while look.as_mut().poll(context).is_ready() {
            match calls.look(context.waker()) {
                Ok(_) => return Poll::Ready(()),
                Err(again) => look.as_mut().reset(again.into()),
            }
        }
        match calls.is_closed() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
}

/// The connections beyond all places.
#[derive(Default)]
struct Reserve(VecDeque<Weak<Calls>>);

impl Reserve {
    /// A place for a new connection. The oldest one that has not shown the control token gives up its
    /// own; none if all have.
    fn place(&mut self, peer: IpAddr, limits: &Limits) -> Option<Arc<Calls>> {
        let is_there =
            |calls: &Weak<Calls>| calls.upgrade().is_some_and(|calls| !calls.is_closed());
        self.0.retain(is_there);
        if self.0.len() >= limits.reserve {
            let waits =
                |calls: &Weak<Calls>| calls.upgrade().is_some_and(|calls| calls.must_prove());
            let oldest = self.0.iter().position(waits)?;
            if let Some(calls) = self.0.remove(oldest).and_then(|calls| calls.upgrade()) {
                calls.close();
            }
        }
        let calls = Calls::in_reserve(peer, limits);
        self.0.push_back(Arc::downgrade(&calls));
        Some(calls)
    }
}

/// Reads what the client says first.
async fn greet(mut stream: TcpStream, tls: Option<TlsAcceptor>) -> io::Result<Io> {
    stream.set_nodelay(true)?;
    let mut io = match tls {
        Some(tls) => {
            let mut first = [0; PREFACE.len()];
            let length = stream.peek(&mut first).await?;
            if first[0].is_ascii_uppercase() {
                // TLS begins otherwise.
                let refusal = match first[..length] == PREFACE[..length] {
                    true => CLEAR_REFUSAL.to_vec(),
                    false => http_refusal("this port takes TLS, and gRPC within it"),
                };
                return send_away(&mut stream, &refusal).await;
            }
            Io::Tls(Box::new(tls.accept(stream).await?))
        }
        None => Io::Plain(stream),
    };
    let mut said = [0; PREFACE.len()];
    let mut length = 0;
    while length < said.len() {
        let read = io.read(&mut said[length..]).await?;
        length += read;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if said[..length] != PREFACE[..length] {
            // HTTP of before; others are not answered.
            if said[0].is_ascii_uppercase() {
                return send_away(&mut io, &http_refusal("this port speaks gRPC")).await;
            }
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(io)
}

/// What a browser shows.
fn http_refusal(why: &str) -> Vec<u8> {
    let text = format!(
        "{why}, which a browser does not: use `host watch ADDR`, or TensorBoard with \
         --grpc_data_provider=ADDR\n"
    );
    format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{text}",
        text.len()
    )
    .into_bytes()
}

/// Says why a client is not served, and waits for it to hang up: what it says unheard would keep the
/// system from sending what it is told.
async fn send_away(io: &mut (impl AsyncRead + AsyncWrite + Unpin), why: &[u8]) -> io::Result<Io> {
    let farewell = async {
        io.write_all(why).await?;
        io.shutdown().await?;
        let mut heard = 0;
        while heard < 64 << 10 {
            match io.read(&mut [0; 1024]).await? {
                0 => break,
                read => heard += read,
            }
        }
        io::Result::Ok(())
    };
    let _ = timeout(FAREWELL, farewell).await;
    Err(io::ErrorKind::InvalidData.into())
}

impl Connected for Connection {
    /// For the gates before the services.
    type ConnectInfo = Arc<Calls>;

    fn connect_info(&self) -> Self::ConnectInfo {
        Arc::clone(&self.calls)
    }
}

impl Connection {
    /// How it ends now, if it does. Wakes the task when that may be.
    fn end(&mut self, context: &mut Context<'_>) -> Option<End> {
        while self.end.is_none() && self.look.as_mut().poll(context).is_ready() {
            match self.calls.look(context.waker()) {
                Ok(end) => self.end = Some(end),
                Err(again) => self.look.as_mut().reset(again.into()),
            }
        }
        if self.calls.is_closed() {
            self.end = Some(End::Cut);
        }
        self.end
    }

    /// Whether anything may still be sent. What was cut off is not even told so.
    fn check_write(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.end(context) {
            Some(End::Cut) => Err(io::ErrorKind::TimedOut.into()),
            Some(End::Idle) | None => Ok(()),
        }
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
        match self.end(context) {
            // As if the client had closed it.
            Some(End::Idle) => return Poll::Ready(Ok(())),
            Some(End::Cut) => return Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            None => {}
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
        self.check_write(context)?;
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check_write(context)?;
        Pin::new(&mut self.io).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_write(context)?;
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_write(context)?;
        Pin::new(&mut self.io).poll_shutdown(context)
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

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(context, parts),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(context, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
