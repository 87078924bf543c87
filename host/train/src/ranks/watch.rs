//! The thread of each rank that tells the others what the rank is doing, notices when one of them fails, and makes
//! all of them end with the same error.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use host_core::{Control, Error, ErrorKind, Result, StopReason};
use rustix::process::{Signal, getpid, kill_process};
use serde::{Deserialize, Serialize};

use super::card::{Card, name};
use super::lifeline::Lifelines;
use crate::torch_shim::Store;

/// The interval at which a rank publishes what it is doing.
const BEAT: Duration = Duration::from_millis(500);
/// After a collective failed, how long the other ranks are observed before one of them is declared dead.
const OBSERVATION: Duration = Duration::from_millis(1500);
/// How long the lead waits at the end until the other ranks have left.
const LEAVING: Duration = Duration::from_secs(10);
/// How long a process that is to be killed has to print the reason.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How often the thread looks for a value that its rank waits for.
const POLL: Duration = Duration::from_millis(5);

/// Watches the other ranks. `[any]`
pub(super) struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// The state that the rank's main thread and the watching thread share.
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    rank: usize,
    cards: Vec<Card>,
    /// A rank that gives no sign of life for this time is declared dead.
    limit: Duration,
    /// `address:port` of the store, for messages.
    store: String,
}

struct State {
    /// What the rank is doing.
    phase: Phase,
    /// When the phase began.
    since: Instant,
    /// Number of collectives that the rank has started.
    begun: u64,
    /// The longest phase so far in which the rank was computing.
    longest: Duration,
    /// What to write to the store.
    outbox: VecDeque<Post>,
    /// The key that the rank waits for, and then its value.
    wanted: Option<String>,
    found: Option<Vec<u8>>,
    /// A collective that failed on this rank, and when.
    failed: Option<(String, Instant)>,
    verdict: Option<Verdict>,
    /// The beats of the other ranks: the last one, and when it changed. The lead has those of all ranks, and the
    /// other ranks have the lead's.
    beats: BTreeMap<usize, (Beat, Instant)>,
    measured: Measured,
    /// When the store last answered.
    answered: Instant,
    /// Receives stop requests on the lead; the source of stop requests on the other ranks.
    control: Option<Control>,
    /// Whether the others can see that this rank knows the verdict, or cannot see anything.
    is_ended: bool,
    is_over: bool,
}

/// What the thread writes to the store.
enum Post {
    /// A key and its value.
    Value(String, Vec<u8>),
    /// A verdict, which counts if it is the first.
    Verdict(Verdict),
}

/// What a rank is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    /// Something that may take any time, such as the preparation or a pause.
    Unlimited(String),
    /// Computing. All ranks do this at the same time, so it must not take much longer than on the other ranks.
    Computing(String),
    /// Waiting for the other ranks in a collective.
    Waiting(String),
}

impl Phase {
    fn text(&self) -> &str {
        let (Self::Unlimited(text) | Self::Computing(text) | Self::Waiting(text)) = self;
        text
    }
}

/// Measurements of a rank, for the run's metrics. `None` until the first step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Mean duration of a step since the last report, in seconds.
    pub(crate) step_secs: f64,
    /// Of it, the time in which the rank waited for other ranks.
    pub(crate) wait_secs: f64,
    /// Of it, the time in which the rank waited for data.
    pub(crate) data_wait_secs: f64,
    /// Bytes of main memory that the process uses.
    pub(crate) memory_bytes: f64,
}

/// The sign of life that a rank publishes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Beat {
    number: u64,
    phase: Phase,
    phase_secs: f64,
    begun: u64,
    measured: Measured,
}

impl Beat {
    fn describe(&self) -> String {
        let secs = self.phase_secs as u64;
        format!("{} for {secs} s", self.phase.text())
    }
}

/// Why the ranks end. The first verdict in the store counts, so all ranks end with the same one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Verdict {
    message: String,
    hint: String,
}

