//! A run, from the plan to the last word: plan → plugins → training → groups → store → preflight →
//! serve → fit → drain the sinks → close the store → stop serving.

pub(crate) mod cache;
pub(crate) mod deliver;
pub(crate) mod hub_fetch;
mod live;
pub(crate) mod origin;
pub(crate) mod preflight;
mod ready;
pub(crate) mod resume_point;
pub(crate) mod signals;
pub(crate) mod summary;
pub(crate) mod system_metrics;
pub(crate) mod verify_resume;

pub(crate) use ready::groups;

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use host_core::{
    Control, Emitter, Error, ErrorKind, EventBody, Inbox, Requests, Result, Step, StopReason,
};
use host_plugin::{ProcessWatch, on_exit_by_plugin};
use host_store::{Loss, Reader, RunRecord, RunStatus, Writer, sync_log};
use host_train::{BoundaryPorts, CheckpointPorts, Observers, Outcome, Ports, Start};

use crate::delivery::{Backlog, Deliveries, Destination, Retry, Undelivered, Wanted, missed};
use crate::plan::Plan;
use crate::plan::run_file::RunFile;
use crate::plugins;
use crate::plugins::accounts::PluginAccounts;
use crate::run::live::{Live, emit_process_changes};
use crate::run::origin::Origin;
use crate::run::ready::Ready;
use crate::run::resume_point::ResumePoint;
use crate::runs::how_to_name;
use crate::runs::run_dir::RunDir;
use crate::show::console::Console;
use crate::show::progress::Progress;
use crate::show::warnings::Warnings;

/// How long a checkpoint waits for the events before it: a store that the disk refuses holds none up
/// for longer.
const EVENTS_PATIENCE: Duration = Duration::from_secs(5);

/// How long the end of a run waits for its sinks.
const PATIENCE: Duration = Duration::from_secs(600);

/// Trains a new run.
///
/// # Errors
/// Whatever keeps it from starting or ends it.
pub(crate) fn run(plan: Plan, json: bool) -> Result<StopReason> {
    let console = Console::new(json, plan.train.max_train_steps);
    let Console { progress, warnings } = &console;
    if let Some(name) = &plan.name {
        RunDir::check_free(&plan.runs_dir, name)?;
    }
    let Origin {
        plan,
        local,
        start,
        fetched: _fetched,
    } = Origin::find(plan, progress, warnings)?;
    let ready = Ready::prepare(&local, &start, progress, warnings)?;
    let step = ready.trainer.step();
    if step.0 >= plan.train.max_train_steps {
        return Err(too_far(step, plan.train.max_train_steps, &start));
    }
    let dir = RunDir::create(&plan.runs_dir, plan.name.as_ref(), &plan.train.model)?;
    match begin(&plan, &dir, ready, &console) {
        Ok((live, requests, ready)) => {
            let session = Session::begin(&dir, 0, progress);
            train(ready, live, requests, &session, &Backlog::default())
        }
        Err(error) => {
            // Nothing has happened in it, and the user may want the name again.
            let _ = std::fs::remove_dir_all(dir.path());
            Err(error)
        }
    }
}

/// Makes the run's file and its store, asks the sinks, and opens the run to the world.
fn begin(
    plan: &Plan,
    dir: &RunDir,
    ready: Ready,
    Console { progress, warnings }: &Console,
) -> Result<(Live, Requests, Ready)> {
    let unused = dir.path().to_owned();
    on_exit_by_plugin(Some(move |_: &str| {
        let _ = std::fs::remove_dir_all(&unused);
    }));
    let used = ready.used(plan);
    let file = RunFile::new(&used, dir.name(), &ready.plugins.entries())?;
    file.write(&dir.config_file())?;
    let writer = Writer::create(dir.path(), &run_record(dir, &file))?;
    let ready = ready.check_sinks(plan, dir, progress, warnings)?;
    let (live, requests) = Live::open(plan, dir, writer, progress, warnings)?;
    Ok((live, requests, ready))
}

