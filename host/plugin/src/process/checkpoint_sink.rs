use std::borrow::Cow;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use host_core::{CheckpointSink, Fetch, Fetched, Preflight, Publish, Receipt, Result, SinkError};

use super::child::{Child, secs};
use super::protocol::{Call, Reply, SinkCall};
use super::remote::{CallError, Remote};
use crate::checkpoint_sink::absolute;

/// How long a sink may take to react to a cancellation before its process is killed.
const GRACE: Duration = Duration::from_secs(3);

/// A sink in a child process.
#[derive(Debug)]
pub(crate) struct RemoteCheckpointSink {
    remote: Remote,
    /// Number of cancellable calls so far.
    calls: u64,
    cancellation: Arc<Cancellation>,
}

/// The state that the sink shares with the code that cancels its calls.
#[derive(Debug, Default)]
struct Cancellation(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The control connection to the child. `None` without a child, for example after the sink is dropped.
    control: Option<Arc<UnixStream>>,
    /// The number of the call in progress. Between calls, the number of the last call.
    call: u64,
    is_calling: bool,
    /// When the call in progress was cancelled.
    cancelled: Option<Instant>,
}

impl RemoteCheckpointSink {
    pub(crate) fn new(remote: Remote) -> Self {
        let sink = Self {
            remote,
            calls: 0,
            cancellation: Arc::default(),
        };
        sink.connect();
        sink
    }

    /// Connects the cancellation to the current child.
    fn connect(&self) {
        self.cancellation.lock().control = self.remote.child().map(Child::control);
    }

    fn exchange(&mut self, call: &Call<'_>) -> Result<Reply, CallError> {
        let cancellation = Arc::clone(&self.cancellation);
        let interrupt = || cancellation.overdue();
        if self.remote.revive(&interrupt)? {
            self.connect();
            if self.cancellation.lock().cancelled.is_some() {
                return Ok(Reply::Undelivered(SinkError::Cancelled));
            }
        }
        self.remote.call(call, &[], &interrupt)
    }

    /// Makes a cancellable call. Converts the reply with `answer`, which returns `None` for an unexpected
    /// reply.
    fn ask<T>(
        &mut self,
        call: SinkCall<'_>,
        answer: impl FnOnce(Reply) -> Option<T>,
    ) -> Result<T, SinkError> {
        self.calls += 1;
        let call = Call::Sink {
            number: self.calls,
            call,
        };
        self.cancellation.begin(self.calls);
        let reply = self.exchange(&call);
        self.cancellation.end();
        match reply {
            Ok(Reply::Undelivered(error)) => Err(error),
            Ok(reply) => answer(reply).ok_or_else(|| {
                let error = self.remote.wrong_reply(call.name());
                self.died(error.to_string())
            }),
            Err(CallError::Died(reason)) => Err(self.died(reason)),
            Err(CallError::Refused(error)) => Err(self.died(error.to_string())),
        }
    }

    /// Returns the error to report after the child died. The error is temporary: a sink's state is in its
    /// folder, so a new child can continue, even if a later process of the run starts that child.
    /// Only the sink itself can report a permanent error.
    fn died(&self, reason: String) -> SinkError {
        match self.remote.lost() {
            Some(lost) if lost != reason => SinkError::Temporary(format!("{reason}; {lost}")),
            _ => SinkError::Temporary(reason),
        }
    }
}

impl CheckpointSink for RemoteCheckpointSink {
    fn id(&self) -> &str {
        self.remote.id()
    }

    fn publish(&mut self, publish: Publish<'_>) -> Result<Receipt, SinkError> {
        let checkpoint = publish.checkpoint;
        let call = SinkCall::Publish {
            run: Cow::Borrowed(publish.run.as_str()),
            step: checkpoint.step,
            path: Cow::Owned(absolute(&checkpoint.path)?.into()),
            manifest: Cow::Borrowed(&checkpoint.manifest),
            metrics: Cow::Borrowed(&checkpoint.metrics),
            state_dir: Cow::Owned(absolute(publish.state_dir)?.into()),
        };
        self.ask(call, |reply| match reply {
            Reply::Receipt(receipt) => Some(receipt),
            _ => None,
        })
    }

    fn preflight(&mut self, preflight: Preflight<'_>) -> Result<Option<String>, SinkError> {
        let call = SinkCall::Preflight {
            run: Cow::Borrowed(preflight.run.as_str()),
            state_dir: Cow::Owned(absolute(preflight.state_dir)?.into()),
            checkpoint_bytes: preflight.checkpoint_bytes,
            model_bytes: preflight.model_bytes,
        };
        self.ask(call, |reply| match reply {
            Reply::Ready(found) => Some(found),
            _ => None,
        })
    }

    fn fetch(&mut self, fetch: Fetch<'_>) -> Result<Fetched, SinkError> {
        let call = SinkCall::Fetch {
            revision: fetch.revision.map(Cow::Borrowed),
            for_resume: fetch.for_resume,
            state_dir: Cow::Owned(absolute(fetch.state_dir)?.into()),
        };
        self.ask(call, |reply| match reply {
            Reply::Fetched(fetched) => Some(fetched),
            _ => None,
        })
    }

    fn canceller(&self) -> Box<dyn Fn() + Send + Sync> {
        let cancellation = Arc::clone(&self.cancellation);
        Box::new(move || cancellation.cancel())
    }

    fn lost(&self) -> Option<String> {
        self.remote.lost()
    }
}

impl Drop for RemoteCheckpointSink {
    fn drop(&mut self) {
        self.cancellation.lock().control = None;
    }
}

impl Cancellation {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, call: u64) {
        let mut state = self.lock();
        state.call = call;
        state.is_calling = true;
        state.cancelled = None;
    }

    fn end(&self) {
        self.lock().is_calling = false;
    }

    /// `[any]`
    fn cancel(&self) {
        let mut state = self.lock();
        if state.is_calling {
            state.cancelled.get_or_insert_with(Instant::now);
        }
        if let Some(control) = &state.control {
            // The socket does not block. If its buffer is full, enough cancellations are already queued.
            let _ = (&**control).write_all(&state.call.to_le_bytes());
        }
    }

    /// If a cancelled call has not ended within the grace period, returns the reason to kill the child.
    fn overdue(&self) -> Option<String> {
        let cancelled = self.lock().cancelled?;
        (cancelled.elapsed() > GRACE).then(|| {
            format!(
                "it did not end within {} of being cancelled and was killed",
                secs(GRACE)
            )
        })
    }
}
