use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use host_core::{Draft, Error, ErrorKind, Event, EventBody, Result, Step};

use crate::{Commits, Writer};

/// Minimum time between commits. It is also the maximum time that an event waits for a commit.
const COMMIT_EVERY: Duration = Duration::from_millis(10);
/// How long the writer polls the queue after an event. After that it blocks on the queue, so that the first
/// event after a pause is committed at once.
const BUSY_FOR: Duration = Duration::from_millis(50);
/// If a poll returns at least this many events, the writer does not sleep before the next poll, since the
/// queue would fill up during the sleep.
const NAP_BELOW: u64 = 512;
/// Maximum events per commit; bounds a commit's memory and time.
const COMMIT_AT_MOST: usize = 8192;
/// Maximum number of metric events kept while the disk fails. Further events are counted and dropped, since
/// the training loop must not wait for a disk forever.
const METRICS_KEPT: usize = 65_536;
/// An event without metrics is dropped only if this many events of all kinds are kept. Such events are rare.
const EVENTS_KEPT: usize = 2 * METRICS_KEPT;
/// The shortest and the longest wait between attempts while the disk fails.
const RETRY: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(50)..=Duration::from_secs(2);
/// How long the last commit is retried after every emitter was dropped.
const LAST_ATTEMPTS: Duration = Duration::from_secs(5);

/// See [`Callbacks::on_commit`].
pub type OnCommit = Box<dyn FnMut(&[Event]) + Send>;
/// See [`Callbacks::on_failure`].
pub type OnFailure = Box<dyn FnMut(&Error) + Send>;

/// Callbacks of the writer. Both are called on the writer's thread, so they must be quick and must not wait
/// for an emitter of the same queue.
pub struct Callbacks {
    /// Called after a commit, with its events.
    pub on_commit: OnCommit,
    /// Called when commits begin to fail, and again when the first event is dropped before a commit succeeds.
    /// Later failures are reported in the same way.
    pub on_failure: OnFailure,
}

impl Default for Callbacks {
    fn default() -> Self {
        Self {
            on_commit: Box::new(|_| {}),
            on_failure: Box::new(|_| {}),
        }
    }
}

impl std::fmt::Debug for Callbacks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Callbacks").finish_non_exhaustive()
    }
}

/// The thread that moves events from the queue to the store.
#[derive(Debug)]
pub struct WriterThread {
    thread: JoinHandle<Result<()>>,
    commits: Commits,
}

impl Writer {
    /// Moves the writer to its own thread, which commits each event within 10 ms and ends when every emitter
    /// is dropped.
    ///
    /// While the disk fails, the thread retries. It also keeps emptying the queue, so that training does not
    /// block. Events that it cannot keep are counted. This loss is reported to `on_failure` and by `join`.
    /// When the disk works again, the loss is recorded as a warning.
    ///
    /// # Errors
    /// Returns an error if the system cannot start a thread.
    pub fn spawn(self, drafts: Receiver<Draft>, callbacks: Callbacks) -> Result<WriterThread> {
        let commits = Commits::new(self.last_seq());
        let shared = commits.clone();
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || {
                // Closes `shared` when the thread ends, even by a panic, but only after the run's lock is
                // released.
                let _closing = Closing(shared.clone());
                let mut log = Log::new(self, callbacks, shared);
                log.run(&drafts);
                log.finish()
            })
            .map_err(|e| Error::new(ErrorKind::System, format!("cannot start a thread: {e}")))?;
        Ok(WriterThread { thread, commits })
    }
}

impl WriterThread {
    /// Returns a handle with which threads wait for the writer's commits.
    pub fn commits(&self) -> Commits {
        self.commits.clone()
    }

    /// Waits until every emitter is dropped and everything is committed.
    ///
    /// # Errors
    /// Returns an error with the reason if events were lost.
    pub fn join(self) -> Result<()> {
        self.thread.join().unwrap_or_else(|panic| {
            let why = panic
                .downcast_ref::<&str>()
                .map(|why| (*why).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_default();
            Err(Error::new(
                ErrorKind::System,
                format!("the store's writer panicked: {why}"),
            ))
        })
    }
}

struct Closing(Commits);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The events between the queue and the file.
struct Log {
    writer: Writer,
    callbacks: Callbacks,
    commits: Commits,
    /// Events that are not committed yet. Their sequence numbers continue after `writer.last_seq()`.
    pending: Vec<Event>,
    /// Number of events received from the queue.
    taken: u64,
    committed_at: Option<Instant>,
    /// When the queue was last checked, and how many events it had.
    looked_at: Instant,
    brought: u64,
    /// The time until which more events are expected.
    busy_until: Option<Instant>,
    failing: Option<Failing>,
    /// Whether the first of `pending` is a warning about a failed commit.
    has_warning: bool,
    /// The number of events dropped since the last commit, the number dropped in total, and the last error.
    lost: u64,
    lost_ever: u64,
    last_error: Option<Error>,
}

struct Failing {
    retry_at: Instant,
    wait: Duration,
    full: bool,
}

impl Log {
    fn new(writer: Writer, callbacks: Callbacks, commits: Commits) -> Self {
        Self {
            writer,
            callbacks,
            commits,
            pending: Vec::new(),
            taken: 0,
            committed_at: None,
            looked_at: Instant::now(),
            brought: 0,
            busy_until: None,
            failing: None,
            has_warning: false,
            lost: 0,
            lost_ever: 0,
            last_error: None,
        }
    }

