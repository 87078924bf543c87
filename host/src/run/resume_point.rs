//! Where a run resumes: at its newest checkpoint, at an older checkpoint that the user chooses, or at step 0
//! if it ended before its first checkpoint.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use host_core::{Asked, EVAL_LOSS, Error, ErrorKind, Event, EventBody, Request, Result, Step};
use host_store::{Reader, RunRow, set_aside_stores};
use host_train::{Start, TrainConfig};

use crate::runs::RunDir;
use crate::runs::{how_to_name, quoted};

/// Number of events to read at a time.
const PAGE: usize = 10_000;

/// Where a run resumes.
#[derive(Debug)]
pub(crate) struct ResumePoint {
    /// The last step that the run keeps.
    pub(crate) step: Step,
    /// The checkpoint's folder. None: the run starts from step 0.
    checkpoint: Option<PathBuf>,
    /// Names of the metrics that were measured before the first step, according to the store.
    measured: BTreeSet<String>,
}

impl ResumePoint {
    /// Chooses the checkpoint `from`, or the newest checkpoint if `from` is `None`. `from` is the name of a
    /// checkpoint (`step-000020`), its step (`20`) or its path.
    ///
    /// # Errors
    /// Returns an error if the checkpoint `from` does not exist, or the run has lost all its checkpoints.
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

    /// Returns the checkpoint from which the trainer starts. None: the trainer starts as it did when the run
    /// was new.
    pub(crate) fn start(&self) -> Option<Start> {
        self.checkpoint.clone().map(Start::From)
    }

    /// Returns the configuration. Disables measurements before the first step if the store already has their
    /// results.
    pub(crate) fn unmeasured(&self, train: &TrainConfig) -> TrainConfig {
        let has = |part: &str| self.measured.iter().any(|name| name.starts_with(part));
        TrainConfig {
            eval_on_start: train.eval_on_start && !has(EVAL_LOSS),
            ngram_baselines: train.ngram_baselines && !has("baseline/"),
            ..train.clone()
        }
    }

    /// Changes the accumulation so that a step has as many sequences as before, if the checkpoint's training ran on
    /// several ranks, or if this one does. Returns a warning about the change.
    ///
    /// # Errors
    /// Returns an error if no accumulation gives the same number of sequences.
    pub(crate) fn keep_global_batch(
        &self,
        train: &mut TrainConfig,
        ranks: usize,
    ) -> Result<Option<String>> {
        let Some(checkpoint) = &self.checkpoint else {
            return Ok(None);
        };
        let micro_batch = train.train_batch_size.unsigned_abs();
        let accumulation = train.gradient_accumulation_steps;
        let ranks = ranks as u64;
        let stored = host_train::global_batch(checkpoint);
        // A checkpoint without the number is of a single process.
        let wanted = match stored {
            Some(stored) => stored,
            None if ranks == 1 => return Ok(None),
            None => micro_batch * accumulation,
        };
        let at_once = micro_batch * ranks;
        if wanted == at_once * accumulation {
            return Ok(None);
        }
        if wanted.is_multiple_of(at_once) {
            let now = wanted / at_once;
            train.gradient_accumulation_steps = now;
            return Ok(Some(format!(
                "gradient_accumulation_steps is {now} instead of {accumulation}, so that a step still has {wanted} sequences on {ranks} ranks"
            )));
        }
        let fits = |ranks: &u64| wanted.is_multiple_of(micro_batch * ranks);
        let fitting: Vec<String> = (1..=2 * ranks.max(8))
            .filter(fits)
            .map(|ranks| ranks.to_string())
            .collect();
        let message = format!(
            "a step of this run has {wanted} sequences, which {ranks} ranks with batches of {micro_batch} cannot divide"
        );
        Err(
            Error::new(ErrorKind::Config, message).hint(match fitting.is_empty() {
                false => format!(
                    "use a number of ranks from this list: {}",
                    fitting.join(", ")
                ),
                true => "use another train_batch_size".to_owned(),
            }),
        )
    }

    /// Returns the last request at this step that set the learning rate. If a checkpoint of this step was
    /// written before the request, the checkpoint does not contain that learning rate.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
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

    /// Returns a warning if the stored events end before the checkpoint's step. Possible causes are a power
    /// failure and a damaged store.
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
            "the run's history ends at step {}, but the checkpoint is from step {}: the events between them \
             are lost{kept}",
            row.last_step, self.step
        ))
    }

    /// Describes the point for users.
    pub(crate) fn describe(&self) -> String {
        match &self.checkpoint {
            Some(folder) => format!("resuming from step {}: {}", self.step, folder.display()),
            None => {
                "starting again from step 0: the run ended before its first checkpoint".to_owned()
            }
        }
    }

    /// Returns the error of a failed start. If the checkpoint is damaged, the hint names an older one.
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
                    "resume from an older, undamaged checkpoint: `host resume {run} --from {name}`"
                )
            }
            None => format!(
                "repeat the run, which has no undamaged checkpoint: `host run {} --name OTHER`",
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
        true => {
            error.hint("leave out --from to start again from step 0; the run has no checkpoints")
        }
        false => error.hint(format!("choose one of {}", names.join(", "))),
    }
}

/// Returns the names of the metrics that were measured at step 0. Called if the run has no checkpoint.
/// Returns an error if the run once wrote a checkpoint, which is now missing.
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
    let message = format!("the run's checkpoints are missing: {}", folder.display());
    Error::new(ErrorKind::Config, message).hint(format!(
        "restore one, or repeat the run: `host run {} --name OTHER`",
        quoted(&dir.config_file())
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_given_by_its_folder_its_step_or_its_path() {
        for name in ["step-000020", "20", "runs/a/checkpoints/step-000020/"] {
            assert_eq!(named_step(name), Some(Step(20)), "{name}");
        }
        for name in ["", "step-", "newest", "step-000020.superseded-1", "/"] {
            assert_eq!(named_step(name), None, "{name}");
        }
    }
}
