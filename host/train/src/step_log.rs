use std::sync::Arc;
use std::time::{Duration, Instant};

use host_core::{Emitter, Error, ErrorKind, EventBody, MetricValue, Result, Step};
use tch::{Device, Kind, Tensor};

use crate::TrainConfig;
use crate::collective::Collective;
use crate::config::OnNonfinite;
use crate::data::Loader;
use crate::memory;
use crate::model::{Decoder, flops};
use crate::ranks::Measured;
use crate::torch_shim::Readback;

/// Emits the loop's measurements as events.
///
/// On CUDA, a step is queued before the device has finished the previous step. The loss, the gradient norm
/// and the time of a step are therefore available only while the next step runs. On the CPU they are
/// available at once.
pub(crate) struct StepLog {
    emitter: Emitter,
    names: Names,
    on_nonfinite: OnNonfinite,
    device: Device,
    tokens_per_sequence: u64,
    /// Operations that the model needs per token.
    flops_per_token: f64,
    /// Operations that the devices of all ranks can do per second.
    peak_flops: f64,
    pending: Option<Pending>,
    /// Number of sequences that the run had used for training when the last step ended.
    sequences: u64,
    waited: Duration,
    /// When the current step, evaluation or checkpoint began.
    began: Instant,
    collective: Collective,
    /// The steps since the last call of [`StepLog::measured`].
    since: Totals,
}

/// Totals of several steps.
#[derive(Default)]
struct Totals {
    steps: u32,
    secs: f64,
    data_wait: f64,
    /// The total time that this rank had waited for others when the first of the steps began.
    waited_before: Duration,
}

/// A step that the device may not have finished.
struct Pending {
    step: Step,
    learning_rate: f64,
    /// Loss and gradient norm: a tensor of two f64.
    results: Readback,
    /// Number of sequences that the run has used for training when the step ends.
    sequences: u64,
    /// Number of sequences in this step.
    new_sequences: u64,
    data_wait: Duration,
}

/// The names of the loop's metrics, allocated once and shared by all events.
macro_rules! names {
    ($($field:ident: $name:literal,)*) => {
        struct Names {
            $($field: Arc<str>,)*
        }

        impl Names {
            #[cfg(test)]
            const ALL: &[&str] = &[$($name),*];

            fn new() -> Self {
                Self {
                    $($field: $name.into(),)*
                }
            }
        }
    };
}

names! {
    loss: "loss/train",
    lr: "lr",
    grad_norm: "grad_norm",
    samples: "samples",
    steps: "steps",
    tokens: "tokens",
    tokens_per_second: "tokens_per_second",
    model_flops_per_second: "model_flops_per_second",
    mfu: "mfu",
    step_secs: "step_secs",
    data_wait_secs: "data_wait_secs",
    checkpoint_copy_secs: "checkpoint_copy_secs",
    checkpoint_wait_secs: "checkpoint_wait_secs",
    peak_memory_bytes: "peak_memory_bytes",
    eval_secs: "eval_secs",
}

impl StepLog {
    pub(crate) fn new(
        emitter: Emitter,
        config: &TrainConfig,
        model: &Decoder,
        loader: &Loader,
        collective: Collective,
    ) -> Self {
        let ranks = collective.share().of as f64;
        Self {
            emitter,
            names: Names::new(),
            on_nonfinite: config.on_nonfinite,
            device: model.device,
            tokens_per_sequence: config.seq_length.unsigned_abs(),
            flops_per_token: flops::per_token(&model.config.shape, config.seq_length),
            peak_flops: ranks * flops::device_peak(model.device, config.precision),
            pending: None,
            sequences: loader.cursor().sequences,
            waited: Duration::ZERO,
            began: Instant::now(),
            since: Totals {
                waited_before: collective.waited(),
                ..Totals::default()
            },
            collective,
        }
    }

    /// Starts timing a step, an evaluation or a checkpoint. Returns the time since the previous start.
    pub(crate) fn begin(&mut self) -> Duration {
        let now = Instant::now();
        now - std::mem::replace(&mut self.began, now)
    }

    /// Logs a step that was queued on the device, with its `loss` and `norm` (0-d). Then starts timing the
    /// next step.
    ///
    /// # Errors
    /// Returns an error if `on_nonfinite` is `stop` and the loss or the gradient norm of a step is not
    /// finite. On the CPU, the step that is being logged is checked. On CUDA, the step before it is checked.
    pub(crate) fn stepped(
        &mut self,
        step: Step,
        learning_rate: f64,
        loss: Tensor,
        norm: Tensor,
        loader: &Loader,
    ) -> Result<()> {
        let results = Tensor::stack(&[loss, norm.to_kind(Kind::Double)], 0);
        let sequences = loader.cursor().sequences;
        let given = Pending {
            step,
            learning_rate,
            results: Readback::begin(&results)?,
            sequences,
            new_sequences: sequences - self.sequences,
            data_wait: loader.waited - self.waited,
        };
        self.sequences = sequences;
        self.waited = loader.waited;
        let done = if self.device.is_cuda() {
            self.pending.replace(given)
        } else {
            Some(given)
        };
        done.map_or(Ok(()), |done| self.emit(done))
    }

