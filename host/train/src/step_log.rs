use std::sync::Arc;
use std::time::{Duration, Instant};

use host_core::{Emitter, Error, ErrorKind, EventBody, MetricValue, Result, Step};
use tch::{Device, Kind, Tensor};

use crate::TrainConfig;
use crate::config::OnNonfinite;
use crate::data::Loader;
use crate::memory;
use crate::model::{Decoder, flops};
use crate::torch_shim::Readback;

/// Turns what the loop measures into events.
///
/// A CUDA device is given the next step before it has done the last: a step's loss and gradient norm
/// arrive, and its time is known, when the next one is under way. On the CPU they are there at once.
pub(crate) struct StepLog {
    emitter: Emitter,
    names: Names,
    on_nonfinite: OnNonfinite,
    device: Device,
    tokens_per_sequence: u64,
    /// What the model needs for a token, and what the device can do in a second.
    flops_per_token: f64,
    peak_flops: f64,
    pending: Option<Pending>,
    /// Sequences trained on when the last step ended.
    sequences: u64,
    waited: Duration,
    /// When what is to be timed began: a step, an evaluation, a checkpoint.
    began: Instant,
}

/// A step that the device may still be at.
struct Pending {
    step: Step,
    learning_rate: f64,
    /// Loss and gradient norm, (2) f64.
    results: Readback,
    /// Sequences trained on up to its end, and in it.
    sequences: u64,
    new_sequences: u64,
    data_wait: Duration,
}

/// The names of what the loop measures. They are shared, not made anew each step.
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
    ) -> Self {
        Self {
            emitter,
            names: Names::new(),
            on_nonfinite: config.on_nonfinite,
            device: model.device,
            tokens_per_sequence: config.seq_length.unsigned_abs(),
            flops_per_token: flops::per_token(&model.config.shape, config.seq_length),
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

    /// A step was given to the device, `loss` and `norm` (0-d) with it, and the next begins.
    ///
    /// # Errors
    /// This step, or on CUDA the one before, had a loss or gradient that is not finite, and the
    /// configuration says stop.
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
            OnNonfinite::Continue => "on_nonfinite is continue: the weights took it",
            OnNonfinite::Skip => "the step was skipped",
            OnNonfinite::Stop => {
                return Err(Error::new(ErrorKind::Training, format!("training diverged: {what}"))
                    .hint("set a lower learning_rate, or on_nonfinite = \"skip\", in the run's run.toml: `host resume` resumes from the last checkpoint with it"));
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
    fn no_plugin_can_take_a_name_of_the_loops() {
        assert_eq!(Names::ALL, host_core::HOST_METRICS);
    }
}
