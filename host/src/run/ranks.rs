//! A training on several ranks: how this process joins the others, and what it does if it is not the lead.

use std::path::PathBuf;
use std::rc::Rc;

use host_core::{
    Control, Emitter, Error, ErrorKind, EventBody, Inbox, RequestQueue, Result, RunName, StopReason,
};
use host_plugin::ProcessWatch;
use host_train::{
    BoundaryPorts, CheckpointPorts, Collective, Facts, Launch, Limits, Observers, Ports, Ranks,
    Start, TrainConfig, Trainer,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::cache::Cache;
use super::live::QUEUE;
use super::signals::SignalWatch;
use crate::plan::Plan;
use crate::plugins::{self, Grouping, Plugins};
use crate::show::console::Console;

/// What the lead tells the other ranks to do.
#[derive(Serialize, Deserialize)]
pub(super) enum Task {
    /// Train with this configuration.
    Train(Box<TrainConfig>),
    /// End, because the run is complete.
    End,
}

/// Trains as the only process, or as one of the ranks that a launcher started. `lead` is called in a single process
/// and on rank 0.
///
/// # Errors
/// Returns an error if the run fails. If it fails on one rank, all ranks return an error that names this rank.
pub(super) fn join(
    plan: Result<Plan>,
    json: bool,
    lead: impl FnOnce(Plan, &Console, Collective) -> Result<StopReason>,
) -> Result<StopReason> {
    let Some(launch) = Launch::from_env()? else {
        let plan = plan?;
        check_name(&plan)?;
        let console = Console::new(json, plan.train.max_train_steps);
        return lead(plan, &console, Collective::alone());
    };
    let (rank, size, is_lead) = (launch.rank, launch.size, launch.rank == 0);
    let plan = plan.and_then(|plan| named(plan, launch.job.as_deref()));
    let console = match (&plan, is_lead) {
        (Ok(plan), true) => Console::new(json, plan.train.max_train_steps),
        (Err(_), true) => Console::new(json, 0),
        (_, false) => Console::of_rank(rank),
    };
    // A rank without a plan meets the others, too, so that all end with its error.
    let (limits, facts, plan) = match plan {
        Ok(plan) => (plan.rank_limits, facts(&plan), Some(plan)),
        Err(error) => (Limits::default(), Err(error), None),
    };
    let waiting = &mut |what: &str| console.progress.say(what);
    let ranks = Ranks::meet(launch, facts, limits, waiting).map_err(|e| reported(e, rank))?;
    let mut plan = plan.expect("the meeting fails without a plan");
    plan.ranks = size;
    let ranks = Rc::new(ranks);
    let collective = Collective::of(Rc::clone(&ranks));
    if is_lead && size > 1 {
        let machines = match ranks.machines() {
            1 => "1 machine".to_owned(),
            machines => format!("{machines} machines"),
        };
        console.progress.say(&format!(
            "{size} ranks on {machines}; {} sequences per step: {size} ranks x {} sequences x {} micro-batches",
            plan.train.global_batch(size),
            plan.train.train_batch_size,
            plan.train.gradient_accumulation_steps
        ));
    }
    let ended = match is_lead {
        true => lead(plan, &console, collective),
        false => follow(&plan, &console, collective),
    };
    ended.map_err(|error| reported(ranks.fail(error), rank))
}

/// Returns the plan with the name of the run. If the plan has none, a run that is to be resumed is named after the
/// launcher's job.
fn named(plan: Plan, job: Option<&str>) -> Result<Plan> {
    let name = match (&plan.name, plan.resume_auto) {
        (None, true) => job.and_then(job_name),
        (name, _) => name.clone(),
    };
    let plan = Plan { name, ..plan };
    check_name(&plan)?;
    Ok(plan)
}

/// Checks that a run that is to be resumed has a name.
fn check_name(plan: &Plan) -> Result<()> {
    if !plan.resume_auto || plan.name.is_some() {
        return Ok(());
    }
    let message =
        "--resume auto needs a name for the run, which stays the same when it is restarted";
    Err(Error::new(ErrorKind::Config, message).hint("add --name NAME"))
}

/// Returns the name of a run for a launcher's job.
fn job_name(job: &str) -> Option<RunName> {
    format!("job-{job}").parse().ok()
}

/// Returns everything that must be the same on all ranks, by name. Devices, threads and paths may differ.
fn facts(plan: &Plan) -> Result<Facts> {
    let mut facts = Facts::new();
    facts.insert("version".to_owned(), env!("CARGO_PKG_VERSION").into());
    let settings = serde_json::to_value(&plan.train).unwrap_or_default();
    let local = [
        "device",
        "threads",
        "data_workers",
        "data",
        "valid_data",
        "model",
        "tokenizer",
    ];
    if let Value::Object(settings) = settings {
        let shared = settings
            .into_iter()
            .filter(|(name, _)| !local.contains(&name.as_str()));
        facts.extend(shared);
    }
    for (id, version, sha256) in plugins::found(plan)? {
        let value = format!("version {version}, sha256 {}", &sha256[..16]);
        facts.insert(format!("plugin {id}"), value.into());
    }
    Ok(facts)
}

/// Returns the groups as facts, for the comparison of ranks.
pub(super) fn group_facts(grouping: &Grouping) -> Facts {
    let params = grouping.params.iter();
    let params: Vec<Value> = params
        .map(|param| serde_json::json!([param.name, param.shape, format!("{:?}", param.dtype)]))
        .collect();
    let groups = grouping.groups.iter();
    let groups: Vec<Value> = groups
        .map(|group| {
            serde_json::json!([
                group.name,
                group.weight_decay,
                group.lr_multiplier,
                group.params
            ])
        })
        .collect();
    let hash = |value: Vec<Value>| {
        use sha2::{Digest, Sha256};
        let text = Value::from(value).to_string();
        Value::from(host_core::hex(&Sha256::digest(text))[..12].to_owned())
    };
    Facts::from([
        ("the hash of the parameters".to_owned(), hash(params)),
        (
            format!("the hash of the parameter groups of {}", grouping.by),
            hash(groups),
        ),
    ])
}

/// Trains as a rank other than the lead: without run folder, store, service, sinks, observers and control.
fn follow(plan: &Plan, console: &Console, collective: Collective) -> Result<StopReason> {
    let Console { progress, warnings } = console;
    plugins::show_logs(progress, warnings);
    let plugins = Plugins::load_for_follower(plan)?;
    let metrics = plugins.metrics()?;
    let config = match collective.hand_out(None)? {
        Task::Train(config) => in_place(*config, &plan.train),
        Task::End => {
            collective.leave();
            return Ok(StopReason::Completed);
        }
    };
    let cache = Cache::find()?;
    let follower = collective.clone();
    let say = &mut |_: &str| ();
    let mut trainer = Trainer::prepare(&config, &Start::Fresh, cache.folder(), follower, say)?;
    trainer.add_metrics(metrics)?;
    let grouping = plugins.group(trainer.params(), config.weight_decay)?;
    collective.compare(&group_facts(&grouping))?;

    let control = Control::new();
    let at_once = "stopped immediately";
    let signals = SignalWatch::start(control.clone(), progress.clone(), Vec::new(), at_once)?;
    let (emitter, drafts) = Emitter::new(QUEUE);
    let shown = progress.clone();
    // Metrics are the lead's. Warnings are shown.
    let printer = std::thread::Builder::new()
        .name("warnings".to_owned())
        .spawn(move || {
            for draft in &drafts {
                if let EventBody::Warning { message } = draft.body {
                    shown.say(&format!("warning: {message}"));
                }
            }
        });
    let printer = printer
        .map_err(|e| Error::new(ErrorKind::System, format!("cannot start a thread: {e}")))?;
    let (_queue, requests) = RequestQueue::new();
    let mut watch = ProcessWatch::begin();
    let emits = emitter.clone();
    let outcome = trainer.fit(Ports {
        groups: grouping.groups,
        emitter,
        generation: 0,
        boundary: BoundaryPorts {
            control,
            observers: Observers::new(Vec::new(), Inbox::default()),
            requests,
            put_back: Box::new(|step, must| {
                watch.look(must);
                super::live::emit_process_changes(&emits, step);
            }),
            report: Box::new(|_| ()),
        },
        // A follower writes no checkpoints.
        checkpoints: CheckpointPorts {
            folder: PathBuf::new(),
            await_events: Box::new(|| ()),
            on_checkpoint: Box::new(|_| ()),
            is_needed: Box::new(|_| false),
            give_up: Box::new(|_| false),
        },
    });
    drop(emits);
    drop(signals);
    let _ = printer.join();
    match outcome?.reason {
        StopReason::Failed => Err(Error::new(
            ErrorKind::System,
            "rank 0 ended the run after the failure of a plugin",
        )
        .hint("see the error of rank 0")),
        reason => Ok(reason),
    }
}

/// Returns the lead's configuration with the devices and paths of this rank.
fn in_place(lead: TrainConfig, own: &TrainConfig) -> TrainConfig {
    TrainConfig {
        device: own.device.clone(),
        threads: own.threads,
        data_workers: own.data_workers,
        data: own.data.clone(),
        valid_data: own.valid_data.clone(),
        ..lead
    }
}

/// Tells torchrun why this process fails.
fn reported(error: Error, rank: usize) -> Error {
    if let Some(path) = std::env::var_os("TORCHELASTIC_ERROR_FILE") {
        let message = format!("rank {rank}: error: {}", error.message());
        let secs = jiff::Timestamp::now().as_second().to_string();
        let extra = serde_json::json!({ "py_callstack": message, "timestamp": secs });
        let file = serde_json::json!({ "message": { "message": message, "extraInfo": extra } });
        // The error is printed anyway.
        let _ = std::fs::write(path, file.to_string());
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_follower_keeps_its_devices_and_paths() {
        let own = TrainConfig {
            device: "cuda".to_owned(),
            threads: Some(3),
            data: vec![PathBuf::from("/own")],
            learning_rate: 1.0,
            ..TrainConfig::default()
        };
        let lead = TrainConfig {
            device: "cuda:0".to_owned(),
            threads: Some(9),
            data: vec![PathBuf::from("/lead")],
            learning_rate: 2.0,
            ..TrainConfig::default()
        };
        let used = in_place(lead, &own);
        assert_eq!((used.device.as_str(), used.threads), ("cuda", Some(3)));
        assert_eq!(used.data, own.data);
        assert_eq!(used.learning_rate, 2.0);
    }

    #[test]
    fn a_launchers_job_names_the_run() {
        assert_eq!(job_name("4711").expect("a name").as_str(), "job-4711");
        assert!(job_name("a/b").is_none());
    }
}
