use std::marker::PhantomData;

use host_core::{
    Device, Dtype, Error, EventBody, Kind, Metric, MetricBatch, MetricValue, Need, Result, Step,
    TensorView,
};
use tch::{Kind as TorchKind, Tensor, no_grad_guard};

use crate::batch;
use crate::data::Validation;
use crate::model::Gpt2;

/// The evaluation: the model over the validation set, seen by the metrics.
pub(crate) struct Evaluation {
    pub(crate) validation: Validation,
    pub(crate) batch_size: usize,
    /// Bytes of each token, (vocabulary) i64 on the model's device.
    pub(crate) byte_lengths: Tensor,
    pub(crate) metrics: Vec<Box<dyn Metric>>,
}

/// The host's own metric, unless a plugin gives it.
const LOSS: &str = "loss/eval";

impl Evaluation {
    /// Evaluates: every sequence once, without dropout. The loss is the mean over all predicted
    /// tokens. A metric that fails is missing from the values, and `fault` is told.
    pub(crate) fn evaluate(
        &mut self,
        model: &Gpt2,
        step: Step,
        fault: &mut dyn FnMut(EventBody),
    ) -> Vec<MetricValue> {
        self.run(model, step, usize::MAX, fault)
    }

    /// Shows one batch to every metric, so that one that cannot work ends the run before it begins.
    ///
    /// # Errors
    /// The first metric that fails, or two that give the same name.
    pub(crate) fn rehearse(&mut self, model: &Gpt2) -> Result<()> {
        let mut first_fault = None;
        let values = self.run(model, Step(0), 1, &mut |body| {
            if let EventBody::PluginFault { message, .. } = body {
                first_fault.get_or_insert(message);
            }
        });
        let mut names: Vec<&str> = values.iter().map(|value| &*value.name).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            first_fault.get_or_insert(format!("two metrics give a value called {:?}", pair[0]));
        }
        match first_fault {
            None => Ok(()),
            Some(message) => Err(Error::new(Kind::Plugin, message)
                .hint("leave the plugin out, or see `host plugin info` for what it needs")),
        }
    }

    fn run(
        &mut self,
        model: &Gpt2,
        step: Step,
        max_batches: usize,
        fault: &mut dyn FnMut(EventBody),
    ) -> Vec<MetricValue> {
        let _guard = no_grad_guard();
        let mut watched: Vec<Watched<'_>> = self
            .metrics
            .iter_mut()
            .map(|metric| Watched {
                metric: &mut **metric,
                failed: false,
            })
            .collect();
        for metric in &mut watched {
            metric.call("reset", fault, |metric| metric.reset());
        }
        let (mut loss_sum, mut token_count) = (0.0, 0);
        for sequences in self
            .validation
            .sequences
            .chunks(self.batch_size)
            .take(max_batches)
        {
            let inputs =
                Inputs::compute(model, &batch(sequences, model.device), &self.byte_lengths);
            loss_sum += inputs.loss_sum.double_value(&[]);
            token_count += inputs.token_count;
            for metric in &mut watched {
                let wanted = inputs.gather(metric.metric.needs(), metric.metric.reads_cuda());
                let tensors: Vec<_> = wanted.iter().map(Borrowed::view).collect();
                let seen = MetricBatch {
                    step: step.0,
                    tensors: &tensors,
                };
                metric.call("update", fault, |metric| metric.update(seen));
            }
        }
        let mut values = Vec::new();
        for metric in &mut watched {
            for (name, value) in metric
                .call("compute", fault, |metric| metric.compute())
                .unwrap_or_default()
            {
                values.push(MetricValue::new(name, value));
            }
        }
        if !values.iter().any(|value| &*value.name == LOSS) {
            values.insert(0, MetricValue::new(LOSS, loss_sum / token_count as f64));
        }
        values
    }
}

/// A metric within one evaluation: after its first failure it is left alone.
struct Watched<'a> {
    metric: &'a mut dyn Metric,
    failed: bool,
}

