use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use host_core::{Error, Kind, Result};
use host_proto::tensorboard::data::tensor_board_data_provider_server::TensorBoardDataProviderServer;
use host_proto::tracker::v1::tracker_service_server::TrackerServiceServer;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tonic::transport::server::TcpIncoming;

use crate::feed;
use crate::source::{Runs, Source};
use crate::tensorboard::TensorBoard;
use crate::tracker::Tracker;

/// Requests are names and numbers.
const REQUEST_BYTES: usize = 64 << 10;
/// TensorBoard's requests name every run and metric that it shows.
const TENSORBOARD_REQUEST_BYTES: usize = 4 << 20;
/// Calls that one connection may have open.
const STREAMS: u32 = 256;
/// A peer that is gone without a word is noticed after twice this.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// How long a unary call may take.
const CALL: Duration = Duration::from_secs(30);
/// How long calls may take to end when the server stops.
const GRACE: Duration = Duration::from_secs(2);
/// Threads that read the store. More would only take turns on the disk.
const READERS: usize = 4;

/// The gRPC server: `tracker.v1`, `tensorboard.data`, health and reflection.
#[derive(Debug)]
pub struct Server;

/// A server at work. It stops when it is told to, or dropped.
#[derive(Debug)]
pub struct Serving {
    addr: SocketAddr,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Server {
    /// Whether it would listen there at all.
    ///
    /// # Errors
    /// If the address is not of this machine alone.
    pub fn check(listen: SocketAddr) -> Result<()> {
        if listen.ip().is_loopback() {
            return Ok(());
        }
        Err(Error::new(
            Kind::Config,
            format!("cannot listen on {listen}: anybody on the network could read the runs"),
        )
        .hint(
            "listen on 127.0.0.1 and reach it from elsewhere through `ssh -L`; \
             TLS and tokens are not there yet",
        ))
    }

    /// Begins to listen; port 0 takes a free one. Returns once clients can connect.
    ///
    /// # Errors
    /// If the address is not of this machine alone, or is in use.
    pub fn start(listen: SocketAddr, source: Source) -> Result<Serving> {
        Self::check(listen)?;
        let runs = Arc::new(Runs::new(&source)?);
        let listener = TcpListener::bind(listen).map_err(|e| cannot_listen(listen, &e))?;
        let addr = listener
            .local_addr()
            .and_then(|addr| listener.set_nonblocking(true).map(|()| addr))
            .map_err(|e| cannot_listen(listen, &e))?;
        let (stop, stopping) = watch::channel(false);
        let mut serving = Serving {
            addr,
            stop,
            threads: Vec::new(),
        };
        if let Source::Live { commits, .. } = source {
            let (runs, stopping) = (Arc::clone(&runs), stopping.clone());
            serving.spawn("serve-commits", move || {
                if let Some(feed) = runs.live_feed() {
                    feed::follow(&runs, feed, &commits, &stopping);
                }
                Ok(())
            })?;
        }
        let runtime = Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(READERS)
            .thread_name("serve-reader")
            .build()
            .map_err(|e| Error::new(Kind::System, format!("cannot start the server: {e}")))?;
        serving.spawn("serve", move || serve(runtime, listener, runs, stopping))?;
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
                .unwrap_or_else(|_| Err(Error::new(Kind::System, "the server panicked")));
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
            .map_err(|e| Error::new(Kind::System, format!("cannot start a thread: {e}")))?;
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

/// The server's thread.
fn serve(
    runtime: Runtime,
    listener: TcpListener,
    runs: Arc<Runs>,
    stopping: watch::Receiver<bool>,
) -> Result<()> {
    let failed = |e: &dyn std::fmt::Display| Error::new(Kind::System, format!("gRPC: {e}"));
    let result = runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).map_err(|e| failed(&e))?;
        let tensorboard = TensorBoardDataProviderServer::new(TensorBoard {
            runs: Arc::clone(&runs),
        })
        .max_decoding_message_size(TENSORBOARD_REQUEST_BYTES);
        let tracker = Tracker {
            runs,
            stopping: stopping.clone(),
        };
        let tracker = TrackerServiceServer::new(tracker).max_decoding_message_size(REQUEST_BYTES);
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<TrackerServiceServer<Tracker>>().await;
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(host_proto::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let stopped = |mut stopping: watch::Receiver<bool>| async move {
            // An error is a server whose owner is gone, which is no less a reason to stop.
            let _ = stopping.wait_for(|stopping| *stopping).await;
        };
        let served = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .max_concurrent_streams(STREAMS)
            .timeout(CALL)
            .add_service(tracker)
            .add_service(tensorboard)
            .add_service(health_service)
            .add_service(reflection().build_v1().map_err(|e| failed(&e))?)
            // Older tools, grpcurl among them, ask for this one.
            .add_service(reflection().build_v1alpha().map_err(|e| failed(&e))?)
            .serve_with_incoming_shutdown(
                TcpIncoming::from(listener).with_nodelay(Some(true)),
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

fn cannot_listen(listen: SocketAddr, source: &std::io::Error) -> Error {
    Error::new(Kind::Config, format!("cannot listen on {listen}: {source}"))
        .hint("choose another port, or 0 for a free one")
}
