//! Measures the machine during a run. The results are the `system/` metrics.

mod gpu;
mod machine;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use host_core::{Emitter, Error, ErrorKind, EventBody, MetricValue, Result, Step};

use gpu::Gpus;
use machine::Machine;

/// Owns the thread that measures the machine periodically. Dropping this ends the thread.
pub(crate) struct SystemMetrics {
    /// Dropping the sender ends the thread.
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl SystemMetrics {
    /// Starts to measure. Each measurement is recorded at the run's current step. A metric has one value per
    /// step, so nothing is measured while the run is still at the step `start` or at the step of the previous
    /// measurement.
    ///
    /// # Errors
    /// Returns an error if the thread cannot be started.
    pub(crate) fn start(
        every: Duration,
        run_dir: &Path,
        emitter: Emitter,
        start: Step,
        step: impl Fn() -> Step + Send + 'static,
    ) -> Result<Self> {
        let (stop, stopped) = sync_channel(0);
        let run_dir = run_dir.to_owned();
        let thread = std::thread::Builder::new()
            .name("system-metrics".to_owned())
            .spawn(move || watch(every, run_dir, &stopped, &emitter, start, &step))
            .map_err(|e| Error::new(ErrorKind::System, format!("cannot start a thread: {e}")))?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for SystemMetrics {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic in the thread does not make the run fail.
            let _ = thread.join();
        }
    }
}

fn watch(
    every: Duration,
    run_dir: PathBuf,
    stopped: &Receiver<()>,
    emitter: &Emitter,
    start: Step,
    step: &impl Fn() -> Step,
) {
    let gpus = Gpus::find();
    let mut machine = Machine::new(run_dir);
    let mut recorded = start;
    while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
        let now = step();
        if now <= recorded {
            continue;
        }
        recorded = now;
        let mut values = machine.look();
        values.extend(gpus.look());
        let values = values
            .into_iter()
            .map(|(name, value)| MetricValue::new(format!("system/{name}"), value))
            .collect();
        emitter.emit(now, EventBody::Metrics { values });
    }
}