impl Watched<'_> {
    fn call<T>(
        &mut self,
        call: &str,
        fault: &mut dyn FnMut(EventBody),
        f: impl FnOnce(&mut dyn Metric) -> Result<T>,
    ) -> Option<T> {
        if self.failed {
            return None;
        }
        f(self.metric)
            .inspect_err(|error| {
                self.failed = true;
                fault(EventBody::PluginFault {
                    plugin: self.metric.id().to_owned(),
                    call: call.to_owned(),
                    message: error.to_string(),
                });
            })
            .ok()
    }
}

/// What can be known of one batch. Beyond the loss, each input is computed only if a metric asks.
struct Inputs<'a> {
    logits: Tensor,
    /// (batch, time) i64.
    labels: Tensor,
    /// (batch, time), of the logits' type.
    nll: Tensor,
    /// 0-d f64.
    loss_sum: Tensor,
    token_count: i64,
    byte_lengths: &'a Tensor,
}

impl<'a> Inputs<'a> {
    fn compute(model: &Gpt2, tokens: &Tensor, byte_lengths: &'a Tensor) -> Self {
        let logits = model.logits(tokens);
        let labels = tokens.narrow(1, 1, tokens.size()[1] - 1);
        let nll = logits
            .view([-1, model.config.vocab_size])
            .cross_entropy_loss::<Tensor>(
                &labels.reshape([-1]),
                None,
                tch::Reduction::None,
                -100,
                0.0,
            )
            .view_as(&labels);
        let loss_sum = nll.sum(TorchKind::Double);
        Self {
            token_count: labels.numel() as i64,
            logits,
            labels,
            nll,
            loss_sum,
            byte_lengths,
        }
    }

    fn gather(&self, needs: &[Need], reads_cuda: bool) -> Vec<Borrowed> {
        needs
            .iter()
            .map(|&need| {
                let tensor = self.get(need);
                Borrowed::new(
                    need,
                    if reads_cuda {
                        tensor
                    } else {
                        tensor.to_device(tch::Device::Cpu)
                    },
                )
            })
            .collect()
    }

    fn get(&self, need: Need) -> Tensor {
        match need {
            Need::LossSum => self.loss_sum.shallow_clone(),
            Need::TokenCount => Tensor::from(self.token_count).to_device(self.labels.device()),
            Need::Nll => self.nll.to_kind(TorchKind::Float),
            Need::Labels => self.labels.contiguous(),
            Need::Argmax => self.logits.argmax(-1, false),
            Need::LabelRank => {
                let of_label = self.logits.gather(-1, &self.labels.unsqueeze(-1), false);
                self.logits
                    .gt_tensor(&of_label)
                    .sum_dim_intlist(-1, false, TorchKind::Int64)
            }
            Need::ByteCount => self
                .byte_lengths
                .index_select(0, &self.labels.reshape([-1]))
                .sum(TorchKind::Int64),
            Need::Logits => self.logits.to_kind(TorchKind::Float),
        }
    }
}

/// A tensor that a metric sees; it lives through the call.
struct Borrowed {
    need: Need,
    tensor: Tensor,
    shape: Vec<i64>,
    strides: Vec<i64>,
}

impl Borrowed {
    fn new(need: Need, tensor: Tensor) -> Self {
        if let tch::Device::Cuda(index) = tensor.device() {
            tch::Cuda::synchronize(index as i64);
        }
        Self {
            need,
            shape: tensor.size(),
            strides: tensor.stride(),
            tensor,
        }
    }

    fn view(&self) -> (Need, TensorView<'_>) {
        let view = TensorView {
            data: self.tensor.data_ptr(),
            shape: &self.shape,
            strides: &self.strides,
            dtype: match self.tensor.kind() {
                TorchKind::Double => Dtype::F64,
                TorchKind::Int64 => Dtype::I64,
                _ => Dtype::F32,
            },
            device: match self.tensor.device() {
                tch::Device::Cuda(index) => Device::Cuda(index as u32),
                _ => Device::Cpu,
            },
            owner: PhantomData,
        };
        (self.need, view)
    }
}
