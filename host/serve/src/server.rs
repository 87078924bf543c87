use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use host_core::{Error, ErrorKind, Result};
use host_proto::tensorboard::data::tensor_board_data_provider_server::{
    self, TensorBoardDataProviderServer,
};
use host_proto::tracker::v1::control_service_server::{self, ControlServiceServer};
use host_proto::tracker::v1::tracker_service_server::{self, TrackerServiceServer};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tonic_health::pb::health_server::HealthServer;

use crate::access::{Access, Scope};
use crate::budget::Budget;
use crate::connection;
use crate::connection::Door;
use crate::control::Control;
use crate::gate::{Gate, REQUEST_BYTES, TENSORBOARD_REQUEST_BYTES, Warn};
use crate::health::Health;
use crate::limits::Limits;
use crate::source::{Runs, Source};
use crate::tensorboard::TensorBoard;
use crate::tls::TlsIdentity;
use crate::tracker::Tracker;
use crate::watch::feed;

/// Length of the system's queue of pending connections. If it is full, a client retries after a second.
const BACKLOG: u32 = 4096;
/// Maximum size of a call's headers.
const HEADER_BYTES: u32 = 16 << 10;
/// Maximum number of bytes that a client has sent and the server has not read yet. The limit applies to each
/// call and to each connection. It is HTTP/2's default window.
const WINDOW: u32 = 65_535;
/// Interval of keepalive pings, and timeout for the response to a ping. A dead peer is detected after twice
/// this time.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Timeout of a call. It is long, because a request to the training loop waits for the end of a step or an
/// evaluation.
const CALL: Duration = Duration::from_secs(600);
/// How long open calls may take to end when the server stops.
const GRACE: Duration = Duration::from_secs(2);
/// Number of threads that read the store. More threads would only compete for the disk.
const READERS: usize = 4;

/// The configuration of a gRPC server for `tracker.v1`, `tensorboard.data`, health and reflection.
pub struct Server {
    listen: SocketAddr,
    source: Source,
    access: Access,
    tls: Option<TlsIdentity>,
    limits: Limits,
    warn: Option<Warn>,
}

/// A running server. It stops on [`Serving::stop`] or when dropped.
#[derive(Debug)]
pub struct Serving {
    addr: SocketAddr,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Server {
    /// Creates a server without tokens: every client on this machine can read, and no client can control.
    pub fn new(listen: SocketAddr, source: Source) -> Self {
        Self {
            listen,
            source,
            access: Access::default(),
            tls: None,
            limits: Limits::default(),
            warn: None,
        }
    }

    /// Sets the tokens.
    #[must_use]
    pub fn access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// Sets the TLS identity; `None` means no TLS.
    #[must_use]
    pub fn tls(mut self, tls: Option<TlsIdentity>) -> Self {
        self.tls = tls;
        self
    }

    /// Replaces the default limits.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets the callback for warnings to the operator, for example about a client that guesses tokens. The
    /// callback may block the thread that calls it.
    #[must_use]
    pub fn on_warning(mut self, warn: impl Fn(String) + Send + Sync + 'static) -> Self {
        self.warn = Some(Arc::new(warn));
        self
    }

    /// Checks that a server may listen on an address.
    ///
    /// # Errors
    /// Returns an error if TLS or the read token is missing. A loopback address needs neither.
    pub fn check(listen: SocketAddr, has_tls: bool, has_read_token: bool) -> Result<()> {
        if listen.ip().is_loopback() || (has_tls && has_read_token) {
            return Ok(());
        }
        let (reason, missing) = match has_tls {
            false => (
                "any machine on the network could read the traffic",
                "--tls self-signed, or --tls-cert and --tls-key,",
            ),
            true => (
                "any machine on the network could read the runs",
                "--read-token-env NAME",
            ),
        };
        Err(Error::new(
            ErrorKind::Config,
            format!("cannot listen on {listen}: {reason}"),
        )
        .hint(format!(
            "pass {missing} or listen on 127.0.0.1 and connect through `ssh -L`"
        )))
    }

    /// Starts to listen, and returns once clients can connect. Port 0 selects a free port.
    ///
    /// # Errors
    /// Returns an error if [`Server::check`] rejects the address or if the address is in use.
    pub fn start(self) -> Result<Serving> {
        let Self {
            listen,
            source,
            access,
            tls,
            limits,
            warn,
        } = self;
        Self::check(listen, tls.is_some(), access.read.is_some())?;
        let runs = Arc::new(Runs::new(&source, limits.watchers)?);
        let requests = match &source {
            Source::Live { requests, .. } => Some(requests.clone()),
            Source::Folder(_) => None,
        };
        let runtime = Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(READERS)
            .thread_name("serve-reader")
            .build()
            .map_err(|e| Error::new(ErrorKind::System, format!("cannot start the server: {e}")))?;
        let (listener, addr) = {
            let _within = runtime.enter();
            bind(listen).map_err(|e| cannot_listen(listen, &e))?
        };
        let (stop, stopping) = watch::channel(false);
        let mut serving = Serving {
            addr,
            stop,
            threads: Vec::new(),
        };
        if let Source::Live { commits, .. } = source {
            let (runs, stopping) = (Arc::clone(&runs), stopping.clone());
            if let Some(feed) = runs.live_feed().cloned() {
                let (hear, heard) = watch::channel(feed.news());
                runtime.spawn(feed::pass_on(heard, Arc::clone(&feed)));
                serving.spawn("serve-commits", move || {
                    feed::follow(&runs, &feed, &commits, &hear, &stopping);
                    Ok(())
                })?;
            }
        }
        let services = Services {
            control: Control {
                runs: Arc::clone(&runs),
                requests,
            },
            access: Arc::new(access),
            runs,
            tls,
            limits,
            warn,
        };
        serving.spawn("serve", move || {
            serve(runtime, listener, services, stopping)
        })?;
        Ok(serving)
    }
}

impl Serving {
    /// Returns the address that the server listens on.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Stops the server: accepts no more calls, sends each watcher its cursor, gives open calls two seconds
    /// to end, and cancels the rest.
    ///
    /// # Errors
    /// Returns an error if the server failed before it was stopped.
    pub fn stop(mut self) -> Result<()> {
        self.stop_and_join()
    }

