//! What the server tells of the run, on threads of their own: its events, and histories when asked.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use host_core::{Error, ErrorKind, Event, Result};
use host_serve::{Client, WatchEnd};
use host_store::{Delivery, RunStatus, Series};

use super::Message;
use crate::runs::target::Target;

/// Waits between attempts to connect again.
const RETRY: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(250)..=Duration::from_secs(5);
/// How often a run that has ended is looked at again.
const AGAIN: Duration = Duration::from_secs(1);
/// Points of a history that are asked for: more than any terminal has columns.
const POINTS: u32 = 1000;
/// Histories that wait to be read.
const WAITING: usize = 16;

/// What the server told.
pub(super) enum News {
    /// The connection stands.
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
    /// The connection broke; it is tried again.
    Lost { reason: String, tries: u32 },
    /// There are no more events.
    Ended(WatchEnd),
    /// The server will not go on.
    Refused(String),
}

/// The dashboard is gone.
struct Closed;

/// Follows a run's events.
pub(super) struct Feed {
    /// Shared with whoever reads on when the events have ended: it may have a server in it.
    pub(super) target: Arc<Mutex<Target>>,
    pub(super) run: String,
    /// The last event seen.
    pub(super) cursor: u64,
    pub(super) messages: SyncSender<Message>,
}

impl Feed {
    /// Follows the run, with this connection first, on a thread of its own, which ends with the dashboard:
    /// a run that has ended may be resumed.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub(super) fn start(self, client: Client, address: String) -> Result<()> {
        let follow = move || {
            // A closed channel is the dashboard's end: there is nobody to tell.
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

    /// The run is over, and so is the server of its own process. What the user named by its name is read
    /// from its folder from now on. Returns the client that reads it.
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

    /// Waits until the run goes on, as after `host resume`, and connects to it.
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

    /// Tells the events of one connection, until it or the run ends.
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
            // An older server has no ledger: the events tell it from here on.
            if let Ok(entries) = client.deliveries(&self.run) {
                self.tell(News::Deliveries(entries))?;
            }
        }
        // A broken connection is told, and tried again by the caller.
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
    /// Reads a run's histories on a thread of its own, which ends with this.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub(super) fn start(run: String, messages: SyncSender<Message>) -> Result<Self> {
        let (sender, receiver): (_, Receiver<(Arc<Client>, String)>) = sync_channel(WAITING);
        spawn("histories", move || {
            for (client, metric) in receiver {
                // What could not be read is asked for again when the connection stands anew.
                if let Ok(points) = client.history(&run, &metric, POINTS)
                    && messages.send(Message::History { metric, points }).is_err()
                {
                    return;
                }
            }
        })?;
        Ok(Self(sender))
    }

    /// Asks for a metric's history; false if too many are waited for.
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
