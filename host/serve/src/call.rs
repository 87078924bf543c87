use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use tonic::Status;

use crate::limits::Limits;

/// Keeps track of the calls of one connection: how many are open, how fast new ones may start, and how much
/// of the server's budget for bytes in flight they hold.
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
    /// Number of calls that can start immediately. It grows at the permitted rate, up to the number that is
    /// permitted in two seconds.
    allowance: f64,
    filled: Instant,
    /// When the last call ended. If there was no call yet: when the connection was opened.
    quiet_since: Instant,
    /// Bytes of the budget that the connection holds.
    held: usize,
    /// Responses that the client has not read completely, by their number.
    answers: HashMap<u64, Waiting>,
    answers_ever: u64,
    /// Deadline for sending the control token, if the connection belongs to the reserve for clients with that
    /// token.
    prove_by: Option<Instant>,
    closed: bool,
    /// Wakes the connection's task when the connection is closed.
    waker: Option<Waker>,
}

/// A response that the client has not read completely.
#[derive(Debug)]
struct Waiting {
    /// Bytes that were produced but not sent.
    bytes: usize,
    /// When the client last read a chunk. Before the first read: when the first chunk became available.
    since: Instant,
    is_stream: bool,
}

/// An open call. The call ends when the last clone is dropped.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// Ends the call on drop.
    _end: Arc<CallEnd>,
}

#[derive(Debug)]
struct CallEnd(Arc<Calls>);

/// A connection can start as many calls at once as are permitted in this many seconds.
const BURST_SECS: f64 = 2.0;
/// How long a connection of the reserve may take to send the control token.
const PROOF: Duration = Duration::from_secs(2);

/// Why the server ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The connection had no open call for too long.
    Idle,
    /// The client did not read a response in time, or the connection was closed to free resources.
    Cut,
}

impl Calls {
    /// Creates the state of a new connection from this peer.
    pub(crate) fn new(peer: IpAddr, limits: &Limits) -> Arc<Self> {
        Arc::new(Self::of(peer, limits, None))
    }

    /// Creates the state of a new connection of the reserve.
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

    /// Returns the client's address.
    pub(crate) fn peer(&self) -> IpAddr {
        self.peer
    }

    /// Starts a call.
    ///
    /// # Errors
    /// Returns an error if too many calls were started in a short time.
    pub(crate) fn begin(calls: &Arc<Self>) -> Result<Call, Status> {
        let mut state = calls.state();
        let now = Instant::now();
        let gained = (now - state.filled).as_secs_f64() * calls.rate;
        state.allowance = (state.allowance + gained).min(calls.rate * BURST_SECS);
        state.filled = now;
        if state.allowance < 1.0 {
            return Err(Status::resource_exhausted(format!(
                "more than {} calls per second on one connection",
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

    /// Whether the connection must still send the control token.
    pub(crate) fn must_prove(&self) -> bool {
        self.state().prove_by.is_some()
    }

    /// Records that the connection has sent the control token.
    pub(crate) fn prove(&self) {
        self.state().prove_by = None;
    }

    /// Adds bytes of the budget to this connection. Returns `false`, without adding them, if the connection
    /// would hold more than `most` bytes.
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

    /// Registers a new response and returns its number.
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

    /// Records that this many bytes of a response were produced for the client.
    pub(crate) fn made(&self, answer: u64, bytes: usize) {
        if let Some(waiting) = self.state().answers.get_mut(&answer) {
            if waiting.bytes == 0 {
                waiting.since = Instant::now();
            }
            waiting.bytes += bytes;
        }
    }

    /// Records that this many bytes of a response were sent.
    pub(crate) fn taken(&self, answer: u64, bytes: usize) {
        if let Some(waiting) = self.state().answers.get_mut(&answer) {
            waiting.bytes -= bytes;
            waiting.since = Instant::now();
        }
    }

    /// Removes a completed response.
    pub(crate) fn answered(&self, answer: u64) {
        self.state().answers.remove(&answer);
    }

    /// If the client has left a response unread for `patience`, returns the number of bytes of the budget
    /// that the connection holds.
    pub(crate) fn held_by_the_slow(&self, patience: Duration) -> Option<usize> {
        let state = self.state();
        let mut answers = state.answers.values();
        let is_slow = answers.any(|one| one.bytes > 0 && one.since.elapsed() >= patience);
        (is_slow && !state.closed).then_some(state.held)
    }

    /// Closes the connection. This returns its bytes to the budget.
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

    /// If the connection must end now, returns how it ends. Otherwise returns the time of the next check, as
    /// an `Err`. `waker` is woken when the connection is closed.
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
        // A response that becomes available after this check has the full time limit, so it cannot be overdue
        // before `now + self.unread`.
        let next = [cut_at, idle_at, state.prove_by, Some(now + self.unread)];
        Err(next.into_iter().flatten().min().unwrap_or(now + self.idle))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each update is atomic, so the data is consistent even after a panic.
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
        // The rate is so low that no further call is permitted during the test.
        let calls = calls(|limits| limits.calls_per_second = 1);
        let burst: Vec<_> = (0..2).map(|_| Calls::begin(&calls)).collect();
        assert!(burst.iter().all(Result::is_ok));
        let refused = Calls::begin(&calls).map(drop).expect_err("refused");
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    }

    #[test]
    fn a_connection_is_idle_after_its_last_call() {
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
    fn an_unread_response_ends_the_connection_and_a_stream_does_not() {
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
    fn a_connection_of_the_reserve_must_send_the_token() {
        let calls = Calls::in_reserve([127, 0, 0, 1].into(), &Limits::default());
        assert!(calls.must_prove());
        let until = calls.look(Waker::noop()).expect_err("it has some time");
        assert!(until <= Instant::now() + PROOF);
        calls.prove();
        assert!(!calls.must_prove());
    }
}
