//! The deliveries of a run whose process has ended: the lock → the ledger → plugins → deliver → the
//! last word.
//!
//! They are events of the same run, told at their checkpoints' steps. How the run itself ended is not
//! touched: there is no new beginning and no new end.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use host_core::{Control, Emitter, Result, Step, StopReason};
use host_plugin::{PluginSpec, SearchPath, Secrets};
use host_store::{Callbacks, Reader, Writer};

use crate::delivery::{Backlog, Deliveries, Destination, Retry, Wanted, missed};
use crate::json_stream::JsonStream;
use crate::plugins::{self, Plugins};
use crate::printer::Printer;
use crate::progress::{Progress, Style};
use crate::run::described;
use crate::run_dir::RunDir;
use crate::run_file::RunFile;
use crate::signals::{self, SignalWatch};
use crate::summary::{Digest, how_to_name};
use crate::warnings::Warnings;

/// Events on their way to the store.
const QUEUE: usize = 1024;

/// Delivers what a run left, with the sinks that its file names, at most for so long.
///
/// # Errors
/// The run is at work or cannot be read, a sink cannot be made, or something was not delivered.
pub(crate) fn deliver(
    dir: &RunDir,
    (specs, search, secrets): (&[PluginSpec], &SearchPath, Secrets),
    wanted: Wanted,
    patience: Duration,
    json: bool,
) -> Result<StopReason> {
    let progress = Progress::new(Style::choose(json), 0);
    let warnings = Warnings::new(&progress);
    let ended = deliver_with(
        dir,
        (specs, search, secrets),
        wanted,
        patience,
        (&progress, &warnings),
    );
    progress.end();
    warnings.end();
    ended
}

fn deliver_with(
    dir: &RunDir,
    (specs, search, secrets): (&[PluginSpec], &SearchPath, Secrets),
    wanted: Wanted,
    patience: Duration,
    (progress, warnings): (&Progress, &Warnings),
) -> Result<StopReason> {
    // The lock comes first: a run at work delivers by itself.
    let writer = Writer::open(dir.path())?;
    let reader = Reader::open(dir.path())?;
    let (_, recorded) = RunFile::read(&dir.config_file())?;
    plugins::show_logs(progress, warnings);
    let plugins = Plugins::load_sinks(specs, search, secrets)?;
    let backlog = Backlog::read(dir, &reader, &plugins.sink_labels(), None, wanted)?;
    drop(reader);
    if !progress.is_json() {
        progress.opened(dir.name(), dir.path(), None);
    }
    for line in backlog.removed().chain(backlog.lost()) {
        warnings.warn(line);
    }
    let Some(left) = backlog.describe() else {
        if progress.is_json() {
            Printer::of_process().conclude(&format!("{}\n", described(dir, None)));
        }
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
        on_failure: Box::new(move |error| failed.insist(&format!("warning: {error}"))),
    };
    let writer = writer.spawn(drafts, callbacks)?;
    let json = match progress.is_json() {
        true => {
            let (path, run) = (dir.path().to_owned(), how_to_name(dir));
            let first = described(dir, None);
            Some(JsonStream::start(first, path, run, writer.commits())?)
        }
        false => None,
    };
    let replaced = plugins::replaced(&recorded.plugin, &plugins.entries());
    for message in replaced.into_iter().chain(plugins.warnings()) {
        warnings.warn(message);
    }
    warnings.begin(emitter.clone(), emitter.clone(), || Step(0));
    // A sink's policy is about the training, which is over: what fails stays undelivered.
    let control = Control::new();
    let destinations = Destination::all(dir, sinks)?;
    let retry = Retry::default();
    let mut deliveries = Deliveries::start(dir.name(), destinations, retry, &emitter, &control)?;
    let again = "ended at once; `host deliver` delivers the rest";
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
    // It has an emitter, and the store closes when all are gone.
    warnings.end();
    let stored = writer.join();
    let digest = digest.lock().unwrap_or_else(PoisonError::into_inner);
    progress.conclude(&digest.delivery_lines(&undelivered));
    stored?;
    if let Some(json) = json {
        json.finish(&signals::have_come, &mut |line| progress.insist(line))?;
    }
    match interrupts.stop_requested() {
        Some(reason) if !undelivered.is_empty() => Ok(reason),
        _ => missed(&undelivered, &how_to_name(dir)).map_or(Ok(StopReason::Completed), Err),
    }
}
