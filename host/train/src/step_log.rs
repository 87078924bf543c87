use std::sync::Arc;
use std::time::{Duration, Instant};

use host_core::{Emitter, Error, EventBody, Kind, MetricValue, Result, Step};
use tch::Tensor;

use crate::TrainConfig;
use crate::config::OnNonfinite;
use crate::data::Loader;
use crate::flops;
use crate::model::Gpt2;

/// Turns what the loop measures into events.
///
/// A step's loss and gradient norm are read from the device when the next step is under way, so that
/// the loop never waits for them.
pub(crate) struct StepLog {
    emitter: Emitter,
    names: Names,
    on_nonfinite: OnNonfinite,
    tokens_per_sequence: u64,
    /// What the model needs for a token, and what the device can do in a second.
    flops_per_token: f64,
    peak_flops: f64,
    pending: Option<Pending>,
    /// Sequences trained on when the last step ended.
    sequences: u64,
    waited: Duration,
    /// When what is under way began: a step, an evaluation, a checkpoint.
    began: Instant,
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
    model_flops_per_second: Arc<str>,
    mfu: Arc<str>,
    step_secs: Arc<str>,
    data_wait_secs: Arc<str>,
    checkpoint_copy_secs: Arc<str>,
    checkpoint_wait_secs: Arc<str>,
    eval_secs: Arc<str>,
}

impl StepLog {
    pub(crate) fn new(
        emitter: Emitter,
        config: &TrainConfig,
        model: &Gpt2,
        loader: &Loader,
    ) -> Self {
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
                model_flops_per_second: "model_flops_per_second".into(),
                mfu: "mfu".into(),
                step_secs: "step_secs".into(),
                data_wait_secs: "data_wait_secs".into(),
                checkpoint_copy_secs: "checkpoint_copy_secs".into(),
                checkpoint_wait_secs: "checkpoint_wait_secs".into(),
                eval_secs: "eval_secs".into(),
            },
            on_nonfinite: config.on_nonfinite,
            tokens_per_sequence: config.seq_length.unsigned_abs(),
            flops_per_token: flops::per_token(&model.config, config.seq_length),
            peak_flops: flops::device_peak(model.device, config.precision),
            pending: None,
            sequences: loader.cursor().sequences,
            waited: Duration::ZERO,
            began: Instant::now(),
        }
    }

    /// Something begins: a step, an evaluation, a checkpoint. Returns how long it is since the last
    /// thing began.
    pub(crate) fn begin(&mut self) -> Duration {
        let now = Instant::now();
        now - std::mem::replace(&mut self.began, now)
    }

    /// A step was done, all of it but the reading of `loss` and `norm` (0-d), and the next begins.
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
        let took = self.begin().as_secs_f64().max(1e-9);
        let sequences = loader.cursor().sequences;
        let tokens = (sequences - self.sequences) * self.tokens_per_sequence;
        let tokens_per_second = tokens as f64 / took;
        let flops = tokens_per_second * self.flops_per_token;
        let data_wait = loader.waited - self.waited;
        let names = &self.names;
        let value = |name: &Arc<str>, value| MetricValue::new(name.clone(), value);
        let values = vec![
            value(&names.lr, learning_rate),
            value(&names.samples, sequences as f64),
            value(&names.steps, step.0 as f64),
            value(&names.tokens, (sequences * self.tokens_per_sequence) as f64),
            value(&names.tokens_per_second, tokens_per_second),
            value(&names.model_flops_per_second, flops),
            value(&names.mfu, flops / self.peak_flops),
            value(&names.step_secs, took),
            value(&names.data_wait_secs, data_wait.as_secs_f64()),
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

    /// An evaluation gave these values, and something else begins.
    pub(crate) fn evaluated(&mut self, step: Step, values: &[MetricValue]) {
        let took = self.begin();
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
    }

    /// A snapshot was taken, and something else begins.
    pub(crate) fn saved(&mut self, step: Step, waited: Duration, copied: Duration) {
        let value =
            |name: &Arc<str>, took: Duration| MetricValue::new(name.clone(), took.as_secs_f64());
        let values = vec![
            value(&self.names.checkpoint_wait_secs, waited),
            value(&self.names.checkpoint_copy_secs, copied),
        ];
        self.emitter.emit(step, EventBody::Metrics { values });
        self.begin();
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
                return Err(Error::new(Kind::Training, format!("training diverged: {what}"))
                    .hint("resume from the last checkpoint with a lower learning rate, or set on_nonfinite to skip"));
            }
        };
        let message = format!("{what}: {then}");
        self.emitter.emit(step, EventBody::Warning { message });
        Ok(())
    }
}