    /// Waits for the pending step, if there is one, and emits its values.
    ///
    /// # Errors
    /// See [`StepLog::stepped`].
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.pending
            .take()
            .map_or(Ok(()), |pending| self.emit(pending))
    }

    /// Returns means of the steps since the last call, or `None` if there were none.
    pub(crate) fn measured(&mut self) -> Option<Measured> {
        let waited = self.collective.waited();
        let next = Totals {
            waited_before: waited,
            ..Totals::default()
        };
        let totals = std::mem::replace(&mut self.since, next);
        let steps = f64::from(totals.steps);
        (totals.steps > 0).then(|| Measured {
            step_secs: totals.secs / steps,
            wait_secs: (waited - totals.waited_before).as_secs_f64() / steps,
            data_wait_secs: totals.data_wait / steps,
            memory_bytes: memory::resident_bytes().unwrap_or(0) as f64,
        })
    }

    /// Emits the values and the time of an evaluation, and starts the next timing.
    pub(crate) fn evaluated(&mut self, step: Step, values: &[MetricValue]) {
        let took = self.begin();
        for value in values.iter().filter(|value| !value.value.is_finite()) {
            let message = format!(
                "non-finite evaluation value: {} = {}",
                value.name, value.value
            );
            self.emitter.emit(step, EventBody::Warning { message });
        }
        let mut values = values.to_vec();
        values.push(MetricValue::new(
            self.names.eval_secs.clone(),
            took.as_secs_f64(),
        ));
        self.emitter.emit(step, EventBody::Metrics { values });
    }

    /// Emits the times and the memory of a checkpoint's snapshot, and starts the next timing.
    pub(crate) fn saved(&mut self, step: Step, waited: Duration, copied: Duration) {
        let value = |name: &Arc<str>, value: f64| MetricValue::new(name.clone(), value);
        let mut values = vec![
            value(&self.names.checkpoint_wait_secs, waited.as_secs_f64()),
            value(&self.names.checkpoint_copy_secs, copied.as_secs_f64()),
        ];
        if let Some(bytes) = memory::peak_bytes(self.device) {
            values.push(value(&self.names.peak_memory_bytes, bytes as f64));
        }
        self.emitter.emit(step, EventBody::Metrics { values });
        self.begin();
    }

    fn emit(&mut self, pending: Pending) -> Result<()> {
        let step = pending.step;
        let results = pending.results.finish()?;
        let (loss, norm) = (results.double_value(&[0]), results.double_value(&[1]));
        let took = self.begin().as_secs_f64().max(1e-9);
        self.since.steps += 1;
        self.since.secs += took;
        self.since.data_wait += pending.data_wait.as_secs_f64();
        let tokens = pending.new_sequences * self.tokens_per_sequence;
        let all_tokens = pending.sequences * self.tokens_per_sequence;
        let tokens_per_second = tokens as f64 / took;
        let flops = tokens_per_second * self.flops_per_token;
        let names = &self.names;
        let value = |name: &Arc<str>, value| MetricValue::new(name.clone(), value);
        let values = vec![
            value(&names.loss, loss),
            value(&names.lr, pending.learning_rate),
            value(&names.grad_norm, norm),
            value(&names.samples, pending.sequences as f64),
            value(&names.steps, step.0 as f64),
            value(&names.tokens, all_tokens as f64),
            value(&names.tokens_per_second, tokens_per_second),
            value(&names.model_flops_per_second, flops),
            value(&names.mfu, flops / self.peak_flops),
            value(&names.step_secs, took),
            value(&names.data_wait_secs, pending.data_wait.as_secs_f64()),
        ];
        self.emitter.emit(step, EventBody::Metrics { values });
        if loss.is_finite() && norm.is_finite() {
            return Ok(());
        }
        let what = format!("loss {loss} with gradient norm {norm} at step {step}");
        let then = match self.on_nonfinite {
            OnNonfinite::Continue => "the weights were updated, because on_nonfinite is continue",
            OnNonfinite::Skip => "the step was skipped",
            OnNonfinite::Stop => {
                return Err(Error::new(ErrorKind::Training, format!("training diverged: {what}"))
                    .hint("set a lower learning_rate or on_nonfinite = \"skip\" in the run's run.toml, and run `host resume` to continue from the last checkpoint"));
            }
        };
        let message = format!("{what}: {then}");
        self.emitter.emit(step, EventBody::Warning { message });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_the_loops_metrics_are_reserved() {
        assert_eq!(Names::ALL, host_core::HOST_METRICS);
    }
}
