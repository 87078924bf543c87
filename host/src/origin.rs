//! Where a training begins: with the model that `model` names, or at the checkpoint that
//! `resume_from_checkpoint` names. What lies in a git repository (`hub:REPO@REVISION`) is fetched first.

use std::path::PathBuf;

use host_core::{Error, Kind, Result};
use host_train::Start;

use crate::hub_model::HubModel;
use crate::plan::Plan;
use crate::plugins;
use crate::progress::Progress;

/// The beginning of a training, on this machine.
pub(crate) struct Origin {
    /// The plan as a run's file has it: what was fetched is named by its commit, so that the same comes
    /// again.
    pub(crate) plan: Plan,
    /// The plan with the folder of what was fetched.
    pub(crate) local: Plan,
    /// The first step's side.
    pub(crate) start: Start,
}

impl Origin {
    /// Finds what the plan begins with, and fetches what is not on this machine.
    ///
    /// # Errors
    /// It cannot be fetched, or `resume_from_checkpoint` names no checkpoint.
    pub(crate) fn find(mut plan: Plan, progress: &Progress) -> Result<Self> {
        let mut local = plan.clone();
        let mut start = Start::Fresh;
        if let Some(name) = &plan.resume_from_checkpoint {
            let (named, folder) = match HubModel::parse(name)? {
                Some(model) => fetch(&model, &plan, true, progress)?,
                None => (name.clone(), PathBuf::from(name)),
            };
            if !folder.join("manifest.json").is_file() {
                let message = format!("no checkpoint to go on from: {}", folder.display());
                return Err(Error::new(Kind::Config, message).hint(
                    "give the folder of a whole checkpoint, step-000100 for instance; --model begins at step 0 with its weights",
                ));
            }
            plan.resume_from_checkpoint = Some(named);
            start = Start::From(folder);
        } else if let Some(model) = HubModel::parse(&plan.train.model)? {
            let (named, folder) = fetch(&model, &plan, false, progress)?;
            plan.train.model = named;
            local.train.model = folder.to_string_lossy().into_owned();
        }
        Ok(Self { plan, local, start })
    }
}

fn fetch(
    model: &HubModel,
    plan: &Plan,
    for_resume: bool,
    progress: &Progress,
) -> Result<(String, PathBuf)> {
    plugins::show_logs(progress);
    progress.busy(&format!("fetching {}", model.describe()));
    let fetched = model.fetch(
        &plan.plugins,
        (&plan.search_path(), &plan.secrets),
        for_resume,
    )?;
    let named = match fetched.commit {
        Some(commit) => model.at(commit),
        None => model.clone(),
    };
    progress.say(&format!("fetched {}", named.describe()));
    Ok((named.to_string(), fetched.path))
}
