//! The settings that a checkpoint's state depends on. With other settings, the data position, the shuffle
//! buffer and the random numbers would have a different meaning.
//!
//! Other conditions for a resume are checked elsewhere: the data by names, sizes and contents; the model by
//! its configuration; the tokenizer by its file. All other settings can change on resume without changing the
//! meaning of the state. For example, the schedule is a function of the step, and the batch sizes only
//! determine how many sequences are drawn. The shuffle buffer grows or shrinks to its new size. Device,
//! threads and bf16 only change the arithmetic.

use std::path::Path;

use host_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use crate::config::{Precision, TrainConfig};

/// The settings when the checkpoint was written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Setup {
    seq_length: i64,
    seed: i64,
    precision: Precision,
    text_column: String,
    data_weights: Vec<f64>,
    /// Set if the evaluation data is held out from the training data.
    valid_every: Option<u64>,
    /// Set if the vocabulary's size was given.
    vocab_size: Option<i64>,
    /// Absent in checkpoints of older versions, which did not have this setting.
    #[serde(default)]
    split_special_tokens: bool,
}

impl Setup {
    pub(crate) fn of(config: &TrainConfig) -> Self {
        Self {
            seq_length: config.seq_length,
            seed: config.seed,
            precision: config.precision,
            text_column: config.text_column.clone(),
            data_weights: config.data_weights.clone(),
            valid_every: config.valid_data.is_empty().then_some(config.valid_every),
            vocab_size: config.vocab_size,
            split_special_tokens: config.split_special_tokens,
        }
    }

    /// Checks that a run with these settings can be resumed from the checkpoint in `folder`.
    ///
    /// # Errors
    /// Returns an error that names the first setting that has changed but must not.
    pub(super) fn check(&self, config: &TrainConfig, folder: &Path) -> Result<()> {
        let now = Self::of(config);
        check(folder, "seq_length", self.seq_length, now.seq_length)?;
        check(folder, "seed", self.seed, now.seed)?;
        if (self.precision == Precision::F64) != (now.precision == Precision::F64) {
            let name = |precision: Precision| {
                serde_json::to_value(precision)
                    .unwrap_or_default()
                    .as_str()
                    .unwrap_or("")
                    .to_owned()
            };
            check(
                folder,
                "precision",
                name(self.precision),
                name(now.precision),
            )?;
        }
        check(
            folder,
            "text_column",
            self.text_column.clone(),
            now.text_column,
        )?;
        check(
            folder,
            "data_weights",
            list(&self.data_weights),
            list(&now.data_weights),
        )?;
        check(
            folder,
            "split_special_tokens",
            self.split_special_tokens,
            now.split_special_tokens,
        )?;
        match (self.valid_every, now.valid_every) {
            (Some(then), Some(now)) => check(folder, "valid_every", then, now)?,
            (None, None) => {}
            (then, _) => {
                let (then, now, way) = match then {
                    Some(_) => ("a part of the training data", "separate data", "without"),
                    None => (
                        "separate data",
                        "a part of the training data",
                        "with the same",
                    ),
                };
                return Err(changed(
                    folder,
                    "valid_data",
                    then,
                    now,
                    &format!("{way} --valid-data"),
                ));
            }
        }
        match (self.vocab_size, now.vocab_size) {
            (then, Some(now)) if then != Some(now) => {
                let then = then.map_or("the model's".to_owned(), |then| then.to_string());
                check(folder, "vocab_size", then, now.to_string())
            }
            _ => Ok(()),
        }
    }
}

/// Compares one setting.
///
/// # Errors
/// Returns an error if it has changed.
pub(crate) fn check<T: PartialEq + std::fmt::Display>(
    folder: &Path,
    name: &str,
    then: T,
    now: T,
) -> Result<()> {
    if then == now {
        return Ok(());
    }
    let flag = name.replace('_', "-");
    let way = format!("with the same --{flag}");
    Err(changed(folder, name, then, now, &way))
}

/// Returns the error for a setting that changed. `way` explains how to resume instead.
fn changed(
    folder: &Path,
    name: &str,
    then: impl std::fmt::Display,
    now: impl std::fmt::Display,
    way: &str,
) -> Error {
    let place = folder.display();
    let message =
        format!("{name} is {now}, but was {then} when the checkpoint was written: {place}");
    Error::new(ErrorKind::Config, message).hint(format!(
        "resume {way}, or start a new run with --model {place}"
    ))
}

fn list(weights: &[f64]) -> String {
    let weights: Vec<String> = weights.iter().map(f64::to_string).collect();
    format!("[{}]", weights.join(", "))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::config::{OnNonfinite, SchedulerType};

    /// Resumes a run with changed settings. Returns the setting that the error names, if there is an error.
    fn refused(change: impl Fn(&mut TrainConfig)) -> Option<String> {
        let mut config = TrainConfig::default();
        let setup = Setup::of(&config);
        // Converted to JSON and back, as in a checkpoint.
        let json = serde_json::to_string(&setup).expect("JSON");
        let setup: Setup = serde_json::from_str(&json).expect("the same");
        change(&mut config);
        let error = setup.check(&config, Path::new("/c")).err()?;
        assert!(error.message().ends_with(": /c"), "{error}");
        let (name, _) = error.message().split_once(" is ").expect("a name");
        let flag = format!("--{}", name.replace('_', "-"));
        assert!(
            error.hint_text().expect("a hint").contains(&flag),
            "{error}"
        );
        Some(name.to_owned())
    }

    #[test]
    fn settings_that_the_state_depends_on_cannot_change() {
        let name = |name: &str| Some(name.to_owned());
        assert_eq!(refused(|c| c.seq_length = 128), name("seq_length"));
        assert_eq!(refused(|c| c.seed = 2), name("seed"));
        assert_eq!(refused(|c| c.precision = Precision::F64), name("precision"));
        assert_eq!(
            refused(|c| c.text_column = "text".to_owned()),
            name("text_column")
        );
        assert_eq!(
            refused(|c| c.data_weights = vec![0.5]),
            name("data_weights")
        );
        assert_eq!(refused(|c| c.valid_every = 5), name("valid_every"));
        assert_eq!(
            refused(|c| c.valid_data = vec![PathBuf::from("v")]),
            name("valid_data")
        );
        assert_eq!(refused(|c| c.vocab_size = Some(300)), name("vocab_size"));
    }

    #[test]
    fn other_settings_can_change() {
        let changes: [fn(&mut TrainConfig); 20] = [
            |_| (),
            |c| c.precision = Precision::Bf16,
            |c| c.train_batch_size = 7,
            |c| c.valid_batch_size = 7,
            |c| c.gradient_accumulation_steps = 7,
            |c| c.gradient_checkpointing = false,
            |c| c.shuffle_buffer = 7,
            |c| c.weight_decay = 0.0,
            |c| c.learning_rate = 1.0,
            |c| c.lr_scheduler_type = SchedulerType::Linear,
            |c| c.num_warmup_steps = 7,
            |c| c.num_decay_steps = Some(7),
            |c| c.max_grad_norm = 7.0,
            |c| c.max_train_steps = 7,
            |c| c.max_eval_steps = 7,
            |c| c.save_checkpoint_steps = 7,
            |c| c.keep_checkpoints = 7,
            |c| c.on_nonfinite = OnNonfinite::Skip,
            |c| c.threads = Some(7),
            |c| c.device = "cuda".to_owned(),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            assert_eq!(refused(change), None, "{number}");
        }
    }
}