impl Verdict {
    fn new(message: String) -> Self {
        Self {
            message,
            hint: "`host run --resume auto` resumes from the newest checkpoint when the launcher restarts the ranks"
                .to_owned(),
        }
    }

    pub(super) fn error(&self) -> Error {
        Error::new(ErrorKind::System, &*self.message).hint(&*self.hint)
    }
}

impl Watch {
    /// Starts the thread. The keys of `store` must be unique to this meeting.
    ///
    /// # Errors
    /// Returns an error if the thread cannot be started.
    pub(super) fn start(
        store: Store,
        lifelines: Lifelines,
        address: String,
        rank: usize,
        cards: Vec<Card>,
        limit: Duration,
    ) -> Result<Self> {
        let now = Instant::now();
        // A rank that dies before its first sign of life is noticed, too.
        let unseen = Beat {
            number: 0,
            phase: Phase::Unlimited("connecting".to_owned()),
            phase_secs: 0.0,
            begun: 0,
            measured: Measured::default(),
        };
        let watched = watched_by(rank, cards.len());
        let beats = watched.map(|rank| (rank, (unseen.clone(), now))).collect();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                phase: Phase::Unlimited("preparing".to_owned()),
                since: now,
                begun: 0,
                longest: Duration::ZERO,
                outbox: VecDeque::new(),
                wanted: None,
                found: None,
                failed: None,
                verdict: None,
                beats,
                measured: Measured::default(),
                answered: now,
                control: None,
                is_ended: false,
                is_over: false,
            }),
            changed: Condvar::new(),
            rank,
            cards,
            limit,
            store: address,
        });
        let thread = {
            let shared = Arc::clone(&shared);
            thread::Builder::new()
                .name("ranks".to_owned())
                .spawn(move || Watcher::new(shared, store, lifelines).run())
                .map_err(|e| Error::new(ErrorKind::System, format!("cannot start a thread: {e}")))?
        };
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Records what the rank is doing now. Returns how long it did what it was doing before.
    pub(super) fn phase(&self, phase: Phase) -> Duration {
        let mut state = self.shared.lock();
        let took = state.since.elapsed();
        if matches!(state.phase, Phase::Computing(_)) {
            state.longest = state.longest.max(took);
        }
        if matches!(phase, Phase::Waiting(_)) {
            state.begun += 1;
        }
        state.phase = phase;
        state.since = Instant::now();
        took
    }

    pub(super) fn measured(&self, measured: Measured) {
        self.shared.lock().measured = measured;
    }

    /// Returns the other ranks' measurements, by rank. Complete only on the lead.
    pub(super) fn others(&self) -> BTreeMap<usize, Measured> {
        let state = self.shared.lock();
        let beats = state.beats.iter();
        beats
            .map(|(&rank, (beat, _))| (rank, beat.measured))
            .collect()
    }

    /// On the lead, stop requests of the other ranks are made through `control` from now on. On another rank, stop
    /// requests that `control` receives are passed to the lead.
    pub(super) fn join_stops(&self, control: Control) {
        self.shared.lock().control = Some(control);
    }

    /// Returns the error with which all ranks end, if there is one.
    pub(super) fn verdict(&self) -> Option<Error> {
        let state = self.shared.lock();
        if let Some(verdict) = &state.verdict {
            return Some(verdict.error());
        }
        let silence = state.answered.elapsed();
        (silence > self.shared.limit && !state.is_over)
            .then(|| self.shared.no_store(silence).error())
    }

    /// Finds out why a collective failed. Returns the error with which all ranks end.
    pub(super) fn blame(&self, operation: &str) -> Error {
        self.shared.lock().failed = Some((operation.to_owned(), Instant::now()));
        self.shared.changed.notify_all();
        self.wait_until(|state| state.verdict.clone().map(|verdict| verdict.error()))
    }

    /// Publishes a value for the other ranks.
    pub(super) fn publish(&self, key: String, value: Vec<u8>) {
        self.post(Post::Value(key, value));
    }

    /// Waits for a value that another rank publishes. There is no time limit while all ranks live.
    ///
    /// # Errors
    /// Returns an error if a rank fails.
    pub(super) fn wanted(&self, key: String) -> Result<Vec<u8>> {
        let mut state = self.shared.lock();
        state.wanted = Some(key);
        state.found = None;
        drop(state);
        self.shared.changed.notify_all();
        self.wait_until(|state| match (state.found.take(), &state.verdict) {
            (Some(value), _) => Some(Ok(value)),
            (None, Some(verdict)) => Some(Err(verdict.error())),
            (None, None) => None,
        })
    }

    /// Tells the other ranks that this one fails with `error`. Waits, for a short time, until the store has the
    /// message. If this process serves the store, also waits until the other ranks have read it.
    pub(super) fn fail(&self, error: &Error, serves: bool) {
        let message = format!(
            "{} failed: {}",
            name(&self.shared.cards, self.shared.rank),
            error.message()
        );
        let mut verdict = Verdict::new(message);
        if let Some(hint) = error.hint_text() {
            verdict.hint = hint.to_owned();
        }
        self.post(Post::Verdict(verdict));
        let patience = Duration::from_secs(if serves { 3 } else { 1 });
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            let state = self.shared.lock();
            if state.is_over {
                break;
            }
            let is_dead = |at: &Instant| at.elapsed() > OBSERVATION;
            let mut beats = state.beats.values();
            let is_read = !serves || beats.all(|(beat, at)| beat.phase == ended() || is_dead(at));
            if state.is_ended && is_read {
                break;
            }
            drop(state);
            thread::sleep(POLL);
        }
    }

    fn post(&self, post: Post) {
        self.shared.lock().outbox.push_back(post);
        self.shared.changed.notify_all();
    }

    /// Ends the watch after the ranks' last exchange. From now on, the end of another rank is not an error. The lead
    /// waits for the others, because they lose the store with it.
    pub(super) fn leave(&self) {
        let Shared { rank, cards, .. } = &*self.shared;
        self.publish(left_key(*rank), b"1".to_vec());
        let deadline = Instant::now() + LEAVING;
        let others = watched_by(*rank, cards.len()).filter(|_| *rank == 0);
        for rank in others {
            let mut state = self.shared.lock();
            state.wanted = Some(left_key(rank));
            state.found = None;
            drop(state);
            self.shared.changed.notify_all();
            let has_left = || {
                let state = self.shared.lock();
                state.found.is_some() || state.verdict.is_some()
            };
            while !has_left() && Instant::now() < deadline {
                thread::sleep(POLL);
            }
        }
        self.shared.lock().is_over = true;
        self.shared.changed.notify_all();
    }

    /// Ends the thread.
    fn end(&mut self) {
        self.shared.lock().is_over = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A thread that waits for an unreachable store does not end.
            let deadline = Instant::now() + Duration::from_secs(1);
            while !thread.is_finished() && Instant::now() < deadline {
                thread::sleep(POLL);
            }
            if thread.is_finished() {
                let _ = thread.join();
            }
        }
    }

    /// Waits until `found` returns a value. If the store does not answer, the wait ends with its error.
    fn wait_until<T: FromError>(&self, mut found: impl FnMut(&mut State) -> Option<T>) -> T {
        let mut state = self.shared.lock();
        loop {
            if let Some(value) = found(&mut state) {
                return value;
            }
            let silence = state.answered.elapsed();
            if silence > self.shared.limit {
                return T::from_error(self.shared.no_store(silence).error());
            }
            let slice = Duration::from_millis(100);
            let (next, _) = self
                .shared
                .changed
                .wait_timeout(state, slice)
                .unwrap_or_else(PoisonError::into_inner);
            state = next;
        }
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.end();
    }
}

