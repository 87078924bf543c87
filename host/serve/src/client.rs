mod control;
mod wire;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use host_core::{Error, ErrorKind, Event, Result, RunName};
use host_proto::tracker::v1 as proto;
use host_store::{Delivery, Point, RunRow, Series};
use proto::WatchEndReason;
use proto::tracker_service_client::TrackerServiceClient;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};

pub use self::wire::Remote;
use self::wire::Wire;
use crate::from_proto;

/// Pauses between attempts to reconnect.
const RETRY: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(50)..=Duration::from_secs(2);
/// How long a watch tries to reconnect by default.
const PATIENCE: Duration = Duration::from_secs(30);
/// Number of runs per page. The server's maximum keeps the number of requests small: the server lists its
/// whole folder for each page.
const PAGE: u32 = 1000;
/// Timeout of a unary call and of opening a stream.
const CALL: Duration = Duration::from_secs(30);

/// A blocking client of `tracker.v1`. The connection has its own thread.
#[derive(Debug)]
pub struct Client {
    addr: String,
    runtime: Runtime,
    wire: Wire,
    service: TrackerServiceClient<Wire>,
}

impl Client {
    /// Connects to `HOST:PORT` without TLS and without a token.
    ///
    /// # Errors
    /// Returns an error if the address is invalid or no server listens there.
    pub fn connect(addr: &str) -> Result<Self> {
        Self::connect_to(&Remote::at(addr))
    }

    /// Connects to a server.
    ///
    /// # Errors
    /// Returns an error if the address is invalid, if no server listens there, or if the server's certificate
    /// is not trusted.
    pub fn connect_to(remote: &Remote) -> Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .thread_name("client")
            .build()
            .map_err(|e| Error::new(ErrorKind::System, format!("cannot start the client: {e}")))?;
        let wire = runtime.block_on(wire::connect(remote))?;
        Ok(Self {
            addr: remote.addr.clone(),
            runtime,
            service: TrackerServiceClient::new(wire.clone()),
            wire,
        })
    }

    /// Returns all runs, sorted by name, without their configurations. For a run that the server cannot read,
    /// the result contains an error instead of a row.
    ///
    /// # Errors
    /// Returns an error if the server does not respond.
    pub fn runs(&self) -> Result<Vec<(RunName, Result<RunRow>)>> {
        let mut runs = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = proto::ListRunsRequest {
                page_size: PAGE,
                page_token,
            };
            let page = self.call(async |mut service| service.list_runs(request).await)?;
            for run in page.runs {
                runs.push((run.name.parse()?, from_proto::run(run, String::new())));
            }
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(runs);
            }
        }
    }

    /// Returns a run with its configuration. An empty name means the server's only run.
    ///
    /// # Errors
    /// Returns an error if the run does not exist or the server does not respond.
    pub fn run(&self, run: &str) -> Result<RunRow> {
        let run = run.to_owned();
        let request = proto::GetRunRequest { run };
        let response = self.call(async |mut service| service.get_run(request).await)?;
        from_proto::run(response.run.unwrap_or_default(), response.config_json)
    }

    /// Returns the metrics of a run, sorted by name.
    ///
    /// # Errors
    /// Returns an error if the run does not exist or the server does not respond.
    pub fn series(&self, run: &str) -> Result<Vec<Series>> {
        let run = run.to_owned();
        let request = proto::ListMetricsRequest { run };
        let response = self.call(async |mut service| service.list_metrics(request).await)?;
        Ok(response
            .metrics
            .into_iter()
            .map(from_proto::series)
            .collect())
    }

    /// Returns a metric's history, reduced to at most `max_points` points. 0 means the server's default.
    ///
    /// # Errors
    /// Returns an error if the run or the metric does not exist, or if the server does not respond.
    pub fn history(&self, run: &str, metric: &str, max_points: u32) -> Result<Vec<Point>> {
        let request = proto::ReadMetricRequest {
            run: run.to_owned(),
            metric: metric.to_owned(),
            max_points,
        };
        let response = self.call(async |mut service| service.read_metric(request).await)?;
        Ok(response.points.into_iter().map(from_proto::point).collect())
    }

    /// Returns the delivery ledger of a run, sorted by sink and then by checkpoint.
    ///
    /// # Errors
    /// Returns an error if the run does not exist or the server does not respond.
    pub fn deliveries(&self, run: &str) -> Result<Vec<Delivery>> {
        let request = proto::ListDeliveriesRequest {
            run: run.to_owned(),
            ..proto::ListDeliveriesRequest::default()
        };
        let response = self.call(async |mut service| service.list_deliveries(request).await)?;
        let entries = response.entries.into_iter();
        Ok(entries.filter_map(from_proto::ledger_entry).collect())
    }

    /// Returns the events of a run after a cursor (0: from the beginning), in order, each exactly once. With
    /// `follow`, the watch waits for new events until the run ends. Otherwise it ends after the last existing
    /// event.
    ///
    /// If the connection breaks, the watch reconnects and continues after the last event.
    pub fn watch(&self, run: &str, after_seq: u64, follow: bool) -> Watch<'_> {
        Watch {
            client: self,
            run: run.to_owned(),
            cursor: after_seq,
            follow,
            patience: PATIENCE,
            stream: None,
            received: VecDeque::new(),
            end: None,
            failed: false,
        }
    }

    fn call<T>(
        &self,
        call: impl AsyncFnOnce(TrackerServiceClient<Wire>) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T> {
        let service = self.service.clone();
        let answer = self
            .runtime
            .block_on(async { timeout(CALL, call(service)).await });
        match answer {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.error(&status)),
            Err(_) => Err(Error::new(
                ErrorKind::System,
                format!("no response from {}", self.addr),
            )),
        }
    }

    fn error(&self, status: &Status) -> Error {
        match status.code() {
            Code::NotFound
            | Code::InvalidArgument
            | Code::OutOfRange
            | Code::FailedPrecondition => Error::new(ErrorKind::Config, status.message()),
            Code::Unauthenticated | Code::PermissionDenied => Error::new(
                ErrorKind::Config,
                format!("{}: {}", status.message(), self.addr),
            )
            .hint("pass the name of the environment variable that contains the token with --token-env"),
            _ => Error::new(
                ErrorKind::System,
                format!("{}: {}", status.message(), self.addr),
            ),
        }
    }
}

