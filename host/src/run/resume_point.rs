//! Where a run goes on: at its newest checkpoint, at an older one that the user chooses, or, if it
//! was ended before its first, at the beginning.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use host_core::{Asked, EVAL_LOSS, Error, ErrorKind, Event, EventBody, Request, Result, Step};
use host_store::{Reader, RunRow, set_aside_stores};
use host_train::{Start, TrainConfig};

use crate::runs::RunDir;
use crate::runs::{how_to_name, quoted};

/// Events looked at in one go.
const PAGE: usize = 10_000;

/// Where a run goes on.
#[derive(Debug)]
pub(crate) struct ResumePoint {
    /// The last step that still counts.
    pub(crate) step: Step,
    /// The checkpoint's folder; none at the beginning.
    checkpoint: Option<PathBuf>,
    /// Names of what was measured before the first step and stands in the store.
    measured: BTreeSet<String>,
}

impl ResumePoint {
    /// The newest checkpoint, or the one that the user names: `step-000020`, `20` or its path.
    ///
    /// # Errors
    /// There is none of this name, or there were checkpoints once.
    pub(crate) fn choose(dir: &RunDir, reader: &Reader, from: Option<&str>) -> Result<Self> {
        let mut found = dir.checkpoint_folders();
        let chosen = match from {
            Some(from) => {
                let position = found
                    .iter()
                    .position(|(step, _)| Some(*step) == named_step(from))
                    .ok_or_else(|| no_such(dir, from, &found))?;
                Some(found.swap_remove(position))
            }
            None => found.pop(),
        };
        if let Some((step, checkpoint)) = chosen {
            return Ok(Self {
                step,
                checkpoint: Some(checkpoint),
                measured: BTreeSet::new(),
            });
        }
        Ok(Self {
            step: Step(0),
            checkpoint: None,
            measured: measured_at_start(dir, reader)?,
        })
    }

    /// Where the training starts; none where the run itself began.
    pub(crate) fn start(&self) -> Option<Start> {
        self.checkpoint.clone().map(Start::From)
    }

    /// The run's configuration without what need not be measured a second time.
    pub(crate) fn unmeasured(&self, train: &TrainConfig) -> TrainConfig {
        let has = |part: &str| self.measured.iter().any(|name| name.starts_with(part));
        TrainConfig {
            eval_on_start: train.eval_on_start && !has(EVAL_LOSS),
            ngram_baselines: train.ngram_baselines && !has("baseline/"),
            ..train.clone()
        }
    }

    /// The learning rate that a client set last at a step. The step's checkpoint may have been
    /// written before, and then knows nothing of it.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(crate) fn learning_rate_set(reader: &Reader, at: Step) -> Result<Option<Asked>> {
        let asked = |event: Event| match event.body {
            EventBody::Request {
                by,
                request: request @ Request::SetLearningRate { .. },
                reason,
            } if event.step == at => Some(Asked {
                by,
                request,
                reason,
            }),
            _ => None,
        };
        Ok(reader.requests()?.into_iter().filter_map(asked).next_back())
    }

    /// What to warn of if the run's history does not reach the step that it goes on from: the power
    /// failed, or the store was damaged.
    pub(crate) fn gap(&self, dir: &RunDir, row: &RunRow) -> Option<String> {
        if row.last_step >= self.step {
            return None;
        }
        let kept = set_aside_stores(dir.path());
        let kept = kept.last().and_then(|path| path.file_name());
        let kept = kept.map_or_else(String::new, |name| {
            format!("; a damaged store is kept as {}", name.display())
        });
        Some(format!(
            "the run's history ends at step {} and the checkpoint is of step {}: what was recorded between \
             them is lost{kept}",
            row.last_step, self.step
        ))
    }

    /// Half a sentence for people.
    pub(crate) fn describe(&self) -> String {
        match &self.checkpoint {
            Some(folder) => format!("resuming from step {}: {}", self.step, folder.display()),
            None => "beginning again: the run was ended before its first checkpoint".to_owned(),
        }
    }

    /// The error of a start that failed; if the checkpoint is damaged, with the older one to take.
    pub(crate) fn explain(&self, dir: &RunDir, error: Error) -> Error {
        let Some(checkpoint) = &self.checkpoint else {
            return error;
        };
        let is_damage = |fault: &Error| fault.message() == error.message();
        if !host_train::verify_checkpoint(checkpoint).is_err_and(|fault| is_damage(&fault)) {
            return error;
        }
        let run = how_to_name(dir);
        let older = dir.checkpoint_folders().into_iter().rev();
        let whole = older
            .filter(|(step, _)| *step < self.step)
            .find(|(_, path)| host_train::verify_checkpoint(path).is_ok());
        error.hint(match whole {
            Some((_, path)) => {
                let name = path.file_name().unwrap_or_default().display().to_string();
                format!(
                    "`host resume {run} --from {name}` resumes from the one before, which is whole"
                )
            }
            None => format!(
                "no older checkpoint is whole; `host run {} --name OTHER` trains the same again",
                quoted(&dir.config_file())
            ),
        })
    }
}

fn named_step(from: &str) -> Option<Step> {
    let name = Path::new(from).file_name()?.to_str()?;
    Step::of_checkpoint(name).or_else(|| name.parse().ok().map(Step))
}

fn no_such(dir: &RunDir, from: &str, found: &[(Step, PathBuf)]) -> Error {
    let folder = dir.checkpoints();
    let message = format!("the run has no checkpoint {from}: {}", folder.display());
    let names: Vec<String> = found
        .iter()
        .filter_map(|(_, path)| Some(path.file_name()?.display().to_string()))
        .collect();
    let error = Error::new(ErrorKind::Config, message);
    match names.is_empty() {
        true => error.hint("it has none at all; without --from it begins again"),
        false => error.hint(format!("it has {}", names.join(", "))),
    }
}

/// What was measured at step 0 of a run that never had a checkpoint.
fn measured_at_start(dir: &RunDir, reader: &Reader) -> Result<BTreeSet<String>> {
    let mut measured = BTreeSet::new();
    let mut cursor = 0;
    loop {
        let page = reader.events_after(cursor, PAGE)?;
        let Some(last) = page.last() else {
            return Ok(measured);
        };
        cursor = last.seq;
        for event in page {
            match event.body {
                EventBody::CheckpointWritten { .. } => return Err(gone(dir)),
                EventBody::Metrics { values } if event.step == Step(0) => {
                    measured.extend(values.iter().map(|value| value.name.to_string()));
                }
                _ => {}
            }
        }
    }
}

fn gone(dir: &RunDir) -> Error {
    let folder = dir.checkpoints();
    let message = format!("the run's checkpoints are gone: {}", folder.display());
    Error::new(ErrorKind::Config, message).hint(format!(
        "bring one back, or train the same again: `host run {} --name OTHER`",
        quoted(&dir.config_file())
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_named_by_its_folder_its_step_or_its_path() {
        for name in ["step-000020", "20", "runs/a/checkpoints/step-000020/"] {
            assert_eq!(named_step(name), Some(Step(20)), "{name}");
        }
        for name in ["", "step-", "newest", "step-000020.superseded-1", "/"] {
            assert_eq!(named_step(name), None, "{name}");
        }
    }
}