/// A result of waiting, which can be an error.
trait FromError {
    fn from_error(error: Error) -> Self;
}

impl FromError for Error {
    fn from_error(error: Error) -> Self {
        error
    }
}

impl<T> FromError for Result<T> {
    fn from_error(error: Error) -> Self {
        Err(error)
    }
}

/// The key of the verdict.
const VERDICT: &str = "verdict";

/// The last phase of a rank that knows the verdict.
fn ended() -> Phase {
    Phase::Unlimited("ending".to_owned())
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn no_store(&self, silence: Duration) -> Verdict {
        Verdict::new(format!(
            "the store at {}, on the machine of rank 0 ({}), has not answered for {} s: the machine or the network is down",
            self.store,
            self.cards[0].host,
            silence.as_secs()
        ))
    }
}

/// The watching thread. It alone uses the store, because a call can block.
struct Watcher {
    shared: Arc<Shared>,
    store: Store,
    lifelines: Lifelines,
    beats: u64,
    beaten: Option<Instant>,
    /// The beats of all ranks when the failure of a collective was noticed.
    suspects: Option<Vec<Option<Beat>>>,
    /// When this rank learned the verdict.
    ended: Option<Instant>,
}

impl Watcher {
    fn new(shared: Arc<Shared>, store: Store, lifelines: Lifelines) -> Self {
        Self {
            shared,
            store,
            lifelines,
            beats: 0,
            beaten: None,
            suspects: None,
            ended: None,
        }
    }

