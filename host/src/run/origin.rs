//! Where a training begins: with the model that `model` names, or at the checkpoint that
//! `resume_from_checkpoint` names. What lies in a git repository (`hub:REPO@REVISION`) is fetched first.

use std::path::{Path, PathBuf};

use host_core::{Error, ErrorKind, Result};
use host_train::Start;
use serde_json::Value;

use super::hub_fetch;
use crate::config::HubModel;
use crate::config::settings::Given;
use crate::plan::Plan;
use crate::plugins;
use crate::run::cache::Place;
use crate::show::progress::Progress;
use crate::show::warnings::Warnings;

/// The beginning of a training, on this machine.
pub(crate) struct Origin {
    /// The plan as a run's file has it: what was fetched is named by its commit, so that the same comes
    /// again.
    pub(crate) plan: Plan,
    /// The plan with the folder of what was fetched.
    pub(crate) local: Plan,
    /// The first step's side.
    pub(crate) start: Start,
    /// Where that lies which was fetched. It must be held until it was read.
    pub(crate) fetched: Option<Place>,
}

impl Origin {
    /// Finds what the plan begins with, and fetches what is not on this machine.
    ///
    /// # Errors
    /// It cannot be fetched, or `resume_from_checkpoint` names no checkpoint, or another model's.
    pub(crate) fn find(mut plan: Plan, progress: &Progress, warnings: &Warnings) -> Result<Self> {
        let mut local = plan.clone();
        let mut start = Start::Fresh;
        let mut place = None;
        if let Some(name) = &plan.resume_from_checkpoint {
            let (named, folder) = match HubModel::parse(name)? {
                Some(model) => {
                    let (named, folder, fetched) =
                        fetch(&model, &plan, true, (progress, warnings))?;
                    place = Some(fetched);
                    (named, folder)
                }
                None => (name.clone(), PathBuf::from(name)),
            };
            if !folder.join("manifest.json").is_file() {
                let message = format!("no checkpoint to resume from: {}", folder.display());
                return Err(Error::new(ErrorKind::Config, message).hint(
                    "give the folder of a whole checkpoint, step-000100 for instance; --model begins at step 0 with its weights",
                ));
            }
            if brings_model(&plan, &named, &folder, progress)? {
                plan.train.model.clone_from(&named);
                local.train.model = folder.to_string_lossy().into_owned();
            }
            plan.resume_from_checkpoint = Some(named);
            start = Start::From(folder);
        } else if let Some(model) = HubModel::parse(&plan.train.model)? {
            let (named, folder, fetched) = fetch(&model, &plan, false, (progress, warnings))?;
            plan.train.model = named;
            local.train.model = folder.to_string_lossy().into_owned();
            place = Some(fetched);
        }
        Ok(Self {
            plan,
            local,
            start,
            fetched: place,
        })
    }

    /// The beginning of a run that is resumed from a checkpoint of its own. What it was made from need not be
    /// there any more; `recorded`, its configuration when it began, says whether that was changed since.
    ///
    /// # Errors
    /// `model` was changed in the run's file, to another model's weights.
    pub(crate) fn resumed(plan: Plan, start: Start, recorded: &str) -> Result<Self> {
        let mut local = plan.clone();
        let recorded: Value = serde_json::from_str(recorded).unwrap_or_default();
        let was = |key: &str| recorded[key].as_str();
        if let Start::From(folder) = &start {
            let model = &plan.train.model;
            if was("model").is_none_or(|was| was == model) {
                local.train.model = folder.to_string_lossy().into_owned();
            } else if has_weights(model)? {
                let was = was("model").unwrap_or_default();
                let message = format!("model is {model}, and the run began with {was}");
                return Err(Error::new(ErrorKind::Config, message).hint(format!(
                    "set model in run.toml back; `host run --model {model}` begins a new training"
                )));
            }
        }
        let tokenizer = plan.train.tokenizer.as_deref().and_then(Path::to_str);
        if was("tokenizer") == tokenizer {
            local.train.tokenizer = None;
        }
        Ok(Self {
            plan,
            local,
            start,
            fetched: None,
        })
    }
}

/// Whether the checkpoint's folder takes the place of the model that the plan names: it is all of the
/// model. Where the plan names only a shape, that is compared later.
fn brings_model(plan: &Plan, named: &str, folder: &Path, progress: &Progress) -> Result<bool> {
    let model = &plan.train.model;
    let is_same = |a: &Path, b: &Path| {
        a.canonicalize()
            .is_ok_and(|a| b.canonicalize().is_ok_and(|b| a == b))
    };
    if plan.model_given == Given::Not || model == named || is_same(Path::new(model), folder) {
        return Ok(true);
    }
    if !has_weights(model)? {
        return Ok(false);
    }
    if plan.model_given == Given::ByFlag {
        let message =
            format!("model and resume_from_checkpoint both bring weights: {model}, {named}");
        return Err(Error::new(ErrorKind::Config, message).hint(
            "leave --model out to resume from the checkpoint; leave --resume-from-checkpoint out to begin at step 0 with the model's weights",
        ));
    }
    progress.say(&format!(
        "warning: the weights are those of the checkpoint, and not those of the configuration's model, {model}"
    ));
    Ok(true)
}

/// Whether a name stands for a model with weights.
fn has_weights(model: &str) -> Result<bool> {
    Ok(HubModel::parse(model)?.is_some() || host_train::has_weights(Path::new(model)))
}

fn fetch(
    model: &HubModel,
    plan: &Plan,
    for_resume: bool,
    (progress, warnings): (&Progress, &Warnings),
) -> Result<(String, PathBuf, Place)> {
    plugins::show_logs(progress, warnings);
    progress.busy(&format!("fetching {}", model.describe()));
    let from = (&plan.search_path(), &plan.secrets);
    let (fetched, place) = hub_fetch::fetch(model, &plan.plugins, from, for_resume)?;
    if let Some(warning) = &place.warning {
        warnings.warn(warning);
    }
    let named = match fetched.commit {
        Some(commit) => model.at(commit),
        None => model.clone(),
    };
    progress.say(&format!("fetched {}", named.describe()));
    Ok((named.to_string(), fetched.path, place))
}
