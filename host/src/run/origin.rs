//! The origin of a training run: the model in `model`, or the checkpoint in `resume_from_checkpoint`. Either
//! is fetched first if it is in a git repository (`hub:REPO@REVISION`).

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

/// The origin of a training run, on this machine.
pub(crate) struct Origin {
    /// The plan for `run.toml`. It contains the fetched commit, so that a repeated run uses the same commit.
    pub(crate) plan: Plan,
    /// The same plan, but with the folder of the fetched files in place of the repository's name.
    pub(crate) local: Plan,
    /// The state that the trainer starts from.
    pub(crate) start: Start,
    /// The folder of the fetched files. Keep it until the files have been read.
    pub(crate) fetched: Option<Place>,
}

impl Origin {
    /// Finds the model or checkpoint that the plan starts with, and fetches it if necessary.
    ///
    /// # Errors
    /// Returns an error if fetching fails, if `resume_from_checkpoint` is not a checkpoint, or if both
    /// `resume_from_checkpoint` and `model` contain weights.
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
                    "give the folder of a complete checkpoint, such as step-000100; to start at step 0 with its weights, use --model",
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

    /// Returns the origin of a run that is resumed from one of its own checkpoints. The files of the original
    /// model and tokenizer may no longer exist. `recorded` is the configuration from the run's start. It
    /// shows whether the settings `model` and `tokenizer` were changed since then.
    ///
    /// # Errors
    /// Returns an error if `model` was changed in `run.toml` to a model with other weights.
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
                let message = format!("model is {model}, but the run started with {was}");
                return Err(Error::new(ErrorKind::Config, message).hint(format!(
                    "restore model in run.toml, or start a new run with `host run --model {model}`"
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

/// Returns true if the checkpoint replaces the plan's model. A model with a shape but no weights is not
/// replaced: its shape is later compared with the checkpoint's shape.
///
/// # Errors
/// Returns an error if the model was given by a flag and has its own weights.
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
            format!("model and resume_from_checkpoint both contain weights: {model}, {named}");
        return Err(Error::new(ErrorKind::Config, message).hint(
            "leave out --model to resume from the checkpoint, or --resume-from-checkpoint to start at step 0 with the model's weights",
        ));
    }
    progress.say(&format!(
        "warning: using the weights of the checkpoint instead of the configuration's model, {model}"
    ));
    Ok(true)
}

/// Whether a model name refers to a model with weights.
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
