use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tonic::Status;

/// The calls of one connection: how many are open, and how fast they come.
#[derive(Debug)]
pub(crate) struct Calls {
    rate: f64,
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

impl Calls {
    /// None yet. `rate` is how many may begin in a second.
    pub(crate) fn new(rate: u32) -> Arc<Self> {
        let now = Instant::now();
        let rate = f64::from(rate);
        Arc::new(Self {
            rate,
            state: Mutex::new(State {
                open: 0,
                allowance: rate * BURST_SECS,
                filled: now,
                quiet_since: now,
            }),
        })
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

    /// How long no call has been open; none while one is.
    pub(crate) fn quiet_for(&self) -> Option<Duration> {
        let state = self.state();
        (state.open == 0).then(|| state.quiet_since.elapsed())
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

    #[test]
    fn a_burst_is_allowed_and_a_flood_is_not() {
        // So slow that nothing is gained while the test runs.
        let calls = Calls::new(1);
        let burst: Vec<_> = (0..2).map(|_| Calls::begin(&calls)).collect();
        assert!(burst.iter().all(Result::is_ok));
        let refused = Calls::begin(&calls).map(drop).expect_err("refused");
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    }

    #[test]
    fn a_connection_is_quiet_when_its_last_call_has_ended() {
        let calls = Calls::new(100);
        assert!(calls.quiet_for().is_some());
        let one = Calls::begin(&calls).expect("begun");
        let also_one = one.clone();
        drop(one);
        assert_eq!(calls.quiet_for(), None);
        drop(also_one);
        assert!(calls.quiet_for().is_some());
    }
}
