use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use tonic::Status;

use crate::limits::Limits;

/// The calls of one connection: how many are open, how fast they come, and what they hold.
#[derive(Debug)]
pub(crate) struct Calls {
    peer: IpAddr,
    rate: f64,
    idle: Duration,
    unread: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    open: usize,
    /// Calls that may begin at once: it fills at the rate, up to two seconds' worth.
    allowance: f64,
    filled: Instant,
    /// When the last call ended, or the connection began.
    quiet_since: Instant,
    /// Bytes of the budget.
    held: usize,
    /// The answers that wait for the client, by number.
    answers: HashMap<u64, Waiting>,
    answers_ever: u64,
    /// Until when a connection of the reserve must have shown the control token.
    prove_by: Option<Instant>,
    closed: bool,
    /// Whoever works on the connection, to be woken when it is closed.
    waker: Option<Waker>,
}

/// An answer that the client has not taken yet.
#[derive(Debug)]
struct Waiting {
    /// Bytes that are made and not sent.
    bytes: usize,
    /// When the client took a piece, or the first was there.
    since: Instant,
    is_stream: bool,
}

/// A call that is open, for as long as somebody holds this.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// Its end is what it is held for.
    _end: Arc<CallEnd>,
}

#[derive(Debug)]
struct CallEnd(Arc<Calls>);

/// A connection may begin this many seconds' worth of calls at once.
const BURST_SECS: f64 = 2.0;
/// How long a connection of the reserve may take to show the control token.
const PROOF: Duration = Duration::from_secs(2);

/// How a connection ends by the server's will.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It has had no call for long.
    Idle,
    /// It does not take what it asked for, or makes room for others.
    Cut,
}

impl Calls {
    /// None yet, from this peer.
    pub(crate) fn new(peer: IpAddr, limits: &Limits) -> Arc<Self> {
        Arc::new(Self::of(peer, limits, None))
    }

    /// Of a connection in the reserve.
    pub(crate) fn in_reserve(peer: IpAddr, limits: &Limits) -> Arc<Self> {
        Arc::new(Self::of(peer, limits, Some(Instant::now() + PROOF)))
    }

    fn of(peer: IpAddr, limits: &Limits, prove_by: Option<Instant>) -> Self {
        let now = Instant::now();
        let rate = f64::from(limits.calls_per_second);
        Self {
            peer,
            rate,
            idle: limits.idle,
            unread: limits.unread,
            state: Mutex::new(State {
                open: 0,
                allowance: rate * BURST_SECS,
                filled: now,
                quiet_since: now,
                held: 0,
                answers: HashMap::new(),
                answers_ever: 0,
                prove_by,
                closed: false,
                waker: None,
            }),
        }
    }

    /// Who is at the other end.
    pub(crate) fn peer(&self) -> IpAddr {
        self.peer
    }

    /// A call begins.
    ///
    /// # Errors
    /// Too many began in a short time.
    pub(crate) fn begin(calls: &Arc<Self>) -> Result<Call, Status> {
        let mut state = calls.state();
        let now = Instant::now();
        let gained = (now - state.filled).as_secs_f64() * calls.rate;
        state.allowance = (state.allowance + gained).min(calls.rate * BURST_SECS);
        state.filled = now;
        if state.allowance < 1.0 {
            return Err(Status::resource_exhausted(format!(
                "more than {} calls a second on one connection",
                calls.rate
            )));
        }
        state.allowance -= 1.0;
        state.open += 1;
        drop(state);
        let end = CallEnd(Arc::clone(calls));
        Ok(Call {
            _end: Arc::new(end),
        })
    }

    /// Whether it must show the control token, and has not.
    pub(crate) fn must_prove(&self) -> bool {
        self.state().prove_by.is_some()
    }

    /// It has shown the control token.
    pub(crate) fn prove(&self) {
        self.state().prove_by = None;
    }

    /// Counts bytes of the budget that it holds; false if that would be more than `most`.
    pub(crate) fn hold(&self, bytes: usize, most: usize) -> bool {
        let mut state = self.state();
        let fits = state.held + bytes <= most;
        if fits {
            state.held += bytes;
        }
        fits
    }

    pub(crate) fn let_go(&self, bytes: usize) {
        self.state().held -= bytes;
    }

    /// The number of a new answer, of which nothing waits yet.
    pub(crate) fn answer(&self, is_stream: bool) -> u64 {
        let mut state = self.state();
        state.answers_ever += 1;
        let number = state.answers_ever;
        let waiting = Waiting {
            bytes: 0,
            since: Instant::now(),
            is_stream,
        };
        state.answers.insert(number, waiting);
        number
    }

