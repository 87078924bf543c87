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

/// Connections that the system keeps until they are taken; beyond it a client waits for a second.
const BACKLOG: u32 = 4096;
/// What a call may say of itself.
const HEADER_BYTES: u32 = 16 << 10;
/// What a client may send before the server has looked at it, in one call and in all of a connection:
/// the least that HTTP/2 knows.
const WINDOW: u32 = 65_535;
/// A peer that is gone without a word is noticed after twice this.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// How long a call may take before it is answered. Reads are quick; a request to the loop waits for
/// the end of its step, or of an evaluation.
const CALL: Duration = Duration::from_secs(600);
/// How long calls may take to end when the server stops.
const GRACE: Duration = Duration::from_secs(2);
/// Threads that read the store. More would only take turns on the disk.
const READERS: usize = 4;

/// The gRPC server, before it is at work: `tracker.v1`, `tensorboard.data`, health and reflection.
pub struct Server {
    listen: SocketAddr,
    source: Source,
    access: Access,
    tls: Option<TlsIdentity>,
    limits: Limits,
    warn: Option<Warn>,
}

/// A server at work. It stops when it is told to, or dropped.
#[derive(Debug)]
pub struct Serving {
    addr: SocketAddr,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Server {
    /// A server that anybody on this machine may read, and nobody may control.
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

    /// With these tokens.
    #[must_use]
    pub fn access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// With TLS as this.
    #[must_use]
    pub fn tls(mut self, tls: Option<TlsIdentity>) -> Self {
        self.tls = tls;
        self
    }

    /// With other limits than the usual ones.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Tells this what its owner should know, such as that somebody guesses tokens.
    #[must_use]
    pub fn on_warning(mut self, warn: impl Fn(String) + Send + Sync + 'static) -> Self {
        self.warn = Some(Arc::new(warn));
        self
    }

    /// Whether a server would listen there at all.
    ///
    /// # Errors
    /// If the address is not of this machine alone, and there is no TLS or no token to read.
    pub fn check(listen: SocketAddr, has_tls: bool, has_read_token: bool) -> Result<()> {
        if listen.ip().is_loopback() || (has_tls && has_read_token) {
            return Ok(());
        }
        let (reason, missing) = match has_tls {
            false => (
                "others on the network could read them",
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
            "give {missing} or listen on 127.0.0.1 and reach it from elsewhere through `ssh -L`"
        )))
    }

    /// Begins to listen; port 0 takes a free one. Returns once clients can connect.
    ///
    /// # Errors
    /// If it would not listen there, or the address is in use.
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
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Stops: takes no more calls, tells watchers to go on elsewhere from their cursor, gives open calls
    /// two seconds to end, and cuts off the rest.
    ///
    /// # Errors
    /// If the server had failed before.
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
        // Whoever wants to know how it went calls `stop`.
        let _ = self.stop_and_join();
    }
}

/// What is served, and to whom.
struct Services {
    runs: Arc<Runs>,
    control: Control,
    access: Arc<Access>,
    tls: Option<TlsIdentity>,
    limits: Limits,
    warn: Option<Warn>,
}

/// The server's thread.
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
        // A server that trains nothing has no secret of a loop to keep: it says where the loop is.
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
        // Older tools, grpcurl among them, ask for this one.
        let old = reflection().build_v1alpha().map_err(|e| failed(&e))?;
        let stopped = |mut stopping: watch::Receiver<bool>| async move {
            // An error is a server whose owner is gone, which is no less a reason to stop.
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
    // Reads in progress end by themselves; none takes long.
    runtime.shutdown_timeout(GRACE);
    result
}

/// A socket that listens, and where.
fn bind(listen: SocketAddr) -> std::io::Result<(TcpListener, SocketAddr)> {
    let socket = match listen {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // The port of a server that has just ended is free.
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
