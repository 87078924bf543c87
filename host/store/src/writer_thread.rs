use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use host_core::{Draft, Error, ErrorKind, Event, EventBody, Result, Step};

use crate::{Commits, Writer};

/// The least time between commits, and so the longest that an event waits for one.
const COMMIT_EVERY: Duration = Duration::from_millis(10);
/// How long after an event the writer sleeps between looks at the queue; then it waits at the queue, so
/// that the first event after a pause is committed at once.
const BUSY_FOR: Duration = Duration::from_millis(50);
/// Events of a look from which on it does not sleep: the queue would fill meanwhile.
const NAP_BELOW: u64 = 512;
/// Most events of a commit; bounds the memory and the time of one.
const COMMIT_AT_MOST: usize = 8192;
/// Metric events kept while the disk refuses. Beyond, they are counted and let go, for the loop must
/// not wait for a disk for ever.
const METRICS_KEPT: usize = 65_536;
/// The same for events of other kinds, which are few.
const EVENTS_KEPT: usize = 2 * METRICS_KEPT;
/// Waits between attempts while the disk refuses.
const RETRY: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(50)..=Duration::from_secs(2);
/// How long the last commit is tried when nothing more comes.
const LAST_ATTEMPTS: Duration = Duration::from_secs(5);

/// See [`Callbacks::on_commit`].
pub type OnCommit = Box<dyn FnMut(&[Event]) + Send>;
/// See [`Callbacks::on_failure`].
pub type OnFailure = Box<dyn FnMut(&Error) + Send>;

/// Who hears of what the writer does. Both are called on the writer's thread, so they must be quick,
/// and must not wait for an emitter of the same queue.
pub struct Callbacks {
    /// Called with the events of a commit, after it.
    pub on_commit: OnCommit,
    /// Called when a commit fails for the first time, and again when events must be let go.
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

/// The thread that empties the queue of events into the store.
#[derive(Debug)]
pub struct WriterThread {
    thread: JoinHandle<Result<()>>,
    commits: Commits,
}

impl Writer {
    /// Gives the writer a thread of its own, which commits what comes out of the queue at most 10 ms
    /// apart, and ends when every emitter is gone.
    ///
    /// While the disk refuses, it goes on emptying the queue, so that the training does not stand
    /// still, and tries again; what it cannot keep is counted, told to `on_failure` and to `join`, and
    /// recorded as a warning once the disk accepts again.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub fn spawn(self, drafts: Receiver<Draft>, callbacks: Callbacks) -> Result<WriterThread> {
        let commits = Commits::new(self.last_seq());
        let shared = commits.clone();
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || {
                // Closed however the thread ends, and after the run's lock is free.
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
    /// How far the writer has come.
    pub fn commits(&self) -> Commits {
        self.commits.clone()
    }

    /// Waits until every emitter is gone and everything is committed.
    ///
    /// # Errors
    /// If events were lost, and why.
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

/// The events on their way into the file.
struct Log {
    writer: Writer,
    callbacks: Callbacks,
    commits: Commits,
    /// Not yet committed; their sequence numbers follow the writer's last.
    pending: Vec<Event>,
    /// Events that came out of the queue.
    taken: u64,
    committed_at: Option<Instant>,
    /// When the queue was last looked at, and how many events that brought.
    looked_at: Instant,
    brought: u64,
    /// Until when events are expected to go on coming.
    busy_until: Option<Instant>,
    failing: Option<Failing>,
    /// Whether the first of `pending` says that the disk refused.
    has_warning: bool,
    /// Events let go since the last commit, and ever, and why the last of them was.
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
                // What has come by now goes along.
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

    /// Notes how many events a look at the queue brought.
    fn looked(&mut self, events: u64) {
        self.looked_at = Instant::now();
        self.brought = events;
        if events > 0 {
            self.busy_until = Some(self.looked_at + BUSY_FOR);
        }
    }

    /// Until when to sleep rather than to wait at the queue. Who emits must wake one that waits, which
    /// takes longer than all else of the call; so while events come, the queue is looked at between
    /// commits. Not while it fills quickly, nor while the disk refuses: then it must be emptied.
    fn nap_ends(&self) -> Option<Instant> {
        let is_busy = self.busy_until.is_some_and(|until| self.looked_at < until);
        let naps = is_busy && self.brought < NAP_BELOW && self.failing.is_none();
        naps.then(|| self.looked_at + COMMIT_EVERY)
    }

    /// When to commit; never if there is nothing to. The first event after a pause is committed at
    /// once.
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
                    "the run store cannot be written to, and events are being lost: {}",
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
                // Who waits for events to settle finds them shown.
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

    /// Puts a refusal on record, for when the disk accepts again: before the events that waited, of which
    /// the run's end may be one.
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

    /// Puts what was lost on record, in the place where it is missing.
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

    /// Commits what is left, and says whether all went well.
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
    fn everything_that_is_emitted_is_committed_in_order_and_then_told() {
        let dir = tempfile::tempdir().expect("a folder");
        let (emitter, drafts) = Emitter::new(8);
        // One message a commit, and no more commits than events.
        let (told, committed) = sync_channel(1000);
        let path = dir.path().to_owned();
        let callbacks = Callbacks {
            on_commit: Box::new(move |events: &[Event]| {
                let last = events.last().expect("never empty").seq;
                let reader = Reader::open(&path).expect("readable");
                assert!(reader.last_seq().expect("readable") >= last);
                told.send(events.iter().map(|e| e.seq).collect::<Vec<_>>())
                    .expect("somebody listens");
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
    fn while_the_file_cannot_be_written_the_queue_is_emptied_and_nothing_is_lost() {
        for journal in [Journal::Automatic, Journal::Rollback] {
            let dir = tempfile::tempdir().expect("a folder");
            let writer = Writer::create_with(dir.path(), &record(), journal).expect("a run");
            let (emitter, drafts) = Emitter::new(4);
            let (told, failures) = sync_channel(8);
            let callbacks = Callbacks {
                on_failure: Box::new(move |e| told.send(e.to_string()).expect("listened to")),
                ..Callbacks::default()
            };
            let blocker = rusqlite::Connection::open(dir.path().join(FILE)).expect("the file");
            blocker.execute_batch("BEGIN IMMEDIATE").expect("the lock");
            let thread = writer.spawn(drafts, callbacks).expect("a thread");
            // Far more than the queue holds: this ends only if somebody empties it.
            (1..=500).for_each(|n| emitter.emit(Step(n), metrics(&[("a", 1.0)])));
            let failure = failures.recv().expect("told");
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
            // What was told is on record, too, once.
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
    fn a_full_disk_is_reported_at_the_end_and_leaves_what_was_committed_whole() {
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
    fn what_cannot_be_kept_is_counted_and_put_on_record() {
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