    fn run(mut self) {
        loop {
            match self.turn() {
                Ok(true) => {}
                Ok(false) => return,
                Err(_) => {
                    let shared = Arc::clone(&self.shared);
                    let mut state = shared.lock();
                    if !state.is_over {
                        let message = format!(
                            "the store at {} is gone, and with it rank 0 ({})",
                            shared.store, shared.cards[0].host
                        );
                        state.verdict.get_or_insert(Verdict::new(message));
                    }
                    // No other rank can read a message.
                    state.is_ended = true;
                    shared.changed.notify_all();
                    return;
                }
            }
        }
    }

    /// Does what is due, then waits. Returns false at the end.
    fn turn(&mut self) -> Result<bool> {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        let outbox: Vec<_> = state.outbox.drain(..).collect();
        let (wanted, is_over) = (state.wanted.clone(), state.is_over);
        let failed = state.failed.clone();
        drop(state);
        for post in outbox {
            match post {
                Post::Value(key, value) => self.store.set(&key, &value)?,
                Post::Verdict(verdict) => self.conclude(verdict)?,
            }
        }
        if is_over {
            return Ok(false);
        }
        if let Some(key) = &wanted
            && let Some(value) = self.store.get(key)?
        {
            let mut state = shared.lock();
            state.wanted = None;
            state.found = Some(value);
            shared.changed.notify_all();
        }
        if self.beaten.is_none_or(|beaten| beaten.elapsed() >= BEAT) {
            self.beaten = Some(Instant::now());
            self.beat()?;
        }
        for rank in self.lifelines.lost() {
            // A rank that has left ends its process.
            if self.store.get(&left_key(rank))?.is_none() {
                self.conclude(Verdict::new(shared.death(rank)))?;
                // At the end, no rank waits for it.
                shared.lock().beats.remove(&rank);
            }
        }
        if let Some((operation, at)) = failed {
            self.investigate(&operation, at)?;
        }
        self.end_if_stuck();
        let mut state = shared.lock();
        state.answered = Instant::now();
        let is_urgent = state.wanted.is_some() && state.found.is_none();
        let pause = match is_urgent || state.failed.is_some() && state.verdict.is_none() {
            true => POLL,
            false => BEAT.saturating_sub(self.beaten.map_or(BEAT, |beaten| beaten.elapsed())),
        };
        if state.outbox.is_empty() && !state.is_over {
            let _ = shared
                .changed
                .wait_timeout(state, pause.max(Duration::from_millis(1)))
                .unwrap_or_else(PoisonError::into_inner);
        }
        Ok(true)
    }

