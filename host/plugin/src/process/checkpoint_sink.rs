use std::borrow::Cow;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use host_core::{CheckpointSink, Publish, Receipt, Result, SinkError};

use super::child::{Child, secs};
use super::protocol::{Call, Reply};
use super::remote::{CallError, Remote};
use crate::checkpoint_sink::absolute;

/// How long a sink may take to notice that it was cancelled; then its process is killed.
const GRACE: Duration = Duration::from_secs(3);

/// A sink in a child process.
#[derive(Debug)]
pub(crate) struct RemoteCheckpointSink {
    remote: Remote,
    publishes: u64,
    cancellation: Arc<Cancellation>,
}

/// What cancellers know of the sink.
#[derive(Debug, Default)]
struct Cancellation(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The way to the child; absent when there is none, as after the sink.
    control: Option<Arc<UnixStream>>,
    /// The number of the publish that runs, or of the last.
    publish: u64,
    is_publishing: bool,
    /// When the publish that runs was cancelled.
    cancelled: Option<Instant>,
}

impl RemoteCheckpointSink {
    pub(crate) fn new(remote: Remote) -> Self {
        let sink = Self {
            remote,
            publishes: 0,
            cancellation: Arc::default(),
        };
        sink.connect();
        sink
    }

    /// Lets cancellers reach the child that there is now.
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
}

impl CheckpointSink for RemoteCheckpointSink {
    fn id(&self) -> &str {
        self.remote.id()
    }

    fn publish(&mut self, publish: Publish<'_>) -> Result<Receipt, SinkError> {
        let Publish {
            run,
            checkpoint,
            state_dir,
        } = publish;
        self.publishes += 1;
        let (path, state_dir) = (absolute(&checkpoint.path)?, absolute(state_dir)?);
        let call = Call::Publish {
            number: self.publishes,
            run: Cow::Borrowed(run.as_str()),
            step: checkpoint.step,
            path: Cow::Owned(path.into()),
            manifest: Cow::Borrowed(&checkpoint.manifest),
            metrics: Cow::Borrowed(&checkpoint.metrics),
            state_dir: Cow::Owned(state_dir.into()),
        };
        self.cancellation.begin(self.publishes);
        let reply = self.exchange(&call);
        self.cancellation.end();
        // What a sink has to remember lies in its folder, so a new child can go on, in this run or in
        // another: only the sink itself refuses a checkpoint for good.
        let died = |remote: &Remote, reason: String| match remote.lost() {
            Some(lost) if lost != reason => SinkError::Temporary(format!("{reason}; {lost}")),
            _ => SinkError::Temporary(reason),
        };
        match reply {
            Ok(Reply::Receipt(receipt)) => Ok(receipt),
            Ok(Reply::Undelivered(error)) => Err(error),
            Ok(_) => {
                let error = self.remote.wrong_reply(call.name());
                Err(died(&self.remote, error.to_string()))
            }
            Err(CallError::Died(reason)) => Err(died(&self.remote, reason)),
            Err(CallError::Refused(error)) => Err(died(&self.remote, error.to_string())),
        }
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

    fn begin(&self, publish: u64) {
        let mut state = self.lock();
        state.publish = publish;
        state.is_publishing = true;
        state.cancelled = None;
    }

    fn end(&self) {
        self.lock().is_publishing = false;
    }

    /// `[any]`
    fn cancel(&self) {
        let mut state = self.lock();
        if state.is_publishing {
            state.cancelled.get_or_insert_with(Instant::now);
        }
        if let Some(control) = &state.control {
            // The socket does not block. One that is full holds more cancellations than anybody needs.
            let _ = (&**control).write_all(&state.publish.to_le_bytes());
        }
    }

    /// Why the child is killed now, if it did not listen.
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
