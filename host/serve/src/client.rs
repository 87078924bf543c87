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

/// Waits between attempts to connect again.
const RETRY: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(50)..=Duration::from_secs(2);
/// How long a watch tries to connect again, unless it is told otherwise.
const PATIENCE: Duration = Duration::from_secs(30);
/// Runs on a page, the most that a server gives: each page costs it a look at its whole folder.
const PAGE: u32 = 1000;
/// How long a unary call, or the opening of a stream, may take.
const CALL: Duration = Duration::from_secs(30);

/// A client of `tracker.v1`. Its calls block; the connection lives on a thread of its own.
#[derive(Debug)]
pub struct Client {
    addr: String,
    runtime: Runtime,
    wire: Wire,
    service: TrackerServiceClient<Wire>,
}

impl Client {
    /// Connects to `HOST:PORT`, without TLS or a token.
    ///
    /// # Errors
    /// If nothing listens there, or the address is none.
    pub fn connect(addr: &str) -> Result<Self> {
        Self::connect_to(&Remote::at(addr))
    }

    /// Connects to a server.
    ///
    /// # Errors
    /// If nothing listens there, it is not the one that was meant, or the address is none.
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

    /// All runs in the order of their names, without their configurations; for one that the server
    /// cannot read, why.
    ///
    /// # Errors
    /// If the server does not answer.
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

    /// A run with its configuration. An empty name means the server's only run.
    ///
    /// # Errors
    /// If there is no such run, or the server does not answer.
    pub fn run(&self, run: &str) -> Result<RunRow> {
        let run = run.to_owned();
        let request = proto::GetRunRequest { run };
        let response = self.call(async |mut service| service.get_run(request).await)?;
        from_proto::run(response.run.unwrap_or_default(), response.config_json)
    }

    /// The metrics of a run by name.
    ///
    /// # Errors
    /// If there is no such run, or the server does not answer.
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

    /// A metric's history, thinned to at most `max_points`; 0 leaves the number to the server.
    ///
    /// # Errors
    /// If there is no such run or metric, or the server does not answer.
    pub fn history(&self, run: &str, metric: &str, max_points: u32) -> Result<Vec<Point>> {
        let request = proto::ReadMetricRequest {
            run: run.to_owned(),
            metric: metric.to_owned(),
            max_points,
        };
        let response = self.call(async |mut service| service.read_metric(request).await)?;
        Ok(response.points.into_iter().map(from_proto::point).collect())
    }

    /// The delivery ledger of a run, by sink and then by checkpoint.
    ///
    /// # Errors
    /// If there is no such run, or the server does not answer.
    pub fn deliveries(&self, run: &str) -> Result<Vec<Delivery>> {
        let request = proto::ListDeliveriesRequest {
            run: run.to_owned(),
            ..proto::ListDeliveriesRequest::default()
        };
        let response = self.call(async |mut service| service.list_deliveries(request).await)?;
        let entries = response.entries.into_iter();
        Ok(entries.filter_map(from_proto::ledger_entry).collect())
    }

    /// The events of a run after a cursor (0: from the beginning), in order, each once. With `follow`,
    /// it waits for more until the run ends; without, it ends with the last event there is.
    ///
    /// A connection that breaks is made again, and the watch goes on where it was.
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
                format!("no answer from {}", self.addr),
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
            .hint("name the environment variable that holds the token with --token-env"),
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
    /// The run's process is gone without a word; it may be resumed.
    RunCrashed,
    /// There is nothing more for now.
    CaughtUp,
}

/// Events as they come. After an error it has ended.
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
    /// How long to try to connect again when the server is gone; 30 s unless told otherwise.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The cursor with which another watch would go on: the last event handed out.
    pub fn cursor(&self) -> u64 {
        self.cursor
    }

    /// Why the watch ended; none while it goes on, or after an error.
    pub fn end(&self) -> Option<WatchEnd> {
        self.end.filter(|_| self.received.is_empty())
    }

    /// Gets the next piece of the stream, over however many connections it takes.
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
                            "the last event seen was {}; resume from there when it is back",
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
                let response = opened.map_err(|_| Status::deadline_exceeded("no answer"))??;
                self.stream.insert(response.into_inner())
            }
        };
        let piece = runtime
            .block_on(stream.message())?
            .ok_or_else(|| Status::unavailable("the stream ended before the run"))?;
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
