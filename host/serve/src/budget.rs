use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tonic::Status;

use crate::call::Calls;

/// The limit on bytes in flight. These are the bytes that a client sent and the server has not decoded yet,
/// and the bytes of responses that the client has not read yet.
#[derive(Debug)]
pub(crate) struct Budget {
    most: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    used: usize,
    /// All open connections.
    connections: Vec<Weak<Calls>>,
}

/// Bytes that only calls with the control token can use.
const RESERVE: usize = 1 << 20;
/// A client that has read nothing for this long is slow. If the budget is used up, one slow client is
/// disconnected.
const SLOW: Duration = Duration::from_secs(1);

/// Bytes taken from the budget. They are returned when the `Charge` is dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: Arc<Budget>,
    calls: Arc<Calls>,
    bytes: usize,
    may_use_reserve: bool,
}

impl Budget {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            state: Mutex::default(),
        })
    }

    /// Registers a new connection, so that it can be closed if the budget is used up.
    pub(crate) fn join(&self, calls: &Arc<Calls>) {
        let mut state = self.state();
        if state.connections.len() == state.connections.capacity() {
            state.connections.retain(|calls| calls.strong_count() > 0);
        }
        state.connections.push(Arc::downgrade(calls));
    }

    /// Takes bytes for a call.
    ///
    /// # Errors
    /// Returns an error if the budget, or the connection's share of it, is used up. If the budget is used up,
    /// one slow connection is closed. A connection is slow if its client has read nothing for a second. The
    /// slow connection that holds the most bytes is chosen.
    pub(crate) fn charge(
        self: &Arc<Self>,
        calls: &Arc<Calls>,
        bytes: usize,
        may_use_reserve: bool,
    ) -> Result<Charge, Status> {
        let mut charge = Charge {
            budget: Arc::clone(self),
            calls: Arc::clone(calls),
            bytes: 0,
            may_use_reserve,
        };
        charge.grow(bytes)?;
        Ok(charge)
    }

    fn close_the_slowest(connections: &[Weak<Calls>]) {
        let held = |calls: Arc<Calls>| Some((calls.held_by_the_slow(SLOW)?, calls));
        let slowest = connections
            .iter()
            .filter_map(Weak::upgrade)
            .filter_map(held)
            .max_by_key(|(bytes, _)| *bytes);
        if let Some((_, calls)) = slowest {
            calls.close();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each update is atomic, so the data is consistent even after a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Charge {
    /// Takes more bytes.
    ///
    /// # Errors
    /// Returns an error in the same cases as [`Budget::charge`].
    pub(crate) fn grow(&mut self, bytes: usize) -> Result<(), Status> {
        if !self.calls.hold(bytes, self.budget.most / 2) {
            return Err(Status::resource_exhausted(
                "too many bytes in flight on this connection; request less at once",
            ));
        }
        let mut state = self.budget.state();
        let kept = match self.may_use_reserve {
            true => 0,
            false => RESERVE.min(self.budget.most / 4),
        };
        if state.used + bytes > self.budget.most - kept {
            Budget::close_the_slowest(&state.connections);
            drop(state);
            self.calls.let_go(bytes);
            return Err(Status::resource_exhausted(
                "too many bytes in flight on the server; try again later",
            ));
        }
        state.used += bytes;
        self.bytes += bytes;
        Ok(())
    }

    /// Splits off a charge of at most this many bytes. The new charge returns its bytes to the budget
    /// separately.
    pub(crate) fn split(&mut self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self {
            budget: Arc::clone(&self.budget),
            calls: Arc::clone(&self.calls),
            bytes,
            may_use_reserve: self.may_use_reserve,
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.calls.let_go(self.bytes);
        self.budget.state().used -= self.bytes;
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::limits::Limits;

    fn connection(budget: &Budget) -> Arc<Calls> {
        let calls = Calls::new([127, 0, 0, 1].into(), &Limits::default());
        budget.join(&calls);
        calls
    }

    fn refused(result: Result<Charge, Status>) -> bool {
        result.is_err_and(|status| status.code() == Code::ResourceExhausted)
    }

    #[test]
    fn returned_bytes_can_be_taken_again() {
        let budget = Budget::new(1000);
        let [one, two, three] = [(); 3].map(|()| connection(&budget));
        let first = budget.charge(&one, 500, false).expect("room");
        assert!(refused(budget.charge(&one, 1, false)), "its share is half");
        let mut second = budget.charge(&two, 200, false).expect("room");
        assert!(refused(budget.charge(&three, 51, false)), "the reserve");
        let reserved = budget.charge(&three, 300, true).expect("the reserve");
        assert!(refused(budget.charge(&three, 1, true)), "all is used up");
        drop((first, reserved));
        second.grow(300).expect("room");
        let part = second.split(400);
        drop(second);
        assert_eq!(budget.state().used, 400);
        drop(part);
        assert_eq!(budget.state().used, 0);
        assert!(budget.charge(&one, 500, false).is_ok());
    }
}