/// Goes on with a run from its newest checkpoint, or from the one that `from` names.
///
/// # Errors
/// It is damaged or not there, or whatever keeps the run from starting or ends it.
pub(crate) fn resume(
    plan: Plan,
    dir: RunDir,
    from: Option<&str>,
    json: bool,
) -> Result<StopReason> {
    let console = Console::new(json, plan.train.max_train_steps);
    let Console { progress, warnings } = &console;
    let (file, recorded) = RunFile::read(&dir.config_file())?;
    // The lock comes first: only one process works on a run.
    let writer = open_store(&dir, &file, warnings)?;
    let reader = Reader::open(dir.path())?;
    let row = reader.run()?;
    // A store that was lost no longer knows how often the run went back.
    let generation = 1 + row.generation.max(dir.generation_set_aside());
    let point = ResumePoint::choose(&dir, &reader, from)?;
    check_unfinished(&dir, row.status, point.step, plan.train.max_train_steps)?;
    progress.say(&point.describe());
    let Origin {
        plan,
        local,
        start,
        fetched: _fetched,
    } = match point.start() {
        Some(start) => Origin::resumed(plan, start, &row.config_json)?,
        None => Origin::find(plan, progress, warnings)?,
    };
    let unmeasured = Plan {
        train: point.unmeasured(&local.train),
        ..local
    };
    let ready = Ready::prepare(&unmeasured, &start, progress, warnings)
        .map_err(|error| point.explain(&dir, error))?;
    // A run that began at a checkpoint of elsewhere begins there again.
    let step = ready.trainer.step();
    let entries = ready.plugins.entries();
    for change in plugins::changes(&recorded.plugin, &entries)? {
        warnings.warn(change);
    }
    if let Some(gap) = point.gap(&dir, &row) {
        warnings.warn(gap);
    }
    RunFile::new(&ready.used(&plan), dir.name(), &entries)?.write(&dir.config_file())?;
    for name in dir.set_aside_after(step, generation)? {
        progress.say(&format!("set aside, and yours to remove: {name}"));
    }
    let labels = ready.plugins.sink_labels();
    let backlog = Backlog::read(&dir, &reader, &labels, Some(step), Wanted::Missing)?;
    let ready = ready.check_sinks(&plan, &dir, progress, warnings)?;
    let learning_rate = ResumePoint::learning_rate_set(&reader, step)?;
    let (live, mut requests) = Live::open(&plan, &dir, writer, progress, warnings)?;
    if let Some(asked) = learning_rate {
        requests.again(asked);
    }
    let session = Session::begin(&dir, generation, progress);
    train(ready, live, requests, &session, &backlog)
}

fn run_record(dir: &RunDir, file: &RunFile) -> RunRecord {
    RunRecord {
        name: dir.name().to_string(),
        created_us: jiff::Timestamp::now().as_microsecond(),
        config_json: file.to_json(),
    }
}

/// The store of a run that goes on. One that was ended while it was being made has none yet. Where there is
/// a checkpoint to go on from, a store that is damaged or gone does not prevent it.
fn open_store(dir: &RunDir, file: &RunFile, warnings: &Warnings) -> Result<Writer> {
    let record = run_record(dir, file);
    if dir.newest_checkpoint().is_none() {
        return Writer::open(dir.path())
            .or_else(|error| Writer::create(dir.path(), &record).map_err(|_| error));
    }
    let (writer, loss) = Writer::restore(dir.path(), &record)?;
    if let Some(Loss { why, kept_as }) = loss {
        let kept = kept_as.map_or_else(String::new, |name| format!("; its file is kept as {name}"));
        warnings.warn(format!(
            "the run store is damaged, and a new one begins: {why}{kept}: {}",
            dir.path().display()
        ));
    }
    Ok(writer)
}

/// Whether there is anything left to do. A run that did all its steps and was killed before it could
/// say so goes on, and says so.
fn check_unfinished(dir: &RunDir, status: RunStatus, step: Step, last_step: u64) -> Result<()> {
    let is_closed = status == RunStatus::Finished(StopReason::Completed);
    if step.0 < last_step || (step.0 == last_step && !is_closed) {
        return Ok(());
    }
    let message = format!(
        "the run has come to step {step} of {last_step}: {}",
        dir.path().display()
    );
    Err(Error::new(ErrorKind::Config, message).hint("--max-train-steps N trains it to step N"))
}