    fn stop_and_join(&mut self) -> Result<()> {
        self.stop.send_replace(true);
        let mut result = Ok(());
        for thread in self.threads.drain(..) {
            let ended = thread
                .join()
                .unwrap_or_else(|_| Err(Error::new(ErrorKind::System, "the server panicked")));
            result = result.and(ended);
        }
        result
    }

    fn spawn(
        &mut self,
        name: &str,
        work: impl FnOnce() -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(work)
            .map_err(|e| Error::new(ErrorKind::System, format!("cannot start a thread: {e}")))?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // Callers that need the result call `stop`.
        let _ = self.stop_and_join();
    }
}

/// The data that the server's thread needs.
struct Services {
    runs: Arc<Runs>,
    control: Control,
    access: Arc<Access>,
    tls: Option<TlsIdentity>,
    limits: Limits,
    warn: Option<Warn>,
}

/// Runs the server on its own thread.
fn serve(
    runtime: Runtime,
    listener: TcpListener,
    services: Services,
    stopping: watch::Receiver<bool>,
) -> Result<()> {
    let failed = |e: &dyn std::fmt::Display| Error::new(ErrorKind::System, format!("gRPC: {e}"));
    let result = runtime.block_on(async {
        let Services {
            runs,
            control,
            access,
            tls,
            limits,
            warn,
        } = services;
        // Without a training loop there is nothing to control. The service then only returns the address of
        // the process that trains the run. Clients need only read access for that.
        let control_scope = match control.requests {
            Some(_) => Scope::Control,
            None => Scope::Read,
        };
        let budget = Budget::new(limits.bytes);
        let door = Door {
            tls: tls.map(|tls| tls.acceptor()),
            limits,
            budget: Arc::clone(&budget),
            has_control: access.control.is_some(),
        };
        let gate = Gate::new(access, control_scope, limits, budget, warn);
        let places = Arc::clone(&runs.places);
        let control = ControlServiceServer::new(control).max_decoding_message_size(REQUEST_BYTES);
        let tensorboard = TensorBoard::new(Arc::clone(&runs));
        let tensorboard = TensorBoardDataProviderServer::new(tensorboard)
            .max_decoding_message_size(TENSORBOARD_REQUEST_BYTES);
        let tracker = Tracker {
            runs,
            stopping: stopping.clone(),
            stall: limits.stall,
        };
        let tracker = TrackerServiceServer::new(tracker).max_decoding_message_size(REQUEST_BYTES);
        let health = Health {
            services: vec![
                tracker_service_server::SERVICE_NAME,
                control_service_server::SERVICE_NAME,
                tensor_board_data_provider_server::SERVICE_NAME,
            ],
            stopping: stopping.clone(),
            places,
        };
        let health = HealthServer::new(health).max_decoding_message_size(REQUEST_BYTES);
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(host_proto::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let new = reflection().build_v1().map_err(|e| failed(&e))?;
        // Older tools, such as grpcurl, use this version of reflection.
        let old = reflection().build_v1alpha().map_err(|e| failed(&e))?;
        let stopped = |mut stopping: watch::Receiver<bool>| async move {
            // An error means that the `Serving` was dropped, so the server stops as well.
            let _ = stopping.wait_for(|stopping| *stopping).await;
        };
        let served = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .max_concurrent_streams(limits.streams)
            .http2_max_header_list_size(HEADER_BYTES)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .timeout(CALL)
            .layer(gate)
            .add_service(tracker)
            .add_service(control)
            .add_service(tensorboard)
            .add_service(health)
            .add_service(new.max_decoding_message_size(REQUEST_BYTES))
            .add_service(old.max_decoding_message_size(REQUEST_BYTES))
            .serve_with_incoming_shutdown(
                connection::incoming(listener, door),
                stopped(stopping.clone()),
            );
        tokio::select! {
            result = served => result.map_err(|e| failed(&e)),
            () = async { stopped(stopping).await; tokio::time::sleep(GRACE).await; } => Ok(()),
        }
    });
    // Waits for reads of the store that are still in progress. They take only a short time.
    runtime.shutdown_timeout(GRACE);
    result
}

/// Returns a listening socket and its address.
fn bind(listen: SocketAddr) -> std::io::Result<(TcpListener, SocketAddr)> {
    let socket = match listen {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // Allows the server to reuse the port of a server that has just ended.
    socket.set_reuseaddr(true)?;
    socket.bind(listen)?;
    let listener = socket.listen(BACKLOG)?;
    let addr = listener.local_addr()?;
    Ok((listener, addr))
}

fn cannot_listen(listen: SocketAddr, source: &std::io::Error) -> Error {
    Error::new(
        ErrorKind::Config,
        format!("cannot listen on {listen}: {source}"),
    )
    .hint("choose another port, or 0 for a free one")
}
