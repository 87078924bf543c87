//! Reads the run's events and the requested histories from the server, on separate threads.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use host_core::{Error, ErrorKind, Event, Result};
use host_serve::{Client, WatchEnd};
use host_store::{Delivery, RunStatus, Series};

use super::Message;
use crate::runs::target::Target;

/// Minimum and maximum wait between attempts to reconnect.
const RETRY: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(250)..=Duration::from_secs(5);
/// How often to check whether a run that has ended was resumed.
const AGAIN: Duration = Duration::from_secs(1);
/// Number of points to request per history. No terminal has as many columns.
const POINTS: u32 = 1000;
/// Maximum number of queued requests for histories.
const WAITING: usize = 16;

/// News from the server.
pub(super) enum News {
    /// The connection is established.
    Connected {
        client: Arc<Client>,
        address: String,
    },
    /// The metrics so far.
    Series(Vec<Series>),
    /// The delivery ledger so far.
    Deliveries(Vec<Delivery>),
    /// The next event.
    Event(Event),
    /// The connection broke and will be retried.
    Lost { reason: String, tries: u32 },
    /// There are no more events.
    Ended(WatchEnd),
    /// The server refused to continue.
    Refused(String),
}

/// The dashboard has ended.
struct Closed;

/// Follows a run's events.
pub(super) struct Feed {
    /// Shared with the dashboard. If the target owns a server in this process, histories are read from that
    /// server even after the last event.
    pub(super) target: Arc<Mutex<Target>>,
    pub(super) run: String,
    /// The sequence number of the last event received.
    pub(super) cursor: u64,
    pub(super) messages: SyncSender<Message>,
}

impl Feed {
    /// Starts a thread that follows the run, at first over this connection. The thread runs until the
    /// dashboard ends. It does not stop at the end of the run, because the run can be resumed.
    ///
    /// # Errors
    /// Returns an error if the thread cannot be started.
    pub(super) fn start(self, client: Client, address: String) -> Result<()> {
        let follow = move || {
            // Fails only if the dashboard has ended and has closed the channel.
            let _ = self.follow(client, address);
        };
        spawn("watch", follow)
    }

    fn follow(mut self, client: Client, address: String) -> std::result::Result<(), Closed> {
        let mut connected = Ok((client, address));
        let mut is_first = true;
        let mut tries = 0;
        let mut wait = *RETRY.start();
        loop {
            let before = self.cursor;
            let outcome = match connected {
                Ok((client, address)) => {
                    let client = Arc::new(client);
                    self.connected(&client, address)?;
                    let outcome = self.watch(&client, std::mem::take(&mut is_first))?;
                    outcome.map(|end| (end, client))
                }
                Err(error) => Err(error),
            };
            if self.cursor > before {
                (tries, wait) = (0, *RETRY.start());
            }
            match outcome {
                Ok((end, client)) => {
                    let client = self.ended(end, client)?;
                    connected = self.resumed(client);
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::Config => {
                    return self.tell(News::Refused(error.message().to_owned()));
                }
                Err(error) => {
                    tries += 1;
                    let reason = error.message().to_owned();
                    self.tell(News::Lost { reason, tries })?;
                    std::thread::sleep(wait);
                    wait = (wait * 2).min(*RETRY.end());
                }
            }
            connected = self.target().connect();
        }
    }

    /// Handles the end of the run. If the user named the run and not a server, the run is read from its
    /// folder from now on, because the server in the run's process has ended too. Returns the client for
    /// further reads.
    fn ended(
        &self,
        end: WatchEnd,
        client: Arc<Client>,
    ) -> std::result::Result<Arc<Client>, Closed> {
        let mut client = client;
        let again = {
            let mut target = self.target();
            target.name().is_some().then(|| target.connect())
        };
        if let Some(Ok((folder, address))) = again {
            client = Arc::new(folder);
            self.connected(&client, address)?;
        }
        self.tell(News::Ended(end))?;
        Ok(client)
    }

    /// Waits until the run continues, for example after `host resume`, and connects to it.
    fn resumed(&self, mut client: Arc<Client>) -> Result<(Client, String)> {
        loop {
            std::thread::sleep(AGAIN);
            let is_live = self.target().is_live();
            match is_live {
                Some(false) => continue,
                Some(true) => return self.target().connect(),
                None => {}
            }
            match client.run(&self.run) {
                Ok(row) if row.status == RunStatus::Running || row.last_seq > self.cursor => {
                    return self.target().connect();
                }
                Ok(_) => {}
                Err(_) => {
                    std::thread::sleep(*RETRY.end());
                    if let Ok((again, _)) = self.target().connect() {
                        client = Arc::new(again);
                    }
                }
            }
        }
    }

    fn target(&self) -> MutexGuard<'_, Target> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connected(&self, client: &Arc<Client>, address: String) -> std::result::Result<(), Closed> {
        self.tell(News::Connected {
            client: Arc::clone(client),
            address,
        })
    }

    /// Sends the events of one connection, until the connection or the run ends.
    fn watch(
        &mut self,
        client: &Client,
        is_first: bool,
    ) -> std::result::Result<Result<WatchEnd>, Closed> {
        if is_first {
            match client.series(&self.run) {
                Ok(series) => self.tell(News::Series(series))?,
                Err(error) => return Ok(Err(error)),
            }
            // An older server provides no ledger. The ledger is then built from the events.
            if let Ok(entries) = client.deliveries(&self.run) {
                self.tell(News::Deliveries(entries))?;
            }
        }
        // The caller reports a broken connection and reconnects.
        let watch = client.watch(&self.run, self.cursor, true);
        let mut watch = watch.patience(Duration::ZERO);
        for event in &mut watch {
            match event {
                Ok(event) => {
                    self.cursor = event.seq;
                    self.tell(News::Event(event))?;
                }
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(watch.end().unwrap_or(WatchEnd::CaughtUp)))
    }

    fn tell(&self, news: News) -> std::result::Result<(), Closed> {
        self.messages.send(Message::News(news)).map_err(|_| Closed)
    }
}

/// Reads histories, one after another.
pub(super) struct Histories(SyncSender<(Arc<Client>, String)>);

impl Histories {
    /// Starts a thread that reads a run's histories. The thread ends when the returned value is dropped.
    ///
    /// # Errors
    /// Returns an error if the thread cannot be started.
    pub(super) fn start(run: String, messages: SyncSender<Message>) -> Result<Self> {
        let (sender, receiver): (_, Receiver<(Arc<Client>, String)>) = sync_channel(WAITING);
        spawn("histories", move || {
            for (client, metric) in receiver {
                // A history that cannot be read is requested again after a reconnect.
                if let Ok(points) = client.history(&run, &metric, POINTS)
                    && messages.send(Message::History { metric, points }).is_err()
                {
                    return;
                }
            }
        })?;
        Ok(Self(sender))
    }

    /// Requests a metric's history. Returns false if the queue is full.
    pub(super) fn ask(&self, client: &Arc<Client>, metric: &str) -> bool {
        self.0
            .try_send((Arc::clone(client), metric.to_owned()))
            .is_ok()
    }
}

pub(super) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work);
    thread.map(|_| ()).map_err(|e| {
        Error::new(
            ErrorKind::System,
            format!("cannot start the thread {name}: {e}"),
        )
    })
}