/// A run that would begin where it ends.
fn too_far(step: Step, last_step: u64, start: &Start) -> Error {
    let from = match start {
        Start::From(folder) => format!(": {}", folder.display()),
        Start::Fresh => String::new(),
    };
    let message = format!("the checkpoint has come to step {step} of {last_step}{from}");
    Error::new(ErrorKind::Config, message).hint(format!(
        "--max-train-steps counts from the first step of all: give more than {step}"
    ))
}

/// What a training is called and how often it was resumed, and who watches.
struct Session<'a> {
    dir: &'a RunDir,
    generation: u32,
    progress: &'a Progress,
    begun: Instant,
}

fn train(
    ready: Ready,
    mut live: Live,
    requests: Requests,
    session: &Session<'_>,
    backlog: &Backlog,
) -> Result<StopReason> {
    let Session { dir, progress, .. } = session;
    let control = live.control.clone();
    let start = ready.trainer.step();
    let system_metrics = live.watch_system(dir, start)?;
    let unheard = live.emitter.clone();
    let inbox = Inbox::default();
    if !ready.observers.is_empty() {
        live.emitter = live.emitter.with_inbox(inbox.clone());
    }
    session.announce(&live.emitter, start);
    live.warn_from(unheard, start);
    let emitter = &live.emitter;

    let destinations = Destination::all(dir, ready.sinks)?;
    let mut deliveries = Deliveries::start(
        dir.name(),
        destinations,
        Retry::default(),
        emitter,
        &control,
    )?;
    live.signals.on_cancel(deliveries.canceller());
    for line in backlog.removed() {
        live.warnings.warn(line);
    }
    if let Some(left) = backlog.describe() {
        progress.say(&format!("left to deliver: {left}"));
    }
    deliveries.take_up(backlog, emitter);
    let mut accounts = PluginAccounts::begin(ready.plugins.accounts(), start);
    let commits = live.writer.commits();
    live.tell_of_end_by_plugin(dir);
    let mut watch = ProcessWatch::begin();
    let boundary = BoundaryPorts {
        control: control.clone(),
        observers: Observers::new(ready.observers, inbox),
        requests,
        put_back: Box::new(|step, must| {
            watch.look(must);
            emit_process_changes(emitter, step);
        }),
        report: Box::new(|step| {
            let report = accounts.report(step, &deliveries.waiting());
            report.into_iter().for_each(|body| emitter.emit(step, body));
        }),
    };
    let checkpoints = CheckpointPorts {
        folder: dir.checkpoints(),
        await_events: Box::new(|| {
            commits.wait_settled(emitter.emitted(), EVENTS_PATIENCE);
            // A disk that refuses does not refuse the checkpoint. Were its history lost by that, the resume
            // would say so.
            let _ = sync_log(dir.path());
        }),
        on_checkpoint: Box::new(|checkpoint| deliveries.offer(checkpoint)),
        is_needed: Box::new(|step| deliveries.is_needed(step)),
        give_up: Box::new(|step| deliveries.give_up(step)),
    };
    let outcome = ready.trainer.fit(Ports {
        groups: ready.grouping.groups,
        emitter: emitter.clone(),
        generation: session.generation,
        boundary,
        checkpoints,
    });

    accounts.loop_ended();
    live.signals.draining();
    let undelivered = deliveries.drain(PATIENCE, &mut |what| {
        progress.say(&format!("{what}; Ctrl-C leaves them"));
    });
    let reached = match &outcome {
        Ok(outcome) => outcome.step,
        Err(_) => live.digest_step().max(start),
    };
    // The sinks' last calls are in it: there is one report of a step, and this is the last step's.
    let report = accounts.report(reached, &deliveries.waiting());
    report
        .into_iter()
        .for_each(|body| emitter.emit(reached, body));
    drop(system_metrics);
    emit_process_changes(emitter, reached);
    let outcome = with_failure(outcome, &control);
    let warnings = live.warnings.clone();
    let closed = session.close(live, &outcome, reached, &undelivered);
    if let (Err(_), Err(error)) = (&outcome, &closed) {
        warnings.warn(error.to_string());
    }
    let outcome = outcome?;
    closed?;
    ending(outcome, &undelivered, dir)
}

