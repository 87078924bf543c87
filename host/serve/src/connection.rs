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

/// The connection preface that a client sends first (RFC 9113).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Maximum number of connections that have sent the preface and wait for the server to accept them.
const READY: usize = 16;
/// Pause after a connection could not be accepted, for example because the process has no free file
/// descriptor.
const PAUSE: Duration = Duration::from_millis(100);
/// The frames for a client that is rejected because there are too many connections. The first frame is an
/// empty SETTINGS. The second is a GOAWAY with ENHANCE_YOUR_CALM and a message.
const REFUSAL: &[u8] = b"\0\0\0\x04\0\0\0\0\0\
    \0\0\x1c\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0btoo many connections";

/// The frames for a client that does not use TLS although the server does. They are the same frames as above,
/// but with INADEQUATE_SECURITY and another message.
const CLEAR_REFUSAL: &[u8] = b"\0\0\0\x04\0\0\0\0\0\
    \0\0\x2e\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0cthis port needs TLS: pass https://ADDR";
/// How long a rejected client may take to read the reason.
const FAREWELL: Duration = Duration::from_secs(1);

/// A client's connection after the handshake. It ends if it has no call for too long, or if the client does
/// not read a response.
pub(crate) struct Connection {
    io: Io,
    /// The part of the preface that was read during the handshake and not passed on yet.
    unread: &'static [u8],
    calls: Arc<Calls>,
    look: Pin<Box<Sleep>>,
    /// How the connection ended, if it has.
    end: Option<End>,
    /// The connection's permit. `None` if the connection belongs to the reserve.
    _place: Option<OwnedSemaphorePermit>,
}

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// The settings for accepting connections.
pub(crate) struct Door {
    pub(crate) tls: Option<TlsAcceptor>,
    pub(crate) limits: Limits,
    pub(crate) budget: Arc<Budget>,
    /// Whether the server has a control token. If it does, it also has a reserve of connections for clients
    /// on this machine that send this token.
    pub(crate) has_control: bool,
}

/// Returns the stream of connections after their handshakes. A slow handshake does not delay other clients.
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

/// Accepts connections until the receiver is dropped.
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
            // The client has already disconnected, or the process has no free file descriptor.
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
                // The send buffer of a new connection normally has room for the reason. Otherwise the client
                // gets no reason.
                let _ = stream.try_write(REFUSAL);
            }
            continue;
        };
        budget.join(&calls);
        let (tls, ready) = (tls.clone(), ready.clone());
        tokio::spawn(async move {
            // A connection is closed if its handshake is invalid or takes too long.
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
                // An error means that the server is stopping.
                let _ = ready.send(connection).await;
            }
        });
    }
}

/// Waits until the connection must be closed. Used during the handshake.
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

/// The connections beyond the limit. They are reserved for clients on this machine that send the control
/// token.
#[derive(Default)]
struct Reserve(VecDeque<Weak<Calls>>);

impl Reserve {
    /// Admits a new connection. If the reserve is full, closes its oldest connection that has not sent the
    /// control token. If all of its connections have sent the token, returns `None` instead.
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

/// Performs the handshake: the TLS handshake, if TLS is configured, and then the HTTP/2 preface.
async fn greet(mut stream: TcpStream, tls: Option<TlsAcceptor>) -> io::Result<Io> {
    stream.set_nodelay(true)?;
    let mut io = match tls {
        Some(tls) => {
            let mut first = [0; PREFACE.len()];
            let length = stream.peek(&mut first).await?;
            if first[0].is_ascii_uppercase() {
                // The client does not use TLS.
                let refusal = match first[..length] == PREFACE[..length] {
                    true => CLEAR_REFUSAL.to_vec(),
                    false => http_refusal("this port serves gRPC over TLS"),
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
            // An HTTP/1 client gets a response; clients of other protocols do not.
            if said[0].is_ascii_uppercase() {
                return send_away(&mut io, &http_refusal("this port serves gRPC")).await;
            }
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(io)
}

/// Returns an HTTP/1.1 response that a browser can show.
fn http_refusal(why: &str) -> Vec<u8> {
    let text = format!(
        "{why}, which browsers do not support: use `host watch ADDR`, or TensorBoard with \
         --grpc_data_provider=ADDR\n"
    );
    format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{text}",
        text.len()
    )
    .into_bytes()
}

/// Sends a client the reason for its rejection and waits until the client disconnects. Reads the client's
/// data, because closing a socket with unread data can discard the reason before it is sent.
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
    /// Used by the [`Gate`](crate::gate::Gate).
    type ConnectInfo = Arc<Calls>;

    fn connect_info(&self) -> Self::ConnectInfo {
        Arc::clone(&self.calls)
    }
}

impl Connection {
    /// If the connection must end now, returns how it ends. Otherwise ensures that the task is woken for the
    /// next check.
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

    /// Checks that the connection is still allowed to send. A connection with [`End::Cut`] must not even send
    /// a closing message.
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
            // An idle connection ends as if the client had closed it.
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
