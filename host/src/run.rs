//! A run from the plan to the summary: plan → plugins → training → groups → store → preflight → serve →
//! fit → drain the sinks → close the store → stop serving.

pub(crate) mod cache;
pub(crate) mod deliver;
pub(crate) mod hub_fetch;
pub(crate) mod launcher;
mod live;
pub(crate) mod origin;
pub(crate) mod preflight;
mod ranks;
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
use host_train::{BoundaryPorts, CheckpointPorts, Collective, Observers, Outcome, Ports, Start};

use crate::delivery::{Backlog, Deliveries, Destination, Retry, Undelivered, Wanted, missed};
use crate::plan::Plan;
use crate::plan::run_file::RunFile;
use crate::plugins;
use crate::plugins::accounts::PluginAccounts;
use crate::run::live::{Live, emit_process_changes};
use crate::run::origin::Origin;
use crate::run::ranks::Task;
use crate::run::ready::Ready;
use crate::run::resume_point::ResumePoint;
use crate::runs::how_to_name;
use crate::runs::run_dir::RunDir;
use crate::show::console::Console;
use crate::show::progress::Progress;
use crate::show::warnings::Warnings;

/// Maximum time that a checkpoint waits until earlier events are stored. If the store cannot be written, the
/// checkpoint is delayed by at most this time.
const EVENTS_PATIENCE: Duration = Duration::from_secs(5);

/// How long the end of a run waits for its sinks.
const PATIENCE: Duration = Duration::from_secs(600);

/// How long the end of a run waits for its sinks if a rank has failed.
const SHORT_PATIENCE: Duration = Duration::from_secs(2);

/// Trains a new run. With `resume = "auto"`, resumes the run if its folder exists.
///
/// # Errors
/// Returns an error if the run cannot start or fails.
pub(crate) fn run(plan: Result<Plan>, json: bool) -> Result<StopReason> {
    ranks::join(plan, json, |plan, console, collective| {
        let existing = match &plan.name {
            Some(name) if plan.resume_auto => RunDir::existing(&plan.runs_dir, name)?,
            _ => None,
        };
        match existing {
            Some(dir) => resume_run(plan, dir, None, console, &collective),
            None => new_run(plan, console, &collective),
        }
    })
}

fn new_run(plan: Plan, console: &Console, collective: &Collective) -> Result<StopReason> {
    let Console { progress, warnings } = console;
    if let Some(name) = &plan.name {
        RunDir::check_free(&plan.runs_dir, name)?;
    }
    let Origin {
        plan,
        local,
        start,
        fetched: _fetched,
    } = Origin::find(plan, progress, warnings)?;
    let ready = Ready::prepare(&local, &start, collective, console)?;
    let step = ready.trainer.step();
    if step.0 >= plan.train.max_train_steps {
        return Err(too_far(step, plan.train.max_train_steps, &start));
    }
    let dir = RunDir::create(&plan.runs_dir, plan.name.as_ref(), &plan.train.model)?;
    match begin(&plan, &dir, ready, console) {
        Ok((live, requests, ready)) => {
            let session = Session::begin(&dir, 0, progress, plan.ranks > 1);
            train(ready, live, requests, &session, &Backlog::default())
        }
        Err(error) => {
            // Nothing was trained, so the folder is removed. The user can then reuse the name.
            let _ = std::fs::remove_dir_all(dir.path());
            Err(error)
        }
    }
}

/// Creates `run.toml` and the store, runs the preflight and starts to serve the run.
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

/// Resumes a run from its newest checkpoint, or from the checkpoint named `from`.
///
/// # Errors
/// Returns an error if the checkpoint is missing or damaged, or if the run cannot start or fails.
pub(crate) fn resume(args: Result<(Plan, RunDir, Option<&str>)>, json: bool) -> Result<StopReason> {
    let (plan, found) = match args {
        Ok((plan, dir, from)) => (Ok(plan), Some((dir, from))),
        Err(error) => (Err(error), None),
    };
    ranks::join(plan, json, |plan, console, collective| {
        let (dir, from) = found.expect("there is a plan");
        resume_run(plan, dir, from, console, &collective)
    })
}

fn resume_run(
    mut plan: Plan,
    dir: RunDir,
    from: Option<&str>,
    console: &Console,
    collective: &Collective,
) -> Result<StopReason> {
    let Console { progress, warnings } = console;
    let (file, recorded) = RunFile::read(&dir.config_file())?;
    // Locks the run first, so that no other process trains it or delivers its checkpoints.
    let writer = open_store(&dir, &file, warnings)?;
    let reader = Reader::open(dir.path())?;
    let row = reader.run()?;
    // The store's generation alone can be too low, because a store that replaces a lost store starts at
    // generation 0. So the checkpoints that were set aside are considered too. Their names contain their
    // generations.
    let generation = 1 + row.generation.max(dir.generation_set_aside());
    let point = ResumePoint::choose(&dir, &reader, from)?;
    if plan.resume_auto && is_complete(row.status, point.step, plan.train.max_train_steps) {
        collective.hand_out(Some(Task::End))?;
        collective.leave();
        progress.say(&format!("the run is complete: {}", dir.path().display()));
        return Ok(StopReason::Completed);
    }
    if let Some(warning) = point.keep_global_batch(&mut plan.train, collective.size())? {
        warnings.warn(warning);
    }
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
    let ready = Ready::prepare(&unmeasured, &start, collective, console)
        .map_err(|error| point.explain(&dir, error))?;
    // `step` can differ from `point.step`, because a run can start from a checkpoint of another run.
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
        progress.say(&format!(
            "a later checkpoint was set aside; delete it if you do not need it: {name}"
        ));
    }
    let labels = ready.plugins.sink_labels();
    let backlog = Backlog::read(&dir, &reader, &labels, Some(step), Wanted::Missing)?;
    let ready = ready.check_sinks(&plan, &dir, progress, warnings)?;
    let learning_rate = ResumePoint::learning_rate_set(&reader, step)?;
    let (live, mut requests) = Live::open(&plan, &dir, writer, progress, warnings)?;
    if let Some(asked) = learning_rate {
        requests.again(asked);
    }
    let session = Session::begin(&dir, generation, progress, plan.ranks > 1);
    train(ready, live, requests, &session, &backlog)
}