impl<'a> Session<'a> {
    fn begin(dir: &'a RunDir, generation: u32, progress: &'a Progress) -> Self {
        Self {
            dir,
            generation,
            progress,
            begun: Instant::now(),
        }
    }

    fn announce(&self, emitter: &Emitter, start: Step) {
        let generation = self.generation;
        if generation > 0 {
            let from_step = start;
            emitter.emit(
                start,
                EventBody::Superseded {
                    from_step,
                    generation,
                },
            );
        }
        emitter.emit(start, EventBody::RunStarted { generation });
    }

    /// Writes down how it ended, closes the store, stops serving and says what was made.
    fn close(
        &self,
        live: Live,
        outcome: &Result<Outcome>,
        reached: Step,
        undelivered: &[Undelivered],
    ) -> Result<()> {
        let Live {
            emitter,
            writer,
            serving,
            digest,
            json,
            warnings,
            // Signals are answered until the last word.
            signals: _signals,
            ..
        } = live;
        let waits = emitter.waits();
        if waits > 0 {
            let message =
                format!("the store fell behind, and the training waited for it {waits} times");
            emitter.emit(reached, EventBody::Warning { message });
        }
        let (reason, message) = match outcome {
            Ok(outcome) => {
                let by = signals::uncommon().filter(|_| outcome.reason == StopReason::Terminated);
                (outcome.reason, by.unwrap_or_default().to_owned())
            }
            Err(error) => (StopReason::Failed, error.message().to_owned()),
        };
        emitter.emit(reached, EventBody::RunFinished { reason, message });
        on_exit_by_plugin(None::<fn(&str)>);
        drop(emitter);
        // It has an emitter, and the store closes when all are gone.
        warnings.end();
        let stored = writer.join();
        for file in self.dir.transient_files() {
            let _ = std::fs::remove_file(file);
        }
        let served = serving.stop();
        let digest = digest.lock().unwrap_or_else(PoisonError::into_inner);
        let secs = self.begun.elapsed().as_secs_f64();
        self.progress
            .conclude(&digest.lines(self.dir, (reason, reached), secs, undelivered));
        let progress = self.progress;
        let printed = json.map_or(Ok(()), |json| {
            json.finish(&signals::have_come, &mut |line| progress.insist(line))
        });
        let printed = match reason {
            // The exit code says which signal ended the run; what stdout lacks is a warning.
            StopReason::Interrupted | StopReason::Terminated => {
                if let Err(error) = &printed {
                    let hint = error.hint_text().unwrap_or_default();
                    warnings.warn(format!("{error}; {hint}"));
                }
                Ok(())
            }
            _ => printed,
        };
        stored.and(served).and(printed)
    }
}

/// The error of the plugin that ended the run, if one did. A run that was ended from outside says so
/// whatever else there is to say.
fn with_failure(outcome: Result<Outcome>, control: &Control) -> Result<Outcome> {
    let outcome = outcome?;
    match outcome.reason {
        StopReason::Interrupted | StopReason::Terminated => Ok(outcome),
        _ => control.take_failure().map_or(Ok(outcome), Err),
    }
}

/// A run that was ended from outside says so whatever else there is to say.
fn ending(outcome: Outcome, undelivered: &[Undelivered], dir: &RunDir) -> Result<StopReason> {
    let is_done = matches!(
        outcome.reason,
        StopReason::Completed | StopReason::Requested
    );
    match missed(undelivered, &how_to_name(dir)) {
        Some(error) if is_done => Err(error),
        _ => Ok(outcome.reason),
    }
}
