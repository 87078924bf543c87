//! The deliveries of a run whose process has ended: lock → ledger → plugins → deliver → summary.
//!
//! The deliveries are recorded as events of the same run, at the steps of their checkpoints. The recorded end
//! of the run does not change, and no new start or end is recorded.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use host_core::{Control, Emitter, Result, Step, StopReason};
use host_plugin::{PluginSpec, SearchPath, Secrets};
use host_store::{Reader, Writer};

use crate::delivery::{Backlog, Deliveries, Destination, Retry, Wanted, missed};
use crate::plan::run_file::RunFile;
use crate::plugins::{self, Plugins};
use crate::run::live::{callbacks, described};
use crate::run::signals::{self, SignalWatch};
use crate::run::summary::Digest;
use crate::runs::how_to_name;
use crate::runs::run_dir::RunDir;
use crate::show::console::Console;
use crate::show::json_stream::JsonStream;
use crate::show::printer::Printer;

/// Capacity of the queue of events to the store.
const QUEUE: usize = 1024;

/// Delivers a run's undelivered checkpoints to the sinks in its `run.toml`. Stops after `patience`.
///
/// # Errors
/// Returns an error if the run is live or unreadable, a sink cannot be created, or a checkpoint was not
/// delivered.
pub(crate) fn deliver(
    dir: &RunDir,
    (specs, search, secrets): (&[PluginSpec], &SearchPath, Secrets),
    wanted: Wanted,
    patience: Duration,
    json: bool,
) -> Result<StopReason> {
    let console = Console::new(json, 0);
    let Console { progress, warnings } = &console;
    // Locks the run first. This fails if the run is live, because a live run delivers its checkpoints itself.
    let writer = Writer::open(dir.path())?;
    let reader = Reader::open(dir.path())?;
    let (_, recorded) = RunFile::read(&dir.config_file())?;
    plugins::show_logs(progress, warnings);
    let plugins = Plugins::load_sinks(specs, search, secrets)?;
    let backlog = Backlog::read(dir, &reader, &plugins.sink_labels(), None, wanted)?;
    drop(reader);
    if !progress.is_json() {
        progress.opened(dir.name(), dir.path(), &[]);
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
    let callbacks = callbacks(&digest, progress, |_| ());
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
    // Through a control, a failing sink can end a training. No training is running here, so nothing reads
    // this control.
    let control = Control::new();
    let destinations = Destination::all(dir, sinks)?;
    let retry = Retry::default();
    let mut deliveries = Deliveries::start(dir.name(), destinations, retry, &emitter, &control)?;
    let again = "stopped immediately; run `host deliver` again to deliver the rest";
    let interrupts = Control::new();
    let signals = SignalWatch::start(
        interrupts.clone(),
        progress.clone(),
        dir.transient_files().to_vec(),
        again,
    )?;
    signals.on_cancel(deliveries.canceller());
    signals.draining();
    deliveries.take_up(&backlog, &emitter);
    let undelivered = deliveries.drain(patience, &mut |what| {
        progress.say(&format!("{what}; press Ctrl-C to stop waiting"));
    });
    drop(emitter);
    // Drops the emitter of the warnings, because the store closes only after all emitters are dropped.
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
