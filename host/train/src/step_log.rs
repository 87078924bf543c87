use std::sync::Arc;
use std::time::{Duration, Instant};

use host_core::{Emitter, Error, EventBody, Kind, MetricValue, Result, Step};
use tch::Tensor;

use crate::TrainConfig;
use crate::config::OnNonfinite;
use crate::data::Loader;

/// Turns what the loop measures into events.
///
/// A step's loss and gradient norm are read from the device when the next step is under way, so that
/// the loop never waits for them.
pub(crate) struct StepLog {
    emitter: Emitter,
    names: Names,
    on_nonfinite: OnNonfinite,
    tokens_per_sequence: u64,
    pending: Option<Pending>,
    /// Sequences trained on when the last step ended.
    sequences: u64,
    waited: Duration,
    /// When the step under way began; none while something else goes on.
    began: Option<Instant>,
}

struct Pending {
    step: Step,
    loss: Tensor,
    norm: Tensor,
    values: Vec<MetricValue>,
}

/// The names are shared, not made anew each step.
struct Names {
    loss: Arc<str>,
    lr: Arc<str>,
    grad_norm: Arc<str>,
    samples: Arc<str>,
    steps: Arc<str>,
    tokens: Arc<str>,
    tokens_per_second: Arc<str>,
    step_secs: Arc<str>,
    data_wait_secs: Arc<str>,
    checkpoint_copy_secs: Arc<str>,
    checkpoint_wait_secs: Arc<str>,
    eval_secs: Arc<str>,
}

impl StepLog {
    pub(crate) fn new(emitter: Emitter, config: &TrainConfig, sequences: u64) -> Self {
        Self {
            emitter,
            names: Names {
                loss: "loss/train".into(),
                lr: "lr".into(),
                grad_norm: "grad_norm".into(),
                samples: "samples".into(),
                steps: "steps".into(),
                tokens: "tokens".into(),
                tokens_per_second: "tokens_per_second".into(),
                step_secs: "step_secs".into(),
                data_wait_secs: "data_wait_secs".into(),
                checkpoint_copy_secs: "checkpoint_copy_secs".into(),
                checkpoint_wait_secs: "checkpoint_wait_secs".into(),
                eval_secs: "eval_secs".into(),
            },
            on_nonfinite: config.on_nonfinite,
            tokens_per_sequence: config.seq_length.unsigned_abs(),
            pending: None,
            sequences,
            waited: Duration::ZERO,
            began: Some(Instant::now()),
        }
    }

    /// A step was done, all of it but the reading of `loss` and `norm` (0-d).
    ///
    /// # Errors
    /// The step *before* had a loss or gradient that is not finite, and the configuration says stop.
    pub(crate) fn stepped(
        &mut self,
        step: Step,
        learning_rate: f64,
        loss: Tensor,
        norm: Tensor,
        loader: &Loader,
    ) -> Result<()> {
        let now = Instant::now();
        let took = self
            .began
            .replace(now)
            .map_or(Duration::ZERO, |began| now - began)
            .as_secs_f64();
        let sequences = loader.cursor().sequences;
        let tokens = (sequences - self.sequences) * self.tokens_per_sequence;
        let names = &self.names;
        let values = vec![
            MetricValue::new(names.lr.clone(), learning_rate),
            MetricValue::new(names.samples.clone(), sequences as f64),
            MetricValue::new(names.steps.clone(), step.0 as f64),
            MetricValue::new(
                names.tokens.clone(),
                (sequences * self.tokens_per_sequence) as f64,
            ),
            MetricValue::new(
                names.tokens_per_second.clone(),
                tokens as f64 / took.max(1e-9),
            ),
            MetricValue::new(names.step_secs.clone(), took),
            MetricValue::new(
                names.data_wait_secs.clone(),
                (loader.waited - self.waited).as_secs_f64(),
            ),
        ];
        self.sequences = sequences;
        self.waited = loader.waited;
        let before = self.pending.replace(Pending {
            step,
            loss,
            norm,
            values,
        });
        before.map_or(Ok(()), |before| self.emit(before))
    }

    /// Reads and emits what is pending.
    ///
    /// # Errors
    /// As for [`StepLog::stepped`], of the last step.
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.pending
            .take()
            .map_or(Ok(()), |pending| self.emit(pending))
    }

    /// What follows is no part of a step: its time counts for none.
    pub(crate) fn pause(&mut self) {
        self.began = Some(Instant::now());
    }

    /// An evaluation gave these values; the next step begins.
    pub(crate) fn evaluated(&mut self, step: Step, values: &[MetricValue]) {
        let took = self.began.map_or(Duration::ZERO, |began| began.elapsed());
        for value in values.iter().filter(|value| !value.value.is_finite()) {
            let message = format!("the evaluation gave {} = {}", value.name, value.value);
            self.emitter.emit(step, EventBody::Warning { message });
        }
        let mut values = values.to_vec();
        values.push(MetricValue::new(
            self.names.eval_secs.clone(),
            took.as_secs_f64(),
        ));
        self.emitter.emit(step, EventBody::Metrics { values });
        self.pause();
    }

    /// A snapshot was taken; the next step begins.
    pub(crate) fn saved(&mut self, step: Step, waited: Duration, copied: Duration) {
        let values = vec![
            MetricValue::new(
                self.names.checkpoint_wait_secs.clone(),
                waited.as_secs_f64(),
            ),
            MetricValue::new(
                self.names.checkpoint_copy_secs.clone(),
                copied.as_secs_f64(),
            ),
        ];
        self.emitter.emit(step, EventBody::Metrics { values });
        self.pause();
    }

    fn emit(&self, pending: Pending) -> Result<()> {
        let Pending {
            step,
            loss,
            norm,
            mut values,
        } = pending;
        let (loss, norm) = (loss.double_value(&[]), norm.double_value(&[]));
        values.insert(0, MetricValue::new(self.names.loss.clone(), loss));
        values.insert(2, MetricValue::new(self.names.grad_norm.clone(), norm));
        self.emitter.emit(step, EventBody::Metrics { values });
        if loss.is_finite() && norm.is_finite() {
            return Ok(());
        }
        let what = format!("loss {loss} with gradient norm {norm} at step {step}");
        let then = match self.on_nonfinite {
            OnNonfinite::Continue => "on_nonfinite is continue: the weights took it",
            OnNonfinite::Skip => "the step was skipped",
            OnNonfinite::Stop => {
                return Err(Error::new(Kind::Training, format!("training diverged: {what}")).hint(
                    "resume from the last checkpoint with a lower learning rate, or set on_nonfinite to skip",
                ));
            }
        };
        self.emitter.emit(
            step,
            EventBody::Warning {
                message: format!("{what}: {then}"),
            },
        );
        Ok(())
    }
}