fn run_record(dir: &RunDir, file: &RunFile) -> RunRecord {
    RunRecord {
        name: dir.name().to_string(),
        created_us: jiff::Timestamp::now().as_microsecond(),
        config_json: file.to_json(),
    }
}

/// Opens the store of a run that is resumed. If the run ended before its store was created, creates the
/// store. If the run has a checkpoint, a missing or damaged store is replaced by a new one, with a warning.
fn open_store(dir: &RunDir, file: &RunFile, warnings: &Warnings) -> Result<Writer> {
    let record = run_record(dir, file);
    if dir.newest_checkpoint().is_none() {
        return Writer::open(dir.path())
            .or_else(|error| Writer::create(dir.path(), &record).map_err(|_| error));
    }
    let (writer, loss) = Writer::restore(dir.path(), &record)?;
    if let Some(Loss { why, kept_as }) = loss {
        let kept = kept_as.map_or_else(String::new, |name| format!("; the old one is {name}"));
        warnings.warn(format!(
            "the run store could not be used ({why}) and was replaced by a new one{kept}: {}",
            dir.path().display()
        ));
    }
    Ok(writer)
}

/// Whether the run has recorded its end at its last step.
fn is_complete(status: RunStatus, step: Step, last_step: u64) -> bool {
    step.0 >= last_step && status == RunStatus::Finished(StopReason::Completed)
}

/// Returns an error if no steps are left. There is one exception: a run can be killed after its last step and
/// before it is recorded as finished. Such a run may resume to record its end.
fn check_unfinished(dir: &RunDir, status: RunStatus, step: Step, last_step: u64) -> Result<()> {
    if step.0 < last_step || (step.0 == last_step && !is_complete(status, step, last_step)) {
        return Ok(());
    }
    let message = format!(
        "the run is already at step {step} of {last_step}: {}",
        dir.path().display()
    );
    Err(Error::new(ErrorKind::Config, message).hint("train it to step N with --max-train-steps N"))
}

/// Returns the error for a run that would start at or after its last step.
fn too_far(step: Step, last_step: u64, start: &Start) -> Error {
    let from = match start {
        Start::From(folder) => format!(": {}", folder.display()),
        Start::Fresh => String::new(),
    };
    let message = format!("the checkpoint is already at step {step} of {last_step}{from}");
    Error::new(ErrorKind::Config, message).hint(format!(
        "set --max-train-steps above {step}; it counts from step 0"
    ))
}

/// The run of this process: its folder, how often it was resumed, and where its progress is shown.
struct Session<'a> {
    dir: &'a RunDir,
    generation: u32,
    progress: &'a Progress,
    begun: Instant,
    /// Whether this process is the lead of several ranks.
    has_ranks: bool,
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
            // A write error here does not prevent the checkpoint. If events are lost, a resume warns of it.
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
    // The other ranks have ended, and their launcher will end this process, too.
    let is_broken = session.has_ranks && outcome.is_err();
    let patience = if is_broken { SHORT_PATIENCE } else { PATIENCE };
    let undelivered = deliveries.drain(patience, &mut |what| {
        progress.say(&format!("{what}; press Ctrl-C to stop waiting"));
    });
    let reached = match &outcome {
        Ok(outcome) => outcome.step,
        Err(_) => live.digest_step().max(start),
    };
    // The plugins' metrics are reported only once for each step. For the last step, they are reported here,
    // and not earlier, so that they include the last calls into the sinks.
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
    fn begin(dir: &'a RunDir, generation: u32, progress: &'a Progress, has_ranks: bool) -> Self {
        Self {
            dir,
            generation,
            progress,
            begun: Instant::now(),
            has_ranks,
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

    /// Records how the run ended, closes the store, stops serving and prints the summary.
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
            // Handles signals until the summary is printed.
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
        // Drops the emitter of the warnings, because the store closes only after all emitters are dropped.
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
            // The exit code must tell which signal ended the run, so missing output is only a warning.
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

/// Replaces the outcome with the error of the plugin that ended the run, if any. A run that a signal ended
/// keeps its outcome.
fn with_failure(outcome: Result<Outcome>, control: &Control) -> Result<Outcome> {
    let outcome = outcome?;
    match outcome.reason {
        StopReason::Interrupted | StopReason::Terminated => Ok(outcome),
        _ => control.take_failure().map_or(Ok(outcome), Err),
    }
}

/// Returns why the run ended, or an error if it ended normally but checkpoints were not delivered.
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
