//! The deliveries of a run whose process has ended: the lock → the ledger → plugins → deliver → the
//! last word.
//!
//! They are events of the same run, told at their checkpoints' steps. How the run itself ended is not
//! touched: there is no new beginning and no new end.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use host_core::{Control, Emitter, EventBody, Result, Step, StopReason};
use host_plugin::{PluginSpec, SearchPath};
use host_store::{Callbacks, Reader, Writer};

use crate::delivery::{Backlog, Deliveries, Destination, Retry, Wanted, missed};
use crate::plugins::{self, Plugins};
use crate::progress::{Progress, Style};
use crate::run_dir::RunDir;
use crate::run_file::RunFile;
use crate::signals::SignalWatch;
use crate::summary::{Digest, how_to_name};

/// Events on their way to the store.
const QUEUE: usize = 1024;

/// Delivers what a run left, with the sinks that its file names, at most for so long.
///
/// # Errors
/// The run is at work or cannot be read, a sink cannot be made, or something was not delivered.
pub(crate) fn deliver(
    dir: &RunDir,
    (specs, search): (&[PluginSpec], &SearchPath),
    wanted: Wanted,
    patience: Duration,
    json: bool,
) -> Result<StopReason> {
    let progress = Progress::new(Style::choose(json), 0);
    let ended = deliver_with(dir, (specs, search), wanted, patience, &progress);
    progress.end();
    ended
}

fn deliver_with(
    dir: &RunDir,
    (specs, search): (&[PluginSpec], &SearchPath),
    wanted: Wanted,
    patience: Duration,
    progress: &Progress,
) -> Result<StopReason> {
    // The lock comes first: a run at work delivers by itself.
    let writer = Writer::open(dir.path())?;
    let reader = Reader::open(dir.path())?;
    let (_, recorded) = RunFile::read(&dir.config_file())?;
    plugins::show_logs(progress);
    let plugins = Plugins::load_sinks(specs, search)?;
    let backlog = Backlog::read(dir, &reader, &plugins.sink_labels(), None, wanted)?;
    drop(reader);
    progress.opened(dir.name(), dir.path(), None);
    for line in backlog.removed().chain(backlog.lost()) {
        progress.say(&format!("warning: {line}"));
    }
    let Some(left) = backlog.describe() else {
        progress.conclude("nothing is left to deliver\n");
        return Ok(StopReason::Completed);
    };
    progress.say(&format!("to deliver: {left}"));
    let sinks = plugins.sinks(|label| backlog.owes(label))?;

    let (emitter, drafts) = Emitter::new(QUEUE);
    let digest = Arc::<Mutex<Digest>>::default();
    let (shown, failed, noted) = (progress.clone(), progress.clone(), Arc::clone(&digest));
    let callbacks = Callbacks {
        on_commit: Box::new(move |events| {
            let mut digest = noted.lock().unwrap_or_else(PoisonError::into_inner);
            events.iter().for_each(|event| digest.note(event));
            shown.show(events);
        }),
        on_failure: Box::new(move |error| failed.say(&format!("warning: {error}"))),
    };
    let writer = writer.spawn(drafts, callbacks)?;
    for message in plugins::replaced(&recorded.plugin, &plugins.entries()) {
        emitter.emit(Step(0), EventBody::Warning { message });
    }
    // A sink's policy is about the training, which is over: what fails stays undelivered.
    let control = Control::new();
    let destinations = Destination::all(dir, sinks)?;
    let retry = Retry::default();
    let mut deliveries = Deliveries::start(dir.name(), destinations, retry, &emitter, &control)?;
    let again = "ended at once; `host deliver` goes on";
    let interrupts = Control::new();
    let signals = SignalWatch::start(
        interrupts.clone(),
        progress.clone(),
        dir.transient_files(),
        again,
    )?;
    signals.on_cancel(deliveries.canceller());
    signals.draining();
    deliveries.take_up(&backlog, &emitter);
    let undelivered = deliveries.drain(patience, &mut |what| {
        progress.say(&format!("{what}; Ctrl-C leaves them"));
    });
    drop(emitter);
    let stored = writer.join();
    let digest = digest.lock().unwrap_or_else(PoisonError::into_inner);
    progress.conclude(&digest.delivery_lines(&undelivered));
    stored?;
    match interrupts.stop_requested() {
        Some(reason) if !undelivered.is_empty() => Ok(reason),
        _ => missed(&undelivered, &how_to_name(dir)).map_or(Ok(StopReason::Completed), Err),
    }
}
