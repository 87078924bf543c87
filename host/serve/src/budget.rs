use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tonic::Status;

use crate::call::Calls;

/// The bytes that all requests and answers on their way may take together: those that a client sent
/// and the server has not understood yet, and those that the server made and the client has not taken.
#[derive(Debug)]
pub(crate) struct Budget {
    most: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    used: usize,
    /// Every connection that ever asked for some, as long as it is there.
    connections: Vec<Weak<Calls>>,
}

/// The last bytes are for those who show the control token.
const RESERVE: usize = 1 << 20;
/// A client that has taken nothing for this long makes room when the budget is used up.
const SLOW: Duration = Duration::from_secs(1);

/// Bytes of the budget, given back when this is dropped.
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

    /// Whoever is behind a new connection may be asked to make room.
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
    /// The budget is used up, or the connection's part of it is. The connection that has held most for
    /// longer than a second without taking anything is closed then.
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
        // What it holds is whole at every moment, whoever panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Charge {
    /// Takes more.
    ///
    /// # Errors
    /// As [`Budget::charge`].
    pub(crate) fn grow(&mut self, bytes: usize) -> Result<(), Status> {
        if !self.calls.hold(bytes, self.budget.most / 2) {
            return Err(Status::resource_exhausted(
                "this connection has too much on its way already; ask for less at once",
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
                "the server has too much on its way already; try again later",
            ));
        }
        state.used += bytes;
        self.bytes += bytes;
        Ok(())
    }

    /// A part of it, to be given back by itself.
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
    fn what_is_given_back_can_be_taken_again() {
        let budget = Budget::new(1000);
        let [one, two, three] = [(); 3].map(|()| connection(&budget));
        let first = budget.charge(&one, 500, false).expect("room");
        assert!(refused(budget.charge(&one, 1, false)), "half is its part");
        let mut second = budget.charge(&two, 200, false).expect("room");
        assert!(refused(budget.charge(&three, 51, false)), "the reserve");
        let reserved = budget.charge(&three, 300, true).expect("the reserve");
        assert!(refused(budget.charge(&three, 1, true)), "there is no more");
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