    fn run(&mut self, drafts: &Receiver<Draft>) {
        loop {
            let next = match (self.nap_ends(), self.commit_due()) {
                (Some(end), _) => {
                    std::thread::sleep(end.saturating_duration_since(Instant::now()));
                    drafts.try_recv().map_err(|e| match e {
                        TryRecvError::Empty => RecvTimeoutError::Timeout,
                        TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
                    })
                }
                (None, None) => drafts.recv().map_err(|_| RecvTimeoutError::Disconnected),
                (None, Some(due)) => {
                    drafts.recv_timeout(due.saturating_duration_since(Instant::now()))
                }
            };
            let before = self.taken;
            match next {
                Ok(draft) => self.take(draft),
                Err(RecvTimeoutError::Timeout) if self.pending.is_empty() => {}
                Err(RecvTimeoutError::Timeout) => self.commit(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let full = self.failing.is_none() && self.pending.len() >= COMMIT_AT_MOST;
            if full || self.commit_due().is_some_and(|due| due <= Instant::now()) {
                // Events that have arrived by now join this commit.
                while self.pending.len() < COMMIT_AT_MOST
                    && let Ok(draft) = drafts.try_recv()
                {
                    self.take(draft);
                }
                self.commit();
            }
            self.looked(self.taken - before);
        }
    }

    /// Records how many events a check of the queue returned.
    fn looked(&mut self, events: u64) {
        self.looked_at = Instant::now();
        self.brought = events;
        if events > 0 {
            self.busy_until = Some(self.looked_at + BUSY_FOR);
        }
    }

    /// Returns when to wake up from a sleep; `None` for no sleep. While events arrive, the thread sleeps
    /// between commits instead of blocking on the queue. An emitter would have to wake a blocked thread, and
    /// that takes longer than the rest of the emitter's call. The thread does not sleep while the queue
    /// fills quickly or the disk fails, because it must then empty the queue.
    fn nap_ends(&self) -> Option<Instant> {
        let is_busy = self.busy_until.is_some_and(|until| self.looked_at < until);
        let naps = is_busy && self.brought < NAP_BELOW && self.failing.is_none();
        naps.then(|| self.looked_at + COMMIT_EVERY)
    }

    /// Returns the time of the next commit; `None` if there is nothing to commit. The first event after a
    /// pause is committed at once.
    fn commit_due(&self) -> Option<Instant> {
        match &self.failing {
            Some(failing) => Some(failing.retry_at),
            None if self.pending.is_empty() => None,
            None => Some(match self.committed_at {
                Some(at) => at + COMMIT_EVERY,
                None => Instant::now(),
            }),
        }
    }

    fn take(&mut self, draft: Draft) {
        self.taken += 1;
        let room = match draft.body {
            EventBody::Metrics { .. } => METRICS_KEPT,
            _ => EVENTS_KEPT,
        };
        if self.pending.len() < room {
            self.push(draft);
        } else {
            self.let_go();
        }
    }

    fn push(&mut self, draft: Draft) {
        self.pending.push(Event {
            seq: self.writer.last_seq() + self.pending.len() as u64 + 1,
            time_us: draft.time_us,
            step: draft.step,
            body: draft.body,
        });
    }

    fn let_go(&mut self) {
        self.lost += 1;
        self.lost_ever += 1;
        if let Some(failing) = &mut self.failing
            && !std::mem::replace(&mut failing.full, true)
        {
            let error = Error::new(
                ErrorKind::System,
                format!(
                    "the run store cannot be written to, so events are being lost: {}",
                    self.writer.path().display()
                ),
            )
            .hint("free some disk space; training continues meanwhile");
            (self.callbacks.on_failure)(&error);
        }
    }

    fn commit(&mut self) {
        if self.lost > 0 && self.pending.len() < EVENTS_KEPT {
            self.record_loss();
        }
        match self.writer.commit(&self.pending) {
            Ok(()) => {
                self.failing = None;
                self.committed_at = Some(Instant::now());
                // The callback precedes the announcement of the commit: threads that wait for the commit
                // expect the callback to be done.
                (self.callbacks.on_commit)(&self.pending);
                self.commits.advance(self.writer.last_seq(), self.taken);
                self.pending.clear();
                self.has_warning = false;
            }
            Err(error) => {
                let wait = match &self.failing {
                    Some(failing) => (failing.wait * 2).min(*RETRY.end()),
                    None => {
                        (self.callbacks.on_failure)(&error);
                        self.record_refusal(&error);
                        *RETRY.start()
                    }
                };
                self.last_error = Some(error);
                self.failing = Some(Failing {
                    retry_at: Instant::now() + wait,
                    wait,
                    full: self.failing.as_ref().is_some_and(|failing| failing.full),
                });
            }
        }
    }

    /// Adds a warning about the failure. The warning is committed when the disk works again. It precedes the
    /// pending events, since one of them can be the run's end.
    fn record_refusal(&mut self, error: &Error) {
        let Some(first) = self.pending.first() else {
            return;
        };
        let message = format!("the run store could not be written to for a while: {error}");
        let warning = Event {
            body: EventBody::Warning { message },
            ..first.clone()
        };
        self.pending.iter_mut().for_each(|event| event.seq += 1);
        self.pending.insert(0, warning);
        self.has_warning = true;
    }

    /// Records the loss at the place where events are missing.
    fn record_loss(&mut self) {
        let (time_us, step) = self
            .pending
            .last()
            .map_or((0, Step(0)), |event| (event.time_us, event.step));
        let message = format!(
            "the run store could not be written to; {} events were lost",
            std::mem::take(&mut self.lost)
        );
        self.push(Draft {
            time_us,
            step,
            body: EventBody::Warning { message },
        });
    }

    /// Commits the remaining events. Returns an error if events were lost.
    fn finish(mut self) -> Result<()> {
        let until = Instant::now() + LAST_ATTEMPTS;
        while !self.pending.is_empty() {
            self.commit();
            let now = Instant::now();
            match &self.failing {
                Some(_) if now >= until => break,
                Some(failing) => {
                    std::thread::sleep(failing.retry_at.min(until).saturating_duration_since(now));
                }
                None => {}
            }
        }
        let left = self.pending.len() - usize::from(self.has_warning);
        let lost = self.lost_ever + left as u64;
        match self.last_error {
            Some(error) if lost > 0 => {
                let message = format!("{lost} events were lost: {}", error.message());
                let lost = Error::new(error.kind(), message);
                Err(match error.hint_text() {
                    Some(hint) => lost.hint(hint),
                    None => lost,
                })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use host_core::Emitter;

    use super::*;
    use crate::tests::{metrics, record};
    use crate::{FILE, Journal, Reader};

    fn writer(dir: &std::path::Path) -> Writer {
        Writer::create(dir, &record()).expect("a run")
    }

    #[test]
    fn emitted_events_are_committed_in_order_and_then_reported() {
        let dir = tempfile::tempdir().expect("a folder");
        let (emitter, drafts) = Emitter::new(8);
        // The channel has room for one message per commit, because 1000 events need at most 1000 commits.
        let (told, committed) = sync_channel(1000);
        let path = dir.path().to_owned();
        let callbacks = Callbacks {
            on_commit: Box::new(move |events: &[Event]| {
                let last = events.last().expect("never empty").seq;
                let reader = Reader::open(&path).expect("readable");
                assert!(reader.last_seq().expect("readable") >= last);
                told.send(events.iter().map(|e| e.seq).collect::<Vec<_>>())
                    .expect("a receiver");
            }),
            ..Callbacks::default()
        };
        let thread = writer(dir.path())
            .spawn(drafts, callbacks)
            .expect("a thread");
        let commits = thread.commits();
        let other = emitter.clone();
        let second = std::thread::Builder::new()
            .spawn(move || (0..500).for_each(|n| other.emit(Step(n), metrics(&[("b", 1.0)]))))
            .expect("a thread");
        (0..500).for_each(|n| emitter.emit(Step(n), metrics(&[("a", 1.0)])));
        second.join().expect("no panic");
        assert_eq!(commits.wait_beyond(999, Duration::from_secs(60)), 1000);
        drop(emitter);
        thread.join().expect("all is written");
        assert!(commits.is_closed());
        let seqs: Vec<u64> = committed.iter().flatten().collect();
        assert_eq!(seqs, (1..=1000).collect::<Vec<_>>());
    }

    #[test]
    fn the_queue_is_emptied_and_nothing_is_lost_while_the_file_is_locked() {
        for journal in [Journal::Automatic, Journal::Rollback] {
            let dir = tempfile::tempdir().expect("a folder");
            let writer = Writer::create_with(dir.path(), &record(), journal).expect("a run");
            let (emitter, drafts) = Emitter::new(4);
            let (told, failures) = sync_channel(8);
            let callbacks = Callbacks {
                on_failure: Box::new(move |e| told.send(e.to_string()).expect("a receiver")),
                ..Callbacks::default()
            };
            let blocker = rusqlite::Connection::open(dir.path().join(FILE)).expect("the file");
            blocker.execute_batch("BEGIN IMMEDIATE").expect("the lock");
            let thread = writer.spawn(drafts, callbacks).expect("a thread");
            // Emits far more events than the queue holds, so the loop ends only if the writer empties the
            // queue.
            (1..=500).for_each(|n| emitter.emit(Step(n), metrics(&[("a", 1.0)])));
            let failure = failures.recv().expect("a failure");
            assert!(
                failure.starts_with("cannot write to the run store"),
                "{failure}"
            );
            blocker.execute_batch("ROLLBACK").expect("free");
            drop(emitter);
            thread.join().expect("nothing is lost");
            let events = Reader::open(dir.path())
                .and_then(|reader| reader.events_after(0, 1000))
                .expect("readable");
            let is_warning = |event: &&Event| matches!(event.body, EventBody::Warning { .. });
            let steps = events.iter().filter(|event| !is_warning(event));
            let steps: Vec<u64> = steps.map(|event| event.step.0).collect();
            assert_eq!(steps, (1..=500).collect::<Vec<_>>());
            // The reported failure is also recorded, exactly once.
            let warnings: Vec<&Event> = events.iter().filter(is_warning).collect();
            let [warning] = warnings[..] else {
                panic!("{warnings:?}");
            };
            let EventBody::Warning { message } = &warning.body else {
                panic!("{warning:?}");
            };
            assert!(message.ends_with(&failure), "{message}");
            let seqs: Vec<u64> = events.iter().map(|event| event.seq).collect();
            assert_eq!(seqs, (1..=501).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_full_disk_is_reported_at_the_end_and_committed_events_stay_readable() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut writer = writer(dir.path());
        writer
            .append(
                (1..=10)
                    .map(|n| crate::tests::draft(n, metrics(&[("a", 1.0)])))
                    .collect(),
            )
            .expect("room");
        writer.limit_pages(1);
        let (emitter, drafts) = Emitter::new(4);
        let thread = writer
            .spawn(drafts, Callbacks::default())
            .expect("a thread");
        (0..3000).for_each(|n| emitter.emit(Step(n), metrics(&[("a", 2.0)])));
        drop(emitter);
        let error = thread.join().expect_err("the disk is full");
        let reader = Reader::open(dir.path()).expect("readable");
        let last = reader.last_seq().expect("readable");
        let lost = format!("{} events were lost: cannot write", 3010 - last);
        assert!(error.message().starts_with(&lost), "{error}");
        assert_eq!(error.hint_text(), Some("free some disk space"));
        let events = reader.events_after(0, 4000).expect("readable");
        assert_eq!(events.last().expect("events").seq, last);
    }

    #[test]
    fn dropped_events_are_counted_and_recorded() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut log = Log::new(writer(dir.path()), Callbacks::default(), Commits::new(0));
        for n in 0..METRICS_KEPT as u64 + 7 {
            log.take(crate::tests::draft(n, metrics(&[("a", 1.0)])));
        }
        log.take(crate::tests::draft(
            0,
            EventBody::Warning {
                message: "kept".to_owned(),
            },
        ));
        assert_eq!(log.lost, 7);
        log.last_error = Some(Error::new(ErrorKind::System, "full"));
        let error = log.finish().expect_err("lost");
        assert_eq!(error.message(), "7 events were lost: full");
        let reader = Reader::open(dir.path()).expect("readable");
        let last = reader
            .events_after(METRICS_KEPT as u64, 10)
            .expect("readable");
        let warnings: Vec<&EventBody> = last.iter().map(|event| &event.body).collect();
        let warning = |message: &str| EventBody::Warning {
            message: message.to_owned(),
        };
        assert_eq!(
            warnings,
            [
                &warning("kept"),
                &warning("the run store could not be written to; 7 events were lost")
            ]
        );
    }
}
