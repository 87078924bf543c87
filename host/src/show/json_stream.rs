//! Writes a run's events to stdout, to be read by programs. Each event is one line of JSON. The events are in
//! order, without gaps.
//!
//! A separate thread reads the events from the store and writes them. A slow reader blocks only this thread:
//! unwritten events stay on disk, and at most one page is in memory.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use host_core::{Error, ErrorKind, Event, Result};
use host_store::{Commits, Reader};
use serde_json::Value;

use crate::show::event_json::event_json;
use crate::show::{outlet, printable};

/// Events per page.
const PAGE: usize = 1024;
/// How long the store can be unreadable before the stream ends.
const UNREADABLE: Duration = Duration::from_secs(5);
/// How long a run waits at its end for a reader that accepts no data. After a signal, it waits only
/// [`SHORT_PATIENCE`], because a kill can follow.
const PATIENCE: Duration = Duration::from_secs(60);
const SHORT_PATIENCE: Duration = Duration::from_secs(3);
/// How long a run waits for the reader before it tells the user about the wait.
const QUIET: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_millis(50);

/// The thread that writes the events.
pub(crate) struct JsonStream {
    ended: Receiver<Result<()>>,
    state: Arc<State>,
    run: String,
}

#[derive(Default)]
struct State {
    /// Number of writes to stdout so far. A long line needs several writes.
    pieces: AtomicU64,
    /// The sequence number of the last event that was written completely.
    cursor: AtomicU64,
}

impl JsonStream {
    /// Starts to write `first`, and then every event committed from now on. `run` is the argument with which
    /// other commands find the run.
    ///
    /// # Errors
    /// Returns an error if stdout cannot be duplicated or the thread cannot be started.
    pub(crate) fn start(
        first: Value,
        run_dir: PathBuf,
        run: String,
        commits: Commits,
    ) -> Result<Self> {
        let refused = |e| Error::new(ErrorKind::System, format!("cannot write to stdout: {e}"));
        let out = outlet::stdout().map_err(refused)?;
        let state = Arc::<State>::default();
        state.cursor.store(commits.last_seq(), Ordering::SeqCst);
        let shared = Arc::clone(&state);
        let (tell, ended): (SyncSender<Result<()>>, _) = sync_channel(1);
        let work = move || {
            let stream = Stream {
                out,
                run_dir,
                commits,
                state: shared,
            };
            // Sending fails if `finish` has given up waiting.
            let _ = tell.send(stream.follow(&first));
        };
        std::thread::Builder::new()
            .name("json".to_owned())
            .spawn(work)
            .map_err(refused)?;
        Ok(Self { ended, state, run })
    }

    /// Must be called after the store was closed. Waits until the last event is written. `is_hurried` returns
    /// true once a signal has arrived.
    ///
    /// # Errors
    /// Returns an error if events are missing on stdout, because stdout was not read for too long or a write
    /// failed.
    pub(crate) fn finish(
        self,
        is_hurried: &dyn Fn() -> bool,
        say: &mut dyn FnMut(&str),
    ) -> Result<()> {
        let (mut pieces, mut moved) = (self.pieces(), Instant::now());
        let mut is_told = false;
        loop {
            match self.ended.recv_timeout(TICK) {
                Ok(outcome) => return outcome.map_err(|error| self.missing(error.message())),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(self.missing("the thread that writes to stdout has ended"));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.pieces() != pieces {
                (pieces, moved) = (self.pieces(), Instant::now());
            }
            let patience = match is_hurried() {
                true => SHORT_PATIENCE,
                false => PATIENCE,
            };
            let waited = moved.elapsed();
            if waited >= patience {
                let why = format!("it was not read for {} s", waited.as_secs());
                return Err(self.missing(&why));
            }
            if waited >= QUIET && !std::mem::replace(&mut is_told, true) {
                say(&format!(
                    "waiting up to {} s for stdout to be read",
                    patience.as_secs()
                ));
            }
        }
    }

    fn pieces(&self) -> u64 {
        self.state.pieces.load(Ordering::SeqCst)
    }

    fn missing(&self, why: &str) -> Error {
        let (cursor, run) = (self.state.cursor.load(Ordering::SeqCst), &self.run);
        let message = format!("events after {cursor} are missing on stdout: {why}");
        Error::new(ErrorKind::System, message).hint(format!(
            "`host watch {run} --json --after {cursor}` prints them"
        ))
    }
}

/// The state of the thread.
struct Stream {
    out: File,
    run_dir: PathBuf,
    commits: Commits,
    state: Arc<State>,
}

impl Stream {
    fn follow(self, first: &Value) -> Result<()> {
        if !self.write(&line(first))? {
            return Ok(());
        }
        let mut reader = None;
        let mut unreadable: Option<Instant> = None;
        loop {
            let cursor = self.state.cursor.load(Ordering::SeqCst);
            // The flag must be read before the page: if the store is closed by then, an empty page means that
            // no event is left.
            let is_closed = self.commits.is_closed();
            let page = match self.page(&mut reader, cursor) {
                Ok(page) => page,
                Err(error) => {
                    if unreadable.get_or_insert_with(Instant::now).elapsed() >= UNREADABLE {
                        return Err(error);
                    }
                    reader = None;
                    std::thread::sleep(TICK);
                    continue;
                }
            };
            unreadable = None;
            let Some(last) = page.last() else {
                if is_closed {
                    return Ok(());
                }
                self.commits.wait_beyond(cursor, Duration::from_secs(1));
                continue;
            };
            let text: String = page.iter().map(|event| line(&event_json(event))).collect();
            if !self.write(&text)? {
                return Ok(());
            }
            self.state.cursor.store(last.seq, Ordering::SeqCst);
        }
    }

    fn page(&self, reader: &mut Option<Reader>, cursor: u64) -> Result<Vec<Event>> {
        let reader = match reader {
            Some(reader) => reader,
            none => none.insert(Reader::open(&self.run_dir)?),
        };
        reader.events_after(cursor, PAGE)
    }

    /// Writes text. Returns false if the pipe is closed, as with `| head`, which is not an error.
    fn write(&self, text: &str) -> Result<bool> {
        let went = || {
            self.state.pieces.fetch_add(1, Ordering::SeqCst);
        };
        match outlet::write(self.out.as_fd(), text.as_bytes(), &went) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(e) => Err(Error::new(
                ErrorKind::System,
                format!("cannot write to it: {e}"),
            )),
        }
    }
}

/// Formats a value as a line.
fn line(value: &Value) -> String {
    printable::json(&format!("{value}\n"))
}
