//! The resources of a live run: its store, its service and its signal handling.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use host_core::{
    Control, Emitter, Event, EventBody, RequestQueue, Requests, Result, Step, StopReason,
};
use host_plugin::{ProcessChange, on_exit_by_plugin};
use host_serve::Source;
use host_store::{Callbacks, Writer};
use serde_json::json;

use super::signals::SignalWatch;
use super::summary::Digest;
use super::system_metrics::SystemMetrics;
use crate::plan::Plan;
use crate::runs::how_to_name;
use crate::runs::run_dir::RunDir;
use crate::service::Served;
use crate::show::json_stream::JsonStream;
use crate::show::printer::Printer;
use crate::show::progress::Progress;
use crate::show::warnings::Warnings;

/// Capacity of the queue through which events reach the store. If the store takes no events, a fast training
/// run fills the queue in a few seconds.
pub(super) const QUEUE: usize = 16_384;

/// Maximum time to wait until the last events are stored, if a plugin ends the process.
const LAST_EVENTS_PATIENCE: Duration = Duration::from_secs(2);

/// A live run, whose store is being written and served.
pub(super) struct Live {
    pub(super) emitter: Emitter,
    pub(super) writer: host_store::WriterThread,
    pub(super) serving: host_serve::Serving,
    pub(super) digest: Arc<Mutex<Digest>>,
    pub(super) json: Option<JsonStream>,
    pub(super) warnings: Warnings,
    pub(super) system_metrics: Option<Duration>,
    pub(super) control: Control,
    pub(super) signals: SignalWatch,
}

impl Live {
    pub(super) fn open(
        plan: &Plan,
        dir: &RunDir,
        writer: Writer,
        progress: &Progress,
        warnings: &Warnings,
    ) -> Result<(Self, Requests)> {
        // Signals are handled from here on. Other processes can send signals as soon as they can see the run.
        let control = Control::new();
        let signals = SignalWatch::start(
            control.clone(),
            progress.clone(),
            dir.transient_files().to_vec(),
            "stopped immediately; `host resume` resumes from the last checkpoint",
        )?;
        let (emitter, drafts) = Emitter::new(QUEUE);
        let digest = Arc::<Mutex<Digest>>::default();
        let (queue, requests) = RequestQueue::new();
        let answered = queue.clone();
        let callbacks = callbacks(&digest, progress, move |events| {
            events.iter().for_each(|event| answered.committed(event));
        });
        let writer = writer.spawn(drafts, callbacks)?;
        let source = Source::Live {
            run_dir: dir.path().to_owned(),
            commits: writer.commits(),
            requests: queue,
        };
        let warn = warnings.clone();
        let served =
            plan.service
                .serve_run(dir, source, Box::new(move |message| warn.warn(message)))?;
        let json = match progress.is_json() {
            true => {
                let (path, run) = (dir.path().to_owned(), how_to_name(dir));
                let first = described(dir, Some(&served));
                Some(JsonStream::start(first, path, run, writer.commits())?)
            }
            false => {
                progress.opened(dir.name(), dir.path(), &served.lines());
                None
            }
        };
        let live = Self {
            emitter,
            writer,
            serving: served.serving,
            digest,
            json,
            warnings: warnings.clone(),
            system_metrics: plan.system_metrics,
            control,
            signals,
        };
        Ok((live, requests))
    }

    /// Starts to record the machine's load. Observers do not receive these values, because they differ when a
    /// run is repeated.
    pub(super) fn watch_system(&self, dir: &RunDir, start: Step) -> Result<Option<SystemMetrics>> {
        let Some(every) = self.system_metrics else {
            return Ok(None);
        };
        let digest = Arc::clone(&self.digest);
        let step = move || digest.lock().unwrap_or_else(PoisonError::into_inner).step();
        SystemMetrics::start(every, dir.path(), self.emitter.clone(), start, step).map(Some)
    }

    /// Records warnings as events from now on. Warnings that plugins log are emitted through `unheard`.
    /// Observers do not receive events that are emitted through `unheard`.
    pub(super) fn warn_from(&self, unheard: Emitter, start: Step) {
        let digest = Arc::clone(&self.digest);
        let step = move || digest.lock().unwrap_or_else(PoisonError::into_inner).step();
        let emitter = self.emitter.clone();
        self.warnings
            .begin(emitter, unheard, move || step().max(start));
    }

    /// From now on, records the run as failed if a plugin ends the process.
    pub(super) fn tell_of_end_by_plugin(&self, dir: &RunDir) {
        let (emitter, commits) = (self.emitter.clone(), self.writer.commits());
        let (digest, stale) = (Arc::clone(&self.digest), dir.transient_files());
        let tell = move |message: &str| {
            let step = digest.lock().unwrap_or_else(PoisonError::into_inner).step();
            let finished = EventBody::RunFinished {
                reason: StopReason::Failed,
                message: message.to_owned(),
            };
            emitter.emit(step, finished);
            commits.wait_settled(emitter.emitted(), LAST_EVENTS_PATIENCE);
            for file in &stale {
                let _ = std::fs::remove_file(file);
            }
            // After this closure returns, its caller prints the error as the last line.
            Printer::of_process().flush_soon();
        };
        on_exit_by_plugin(Some(tell));
    }

    /// Returns the step of the last stored event, which can be a few milliseconds behind the training.
    pub(super) fn digest_step(&self) -> Step {
        let digest = self.digest.lock().unwrap_or_else(PoisonError::into_inner);
        digest.step()
    }
}

/// Returns the callbacks of the store's writer. Each stored event is counted in the digest, shown, and passed
/// to `committed`, in that order. If the store cannot be written, the error is shown at once, and is recorded
/// as a warning when the store can be written again.
pub(super) fn callbacks(
    digest: &Arc<Mutex<Digest>>,
    progress: &Progress,
    committed: impl Fn(&[Event]) + Send + 'static,
) -> Callbacks {
    let (noted, shown, failed) = (Arc::clone(digest), progress.clone(), progress.clone());
    Callbacks {
        on_commit: Box::new(move |events| {
            let mut digest = noted.lock().unwrap_or_else(PoisonError::into_inner);
            events.iter().for_each(|event| digest.note(event));
            shown.show(events);
            committed(events);
        }),
        on_failure: Box::new(move |error| failed.insist(&format!("warning: {error}"))),
    }
}

/// Emits an event for each change that a plugin made to the process.
pub(super) fn emit_process_changes(emitter: &Emitter, step: Step) {
    for change in host_plugin::process_changes() {
        let ProcessChange {
            plugin,
            call,
            message,
        } = change;
        let fault = EventBody::PluginFault {
            plugin,
            call,
            message,
        };
        emitter.emit(step, fault);
    }
}

/// Returns a JSON object with the run's name and folder. If the run is served, the object also contains the
/// address.
pub(super) fn described(dir: &RunDir, served: Option<&Served>) -> serde_json::Value {
    let path = dir.path().display().to_string();
    let mut run = json!({ "kind": "run", "name": dir.name(), "path": path });
    if let Some(served) = served {
        run["listen"] = json!(served.serving.addr());
        if let Some(fingerprint) = served.fingerprint {
            run["tls_fingerprint"] = json!(fingerprint.to_string());
        }
    }
    run
}