    /// Publishes a sign of life, and reads those of the others.
    fn beat(&mut self) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        self.beats += 1;
        let state = shared.lock();
        let phase = match &state.verdict {
            Some(_) => ended(),
            None => state.phase.clone(),
        };
        let own = Beat {
            number: self.beats,
            phase,
            phase_secs: state.since.elapsed().as_secs_f64(),
            begun: state.begun,
            measured: state.measured,
        };
        let control = state.control.clone();
        drop(state);
        let json = serde_json::to_vec(&own).unwrap_or_default();
        self.store.set(&beat_key(shared.rank), &json)?;
        shared.lock().is_ended = own.phase == ended();
        if let Some(verdict) = self.store.get(VERDICT)? {
            self.accept(&verdict);
        }
        for rank in watched_by(shared.rank, shared.cards.len()) {
            let Some(beat) = self.read_beat(rank)? else {
                continue;
            };
            let mut state = shared.lock();
            // A rank that is known to be dead has been removed.
            if let Some(known) = state.beats.get_mut(&rank)
                && known.0.number != beat.number
            {
                *known = (beat, Instant::now());
            }
        }
        if let Some(control) = control {
            self.join_stops(&control)?;
        }
        match self.shared.accused() {
            Some(message) => self.conclude(Verdict::new(message)),
            None => Ok(()),
        }
    }

    /// Passes stop requests from any rank to the lead.
    fn join_stops(&self, control: &Control) -> Result<()> {
        if self.shared.rank > 0 {
            return match control.stop_requested() {
                Some(reason) => {
                    let json = serde_json::to_vec(&reason).unwrap_or_default();
                    self.store.set(STOP, &json)
                }
                None => Ok(()),
            };
        }
        if let Some(json) = self.store.get(STOP)?
            && let Ok(reason) = serde_json::from_slice::<StopReason>(&json)
        {
            control.stop(reason);
        }
        Ok(())
    }

    /// Makes this the verdict, unless there is one.
    fn conclude(&mut self, verdict: Verdict) -> Result<()> {
        let json = serde_json::to_vec(&verdict).unwrap_or_default();
        let first = self.store.set_first(VERDICT, &json)?;
        self.accept(&first);
        Ok(())
    }

    /// Tells this rank the verdict, and the others at once that it knows it.
    fn accept(&mut self, verdict: &[u8]) {
        let verdict = serde_json::from_slice(verdict)
            .unwrap_or_else(|_| Verdict::new("another rank failed".to_owned()));
        let mut state = self.shared.lock();
        if state.verdict.is_none() {
            state.verdict = Some(verdict);
            self.beaten = None;
        }
        self.shared.changed.notify_all();
    }

    /// Decides which rank is to blame for the failure of a collective.
    fn investigate(&mut self, operation: &str, at: Instant) -> Result<()> {
        if self.shared.lock().verdict.is_some() {
            return Ok(());
        }
        let ranks = 0..self.shared.cards.len();
        let read = |watcher: &Self| -> Result<Vec<Option<Beat>>> {
            ranks.clone().map(|rank| watcher.read_beat(rank)).collect()
        };
        let Some(before) = &self.suspects else {
            self.suspects = Some(read(self)?);
            return Ok(());
        };
        if at.elapsed() < OBSERVATION {
            return Ok(());
        }
        let now = read(self)?;
        let cards = &self.shared.cards;
        let number = |beat: &Option<Beat>| beat.as_ref().map(|beat| beat.number);
        let mut message = String::new();
        for rank in ranks.clone().filter(|&rank| rank != self.shared.rank) {
            if number(&before[rank]) == number(&now[rank]) {
                let last = now[rank]
                    .as_ref()
                    .map_or("preparing".to_owned(), Beat::describe);
                let _ = write!(
                    message,
                    "{}{} died during or before {operation}; it was last seen in: {last}",
                    if message.is_empty() { "" } else { "; " },
                    name(cards, rank),
                );
            }
        }
        if message.is_empty() {
            let behind = ranks.min_by_key(|&rank| now[rank].as_ref().map_or(0, |beat| beat.begun));
            let behind = behind.unwrap_or(0);
            let what = now[behind]
                .as_ref()
                .map_or_else(String::new, Beat::describe);
            message = format!(
                "the ranks lost their connection during {operation}; {} is in: {what}",
                name(cards, behind)
            );
        }
        self.conclude(Verdict::new(message))
    }

    /// Kills this process if it computes for longer than the limit after the verdict, for example in an operation on
    /// a GPU that waits for a dead rank. Nothing else can end such an operation.
    fn end_if_stuck(&mut self) {
        let state = self.shared.lock();
        let (Some(verdict), Phase::Computing(phase)) = (&state.verdict, &state.phase) else {
            self.ended = None;
            return;
        };
        let ended = *self.ended.get_or_insert_with(Instant::now);
        if ended.elapsed() < self.shared.limit.max(3 * state.longest) {
            return;
        }
        let text = format!(
            "error: {}; this rank is killed, because it is still in: {phase}",
            verdict.message
        );
        drop(state);
        // A stuck terminal does not keep the process alive.
        let last_words = thread::Builder::new().name("last words".to_owned());
        let _ = last_words.spawn(move || eprintln!("{text}"));
        thread::sleep(LAST_WORDS);
        let _ = kill_process(getpid(), Signal::KILL);
    }

    fn read_beat(&self, rank: usize) -> Result<Option<Beat>> {
        let value = self.store.get(&beat_key(rank))?;
        Ok(value.and_then(|value| serde_json::from_slice(&value).ok()))
    }
}

