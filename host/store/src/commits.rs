use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A handle with which threads wait for commits of this process's writer. `[any]`
#[derive(Clone, Debug)]
pub struct Commits(Arc<(Mutex<State>, Condvar)>);

#[derive(Debug)]
struct State {
    last_seq: u64,
    settled: u64,
    closed: bool,
}

impl Commits {
    pub(crate) fn new(last_seq: u64) -> Self {
        let state = State {
            last_seq,
            settled: 0,
            closed: false,
        };
        Self(Arc::new((Mutex::new(state), Condvar::new())))
    }

    /// Returns the sequence number of the last committed event; 0 before the first.
    pub fn last_seq(&self) -> u64 {
        self.state().last_seq
    }

    /// Whether the writer has ended, so that no more events follow.
    pub fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Waits until one of the following: an event after `seq` is committed; the writer has ended; `timeout`
    /// has passed. Returns the sequence number of the last committed event.
    pub fn wait_beyond(&self, seq: u64, timeout: Duration) -> u64 {
        self.wait_while(timeout, |state| state.last_seq <= seq)
            .last_seq
    }

    /// Waits until the first `count` events of the queue are settled. An event is settled when it is
    /// committed, or when it is dropped because the disk failed for too long. Returns false if the writer
    /// ends, or `timeout` passes, before all of them are settled.
    pub fn wait_settled(&self, count: u64, timeout: Duration) -> bool {
        self.wait_while(timeout, |state| state.settled < count)
            .settled
            >= count
    }

    fn wait_while(
        &self,
        timeout: Duration,
        pending: impl Fn(&State) -> bool,
    ) -> MutexGuard<'_, State> {
        let (state, _) = self
            .0
            .1
            .wait_timeout_while(self.state(), timeout, |state| {
                !state.closed && pending(state)
            })
            .unwrap_or_else(PoisonError::into_inner);
        state
    }

    pub(crate) fn advance(&self, last_seq: u64, settled: u64) {
        let mut state = self.state();
        (state.last_seq, state.settled) = (last_seq, settled);
        drop(state);
        self.0.1.notify_all();
    }

    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.0.1.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock, so the state is consistent.
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_at_a_commit_at_the_end_or_at_the_timeout() {
        let commits = Commits::new(3);
        let long = Duration::from_secs(600);
        assert_eq!(commits.wait_beyond(2, long), 3);
        assert_eq!(commits.wait_beyond(3, Duration::ZERO), 3);

        let waiting = |seq| {
            let commits = commits.clone();
            std::thread::Builder::new()
                .spawn(move || commits.wait_beyond(seq, long))
                .expect("a thread")
        };
        let waiter = waiting(4);
        commits.advance(4, 1);
        commits.advance(5, 2);
        assert_eq!(waiter.join().expect("no panic"), 5);
        assert!(commits.wait_settled(2, long));
        assert!(!commits.wait_settled(3, Duration::ZERO));

        let waiter = waiting(5);
        commits.close();
        assert_eq!(waiter.join().expect("no panic"), 5);
        assert!(commits.is_closed());
        assert!(!commits.wait_settled(3, long), "it will not come");
    }
}