    /// So many bytes of an answer are there for the client.
    pub(crate) fn made(&self, answer: u64, bytes: usize) {
        if let Some(waiting) = self.state().answers.get_mut(&answer) {
            if waiting.bytes == 0 {
                waiting.since = Instant::now();
            }
            waiting.bytes += bytes;
        }
    }

    /// So many bytes of an answer are on their way.
    pub(crate) fn taken(&self, answer: u64, bytes: usize) {
        if let Some(waiting) = self.state().answers.get_mut(&answer) {
            waiting.bytes -= bytes;
            waiting.since = Instant::now();
        }
    }

    /// Nothing more comes of an answer.
    pub(crate) fn answered(&self, answer: u64) {
        self.state().answers.remove(&answer);
    }

    /// What it holds, if one of its answers has waited for so long.
    pub(crate) fn held_by_the_slow(&self, patience: Duration) -> Option<usize> {
        let state = self.state();
        let mut answers = state.answers.values();
        let is_slow = answers.any(|one| one.bytes > 0 && one.since.elapsed() >= patience);
        (is_slow && !state.closed).then_some(state.held)
    }

    /// Ends the connection, and with it all that it holds.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        if let Some(waker) = state.waker.take() {
            drop(state);
            waker.wake();
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// How the connection ends now, or when to look again. `waker` is woken when it is closed.
    pub(crate) fn look(&self, waker: &Waker) -> Result<End, Instant> {
        let mut state = self.state();
        if state.closed {
            return Ok(End::Cut);
        }
        match &mut state.waker {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        let now = Instant::now();
        if state.prove_by.is_some_and(|by| by <= now) {
            return Ok(End::Cut);
        }
        let waits = |one: &&Waiting| one.bytes > 0 && !one.is_stream;
        let oldest = state.answers.values().filter(waits).map(|one| one.since);
        let cut_at = oldest.min().map(|since| since + self.unread);
        if cut_at.is_some_and(|at| at <= now) {
            return Ok(End::Cut);
        }
        let idle_at = (state.open == 0).then(|| state.quiet_since + self.idle);
        if idle_at.is_some_and(|at| at <= now) {
            return Ok(End::Idle);
        }
        // What begins to wait from now on has as long as it may.
        let next = [cut_at, idle_at, state.prove_by, Some(now + self.unread)];
        Err(next.into_iter().flatten().min().unwrap_or(now + self.idle))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What it holds is whole at every moment, whoever panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for CallEnd {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.open -= 1;
        state.quiet_since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(change: impl Fn(&mut Limits)) -> Arc<Calls> {
        let mut limits = Limits::default();
        change(&mut limits);
        Calls::new([127, 0, 0, 1].into(), &limits)
    }

    #[test]
    fn a_burst_is_allowed_and_a_flood_is_not() {
        // So slow that nothing is gained while the test runs.
        let calls = calls(|limits| limits.calls_per_second = 1);
        let burst: Vec<_> = (0..2).map(|_| Calls::begin(&calls)).collect();
        assert!(burst.iter().all(Result::is_ok));
        let refused = Calls::begin(&calls).map(drop).expect_err("refused");
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    }

    #[test]
    fn a_connection_is_idle_when_its_last_call_has_ended() {
        let calls = calls(|limits| limits.idle = Duration::ZERO);
        let look = || calls.look(Waker::noop()).ok();
        assert_eq!(look(), Some(End::Idle));
        let one = Calls::begin(&calls).expect("begun");
        let also_one = one.clone();
        drop(one);
        assert_eq!(look(), None);
        drop(also_one);
        assert_eq!(look(), Some(End::Idle));
    }

    #[test]
    fn an_answer_that_waits_ends_the_connection_and_a_stream_does_not() {
        let calls = calls(|limits| limits.unread = Duration::ZERO);
        let look = || calls.look(Waker::noop()).ok();
        let (answer, stream) = (calls.answer(false), calls.answer(true));
        calls.made(stream, 10);
        assert_eq!(look(), None);
        assert!(calls.hold(20, 20) && !calls.hold(1, 20));
        assert_eq!(calls.held_by_the_slow(Duration::ZERO), Some(20));
        calls.made(answer, 10);
        assert_eq!(look(), Some(End::Cut));
        calls.taken(answer, 10);
        assert_eq!(look(), None);
        calls.taken(stream, 10);
        assert_eq!(calls.held_by_the_slow(Duration::ZERO), None);
        calls.close();
        assert_eq!(look(), Some(End::Cut));
    }

    #[test]
    fn a_connection_of_the_reserve_has_to_show_the_token() {
        let calls = Calls::in_reserve([127, 0, 0, 1].into(), &Limits::default());
        assert!(calls.must_prove());
        let until = calls.look(Waker::noop()).expect_err("it has some time");
        assert!(until <= Instant::now() + PROOF);
        calls.prove();
        assert!(!calls.must_prove());
    }
}