/// Why a watch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchEnd {
    /// The run ended.
    RunFinished,
    /// The run's process ended without recording the end of the run. The run can be resumed.
    RunCrashed,
    /// All existing events were received.
    CaughtUp,
}

/// An iterator over the events of a run. It ends after an error.
#[derive(Debug)]
pub struct Watch<'a> {
    client: &'a Client,
    run: String,
    cursor: u64,
    follow: bool,
    patience: Duration,
    stream: Option<Streaming<proto::WatchEventsResponse>>,
    received: VecDeque<Event>,
    end: Option<WatchEnd>,
    failed: bool,
}

impl Watch<'_> {
    /// Sets how long to try to reconnect after the connection is lost. The default is 30 s.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Returns the sequence number of the last event returned: the cursor that continues this watch.
    pub fn cursor(&self) -> u64 {
        self.cursor
    }

    /// Returns why the watch ended. Returns `None` before the end, and after an error.
    pub fn end(&self) -> Option<WatchEnd> {
        self.end.filter(|_| self.received.is_empty())
    }

    /// Receives the next piece of the stream. Reconnects if necessary.
    fn receive(&mut self) -> Result<()> {
        let mut give_up_at = None;
        let mut wait = *RETRY.start();
        loop {
            match self.try_receive() {
                Ok(()) => return Ok(()),
                Err(status) if worth_another_try(status.code()) => {
                    self.stream = None;
                    let now = Instant::now();
                    let give_up_at = *give_up_at.get_or_insert(now + self.patience);
                    if now >= give_up_at {
                        return Err(self.client.error(&status).hint(format!(
                            "resume after event {} when the server is back",
                            self.cursor
                        )));
                    }
                    std::thread::sleep(wait.min(give_up_at - now));
                    wait = (wait * 2).min(*RETRY.end());
                }
                Err(status) => return Err(self.client.error(&status)),
            }
        }
    }

    fn try_receive(&mut self) -> Result<(), Status> {
        let runtime = &self.client.runtime;
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let request = proto::WatchEventsRequest {
                    run: self.run.clone(),
                    after_seq: self.cursor,
                    follow: self.follow,
                };
                let mut service = self.client.service.clone();
                let opened =
                    runtime.block_on(async { timeout(CALL, service.watch_events(request)).await });
                let response = opened.map_err(|_| Status::deadline_exceeded("no response"))??;
                self.stream.insert(response.into_inner())
            }
        };
        let piece = runtime
            .block_on(stream.message())?
            .ok_or_else(|| Status::unavailable("the stream ended unexpectedly"))?;
        self.received
            .extend(piece.events.into_iter().map(from_proto::event));
        if let Some(end) = piece.end {
            self.end = match end.reason() {
                WatchEndReason::RunFinished => Some(WatchEnd::RunFinished),
                WatchEndReason::RunCrashed => Some(WatchEnd::RunCrashed),
                WatchEndReason::CaughtUp => Some(WatchEnd::CaughtUp),
                WatchEndReason::ServerStopping
                | WatchEndReason::TooSlow
                | WatchEndReason::Unspecified => {
                    return Err(Status::unavailable("the server ended the stream"));
                }
            };
        }
        Ok(())
    }
}

impl Iterator for Watch<'_> {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(event) = self.received.pop_front() {
                self.cursor = event.seq;
                return Some(Ok(event));
            }
            if self.end.is_some() || self.failed {
                return None;
            }
            if let Err(error) = self.receive() {
                self.failed = true;
                return Some(Err(error));
            }
        }
    }
}

fn worth_another_try(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable
            | Code::Unknown
            | Code::Internal
            | Code::Cancelled
            | Code::Aborted
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
    )
}
