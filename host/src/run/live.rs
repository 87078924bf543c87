//! What is open while a run is at work: its store, its service, its signals.

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

/// Events on their way to the store: some seconds of a fast training.
pub(super) const QUEUE: usize = 16_384;

/// How long a process that a plugin ends waits for the events that say so.
const LAST_EVENTS_PATIENCE: Duration = Duration::from_secs(2);

/// The run as the world sees it: its store is written and served.
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
        // Before anybody can know of the run, and so end it.
        let control = Control::new();
        let signals = SignalWatch::start(
            control.clone(),
            progress.clone(),
            dir.transient_files(),
            "ended at once; `host resume` resumes from the last checkpoint",
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

    /// Begins to record how the machine does. Observers do not see it: what they see comes again when
    /// the run is repeated.
    pub(super) fn watch_system(&self, dir: &RunDir, start: Step) -> Result<Option<SystemMetrics>> {
        let Some(every) = self.system_metrics else {
            return Ok(None);
        };
        let digest = Arc::clone(&self.digest);
        let step = move || digest.lock().unwrap_or_else(PoisonError::into_inner).step();
        SystemMetrics::start(every, dir.path(), self.emitter.clone(), start, step).map(Some)
    }

    /// Warnings are events from now on, of which observers do not hear those that plugins log.
    pub(super) fn warn_from(&self, unheard: Emitter, start: Step) {
        let digest = Arc::clone(&self.digest);
        let step = move || digest.lock().unwrap_or_else(PoisonError::into_inner).step();
        let emitter = self.emitter.clone();
        self.warnings
            .begin(emitter, unheard, move || step().max(start));
    }

    /// When a plugin ends the process, the run ends as failed, by an event that says so.
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
            // The error that follows is the last line.
            Printer::of_process().flush_soon();
        };
        on_exit_by_plugin(Some(tell));
    }

    /// The step that the store has come to, which may be a few milliseconds behind.
    pub(super) fn digest_step(&self) -> Step {
        let digest = self.digest.lock().unwrap_or_else(PoisonError::into_inner);
        digest.step()
    }
}

/// What the store's writer tells: each event is counted in the digest, shown, and told to `committed`, in
/// that order. A failure is shown; the store itself puts it on record when it can.
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

/// Events of what plugins changed of the process.
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

/// Where a run is to be found, and how it is served, if it is, for programs.
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