/// Returns the ranks that a rank watches: the lead watches all others, and the others watch the lead.
fn watched_by(rank: usize, size: usize) -> Range<usize> {
    match rank {
        0 => 1..size,
        _ => 0..1,
    }
}

/// The key of a stop request.
const STOP: &str = "stop";

fn left_key(rank: usize) -> String {
    format!("left/{rank}")
}

fn beat_key(rank: usize) -> String {
    format!("beat/{rank}")
}

impl Shared {
    /// Returns a message about a rank whose process has ended.
    fn death(&self, rank: usize) -> String {
        let state = self.lock();
        let operation = match &state.phase {
            Phase::Waiting(operation) => format!(" during or before {operation}"),
            _ => String::new(),
        };
        let last = state.beats.get(&rank);
        format!(
            "{} died{operation}; it was last seen in: {}",
            name(&self.cards, rank),
            last.map_or_else(|| "preparing".to_owned(), |(beat, _)| beat.describe())
        )
    }

    /// Returns why a rank that this one observes must be dead or stuck.
    fn accused(&self) -> Option<String> {
        let state = self.lock();
        if state.verdict.is_some() || state.is_over {
            return None;
        }
        // Steps can be longer than the limit, so a rank may take longer than it if steps do.
        let patience = self.limit.max(3 * state.longest);
        let waits = matches!(state.phase, Phase::Waiting(_)) && state.since.elapsed() > patience;
        for (&rank, (beat, at)) in &state.beats {
            let who = name(&self.cards, rank);
            if at.elapsed() > self.limit {
                return Some(format!(
                    "{who} has given no sign of life for {} s; it was last seen in: {}",
                    at.elapsed().as_secs(),
                    beat.describe()
                ));
            }
            let is_stuck = matches!(beat.phase, Phase::Computing(_))
                && beat.phase_secs > patience.as_secs_f64();
            if waits && is_stuck && beat.begun < state.begun {
                return Some(format!(
                    "{who} did not join {}; it is in: {}",
                    state.phase.text(),
                    beat.describe()
                ));
            }
        }
        None
    }
}
