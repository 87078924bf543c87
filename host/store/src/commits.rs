use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How far the writer of this process has committed, for those who wait for more. `[any]`
#[derive(Clone, Debug)]
pub struct Commits(Arc<(Mutex<State>, Condvar)>);

#[derive(Debug)]
struct State {
    last_seq: u64,
    closed: bool,
}

impl Commits {
    pub(crate) fn new(last_seq: u64) -> Self {
        let state = State {
            last_seq,
            closed: false,
        };
        Self(Arc::new((Mutex::new(state), Condvar::new())))
    }

    /// The sequence number of the last committed event; 0 before the first.
    pub fn last_seq(&self) -> u64 {
        self.state().last_seq
    }

    /// Whether the writer has ended, so that nothing more will come.
    pub fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Waits until an event beyond `seq` is committed, the writer has ended, or `timeout` is over;
    /// returns the last committed sequence number.
    pub fn wait_beyond(&self, seq: u64, timeout: Duration) -> u64 {
        let until = Instant::now() + timeout;
        let mut state = self.state();
        while state.last_seq <= seq && !state.closed {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            (state, _) = self
                .0
                .1
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.last_seq
    }

    pub(crate) fn advance(&self, last_seq: u64) {
        self.state().last_seq = last_seq;
        self.0.1.notify_all();
    }

    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.0.1.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock.
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_wakes_at_a_commit_at_the_end_and_in_time() {
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
        commits.advance(4);
        commits.advance(5);
        assert_eq!(waiter.join().expect("no panic"), 5);

        let waiter = waiting(5);
        commits.close();
        assert_eq!(waiter.join().expect("no panic"), 5);
        assert!(commits.is_closed());
    }
}
