mod byte_table;
mod inputs;

use std::collections::BTreeMap;

use host_core::{
    Control, EVAL_LOSS, Emitter, Error, ErrorKind, Metric, MetricBatch, MetricValue, Result, Step,
    Supervised, metric_name_fault,
};
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor, no_grad_guard};

pub(crate) use self::byte_table::ByteTable;
use self::inputs::Inputs;
use crate::collective::{Collective, Share};
use crate::data::{Batch, Validation};
use crate::model::Decoder;

/// Evaluates the model on the validation set and passes the results to the metrics.
pub(crate) struct Evaluation {
    pub(crate) validation: Validation,
    batch_size: usize,
    /// The number of bytes of each token, on the model's device.
    byte_lengths: ByteTable,
    pub(crate) metrics: Vec<Supervised<dyn Metric>>,
    names: Names,
}

/// Maps the name of each value to the label of the metric that owns it. No two metrics may use the same name.
#[derive(Debug, Default)]
struct Names(BTreeMap<String, String>);

impl Names {
    /// Claims the names of a metric's values. If there is an error, claims none of them.
    ///
    /// # Errors
    /// Returns an error if another metric uses one of the names, or if a name is not allowed for a metric.
    fn claim(&mut self, label: &str, values: &[(String, f64)]) -> Result<()> {
        let refused = |why: String, hint: String| {
            let message = format!("plugin {label} failed in compute: {why}");
            Err(Error::new(ErrorKind::Plugin, message).hint(hint))
        };
        for (name, _) in values {
            if let Some(why) = metric_name_fault(name) {
                return refused(
                    why,
                    format!("remove plugin {label}; its author must rename the value"),
                );
            }
            if let Some(other) = self.0.get(name).filter(|other| *other != label) {
                let why = format!("the value name {name:?} is already used by plugin {other}");
                return refused(why, format!("remove plugin {label} or {other}"));
            }
        }
        for (name, _) in values {
            if !self.0.contains_key(name) {
                self.0.insert(name.clone(), label.to_owned());
            }
        }
        Ok(())
    }
}

impl Evaluation {
    /// Creates an evaluation with batches of `batch_size` sequences and without plugins' metrics.
    pub(crate) fn new(validation: Validation, batch_size: usize, byte_lengths: ByteTable) -> Self {
        Self {
            validation,
            batch_size,
            byte_lengths,
            metrics: Vec::new(),
            names: Names::default(),
        }
    }

    /// Evaluates every sequence once, without dropout. Each process evaluates its share. The loss is the mean
    /// over all predicted tokens. The values of a failed metric are missing; an event reports the failure,
    /// and the metric's policy is applied.
    ///
    /// # Errors
    /// Returns an error if the other processes do not respond.
    pub(crate) fn evaluate(
        &mut self,
        model: &Decoder,
        step: Step,
        collective: &Collective,
        (emitter, control): (&Emitter, &Control),
    ) -> Result<Vec<MetricValue>> {
        let (values, faults) = self.run(model, step, collective, usize::MAX)?;
        for (metric, fault) in self.metrics.iter_mut().zip(faults) {
            let Some(Fault { call, error, lost }) = fault else {
                metric.succeeded();
                continue;
            };
            emitter.emit(step, metric.fault(&call, &error));
            let lost = lost.or_else(|| metric.port().lost());
            let consequence = "its values are missing from here on";
            metric
                .failed(error, lost)
                .carry_out(step, emitter, control, consequence);
        }
        let disabled = self.metrics.iter().map(Supervised::is_disabled).collect();
        let disabled: Vec<bool> = collective.agree(disabled, "the end of the evaluation")?;
        for (metric, _) in self.metrics.iter_mut().zip(disabled).filter(|(_, is)| *is) {
            metric.disable();
        }
        Ok(values)
    }

    /// Passes one batch to every metric before training begins. A metric that fails here ends the run,
    /// regardless of its policy.
    ///
    /// # Errors
    /// Returns the error of the first metric that fails. A metric also fails if it uses a name of another
    /// metric or of the host.
    pub(crate) fn rehearse(&mut self, model: &Decoder) -> Result<()> {
        if self.metrics.is_empty() {
            return Ok(());
        }
        let (_, faults) = self.run(model, Step(0), &Collective::alone(), 1)?;
        let faults = self.metrics.iter().zip(faults);
        let mut failed = faults.filter_map(|(metric, fault)| Some((metric, fault?.error)));
        let Some((metric, error)) = failed.next() else {
            return Ok(());
        };
        let message = error.message().to_owned();
        let hint = match error.hint_text() {
            Some(hint) => hint.to_owned(),
            None => format!(
                "remove plugin {}, or run `host plugin info {}` to see what it needs",
                metric.label(),
                metric.name()
            ),
        };
        Err(Error::new(ErrorKind::Plugin, message).hint(hint))
    }

    /// Evaluates at most `max_batches` batches of this process's share. On the lead, merges the results of the other
    /// processes, and returns all values and, for each metric, its first fault. The other processes return nothing.
    fn run(
        &mut self,
        model: &Decoder,
        step: Step,
        collective: &Collective,
        max_batches: usize,
    ) -> Result<(Vec<MetricValue>, Vec<Option<Fault>>)> {
        let mut pass = Pass::begin(&mut self.metrics, model.device);
        let set = (&self.validation, self.batch_size, &self.byte_lengths);
        pass.see(model, step, set, collective, max_batches);
        pass.join(collective)?;
        collective.unlimited("the end of an evaluation");
        if !collective.is_lead() {
            return Ok((Vec::new(), Vec::new()));
        }
        Ok(pass.end(&mut self.names))
    }

    /// Evaluates the set in `parts` shares, as several processes would. After each share, exports the
    /// metrics' states and merges them into new states. Returns the values.
    ///
    /// # Errors
    /// Returns the error of the first metric that fails.
    pub(crate) fn run_in_parts(
        &mut self,
        model: &Decoder,
        parts: usize,
    ) -> Result<Vec<MetricValue>> {
        let set = (&self.validation, self.batch_size, &self.byte_lengths);
        let mut found = Vec::new();
        for rank in 0..parts {
            let mut pass = Pass::begin(&mut self.metrics, model.device);
            let share = Share { rank, of: parts };
            pass.see_share(model, Step(0), set, share, usize::MAX, &|_| ());
            found.push(pass.export());
        }
        let mut joined = Pass::begin(&mut self.metrics, model.device);
        for part in found {
            joined.merge(part, "another part");
        }
        let (values, faults) = joined.end(&mut self.names);
        match faults.into_iter().flatten().next() {
            Some(fault) => Err(fault.error),
            None => Ok(values),
        }
    }
}

/// The validation set, the size of its batches, and the number of bytes of each token.
type Set<'a> = (&'a Validation, usize, &'a ByteTable);

/// One pass over a share of the validation set.
struct Pass<'a> {
    watched: Vec<Watched<'a>>,
    /// 0-d f64, on the model's device.
    loss_sum: Tensor,
    token_count: i64,
}

impl<'a> Pass<'a> {
    /// Begins a pass: resets all metrics.
    fn begin(metrics: &'a mut [Supervised<dyn Metric>], device: Device) -> Self {
        let watched = metrics.iter_mut().map(|metric| Watched {
            label: metric.label().to_owned(),
            metric: metric.active(),
            fault: None,
        });
        let mut watched: Vec<Watched<'_>> = watched.collect();
        for metric in &mut watched {
            metric.call("reset", |metric| metric.reset());
        }
        Self {
            watched,
            loss_sum: Tensor::zeros([], (tch::Kind::Double, device)),
            token_count: 0,
        }
    }

    /// Passes at most `max_batches` batches of this process's share to every metric.
    fn see(
        &mut self,
        model: &Decoder,
        step: Step,
        set: Set<'_>,
        collective: &Collective,
        max_batches: usize,
    ) {
        let computing =
            |batch| collective.computing(|| format!("evaluation batch {batch} at step {step}"));
        self.see_share(
            model,
            step,
            set,
            collective.share(),
            max_batches,
            &computing,
        );
    }

    /// Passes at most `max_batches` batches of a share to every metric. Calls `begins` before each batch.
    fn see_share(
        &mut self,
        model: &Decoder,
        step: Step,
        (validation, batch_size, byte_lengths): Set<'_>,
        share: Share,
        max_batches: usize,
        begins: &dyn Fn(usize),
    ) {
        let _guard = no_grad_guard();
        let batches = validation.sequences.chunks(batch_size).enumerate();
        let own = batches.filter(|(number, _)| share.has(*number));
        for (number, sequences) in own.take(max_batches) {
            begins(number);
            let batch = Batch::new(sequences, model.device);
            let mut inputs = Inputs::new(model, &batch, byte_lengths);
            self.loss_sum += &inputs.loss_sum;
            self.token_count += inputs.token_count;
            for metric in &mut self.watched {
                metric.see(step, &mut inputs);
            }
        }
    }

    /// On the lead, merges the results of the other processes, in the order of their ranks.
    fn join(&mut self, collective: &Collective) -> Result<()> {
        if collective.share() == Share::WHOLE {
            return Ok(());
        }
        let parts = collective.gather(self.export(), "the end of an evaluation")?;
        if collective.is_lead() {
            for (rank, part) in parts.into_iter().enumerate().skip(1) {
                self.merge(part, &collective.name(rank));
            }
        }
        Ok(())
    }

    /// Returns this pass's results.
    fn export(&mut self) -> Part {
        let states = self.watched.iter_mut().map(|watched| {
            let state = watched.call("export_state", |metric| metric.export_state());
            match &watched.fault {
                None => state.map(Ok),
                Some(Fault { call, error, .. }) => Some(Err(Failure {
                    call: call.clone(),
                    message: error.message().to_owned(),
                    lost: watched.metric.as_ref().and_then(|metric| metric.lost()),
                })),
            }
        });
        Part {
            states: states.collect(),
            loss_sum: self.loss_sum.double_value(&[]).to_bits(),
            token_count: self.token_count,
        }
    }

    /// Merges the results of another pass, which was made by `whom`.
    fn merge(&mut self, part: Part, whom: &str) {
        self.loss_sum += f64::from_bits(part.loss_sum);
        self.token_count += part.token_count;
        for (watched, state) in self.watched.iter_mut().zip(part.states) {
            match state {
                Some(Ok(state)) => {
                    watched.call("merge_state", |metric| metric.merge_state(&state));
                }
                // A metric that failed anywhere has no value.
                Some(Err(Failure {
                    call,
                    message,
                    lost,
                })) if watched.fault.is_none() => {
                    let message = format!("{message}, on {whom}");
                    let error = Error::new(ErrorKind::Plugin, message);
                    watched.fault = Some(Fault { call, error, lost });
                }
                Some(Err(_)) | None => {}
            }
        }
    }

    /// Returns all values and, for each metric, its first fault.
    fn end(mut self, names: &mut Names) -> (Vec<MetricValue>, Vec<Option<Fault>>) {
        let mut values = Vec::new();
        for metric in &mut self.watched {
            let Some(found) = metric.call("compute", |metric| metric.compute()) else {
                continue;
            };
            match names.claim(&metric.label, &found) {
                Ok(()) => {
                    let found = found.into_iter();
                    values.extend(found.map(|(name, value)| MetricValue::new(name, value)));
                }
                // As with any other failure, the metric's values are missing.
                Err(error) => {
                    metric.fault = Some(Fault {
                        call: "compute".to_owned(),
                        error,
                        lost: None,
                    });
                }
            }
        }
        if !values.iter().any(|value| &*value.name == EVAL_LOSS) {
            let loss = self.loss_sum.double_value(&[]) / self.token_count as f64;
            values.insert(0, MetricValue::new(EVAL_LOSS, loss));
        }
        let faults = self.watched.into_iter().map(|metric| metric.fault);
        (values, faults.collect())
    }
}

/// The results of a pass, for another process.
#[derive(Serialize, Deserialize)]
struct Part {
    /// For each metric, its state or its failure. `None` if the metric is disabled.
    states: Vec<Option<Result<Vec<u8>, Failure>>>,
    /// The bits of an f64.
    loss_sum: u64,
    token_count: i64,
}

/// A fault, for another process.
#[derive(Serialize, Deserialize)]
struct Failure {
    call: String,
    message: String,
    lost: Option<String>,
}

/// A call that failed.
struct Fault {
    call: String,
    error: Error,
    /// Set if the failure was on another rank, where the metric cannot be called again.
    lost: Option<String>,
}

/// A metric within one evaluation. After its first failure, it is not called until the next evaluation.
struct Watched<'a> {
    label: String,
    /// `None` if the metric is disabled.
    metric: Option<&'a mut (dyn Metric + 'static)>,
    fault: Option<Fault>,
}

impl Watched<'_> {
    /// Passes a batch to the metric, unless it failed before. Only the inputs that the metric needs are
    /// computed.
    fn see(&mut self, step: Step, inputs: &mut Inputs<'_>) {
        self.call("update", |metric| {
            let tensors = inputs.views(metric.needs(), metric.reads_cuda());
            metric.update(MetricBatch {
                step: step.0,
                tensors: &tensors,
            })
        });
    }

    fn call<T>(
        &mut self,
        call: &'static str,
        f: impl FnOnce(&mut dyn Metric) -> Result<T>,
    ) -> Option<T> {
        let metric = self
            .metric
            .as_deref_mut()
            .filter(|_| self.fault.is_none())?;
        f(metric)
            .map_err(|error| {
                let call = call.to_owned();
                self.fault = Some(Fault {
                    call,
                    error,
                    lost: None,
                });
            })
            .ok()
    }
}

#[cfg(test)]
mod tests {
    use host_core::Need;

    use super::*;
    use crate::config::Precision;
    use crate::device::tests::device;
    use crate::model::{Dtypes, ModelConfig};
    use crate::tokenizer::ByteLengths;

    /// A metric that records the inputs that it receives, and the addresses of these inputs.
    struct Looker {
        needs: Vec<Need>,
        seen: Vec<(Need, usize)>,
        fails: bool,
    }

    impl Looker {
        fn new(needs: &[Need]) -> Self {
            Self {
                needs: needs.to_vec(),
                seen: Vec::new(),
                fails: false,
            }
        }
    }

    impl Metric for Looker {
        fn id(&self) -> &str {
            "looker"
        }
        fn needs(&self) -> &[Need] {
            &self.needs
        }
        fn reads_cuda(&self) -> bool {
            false
        }
        fn reset(&mut self) -> Result<()> {
            if self.fails {
                return Err(Error::new(ErrorKind::Plugin, "set to fail"));
            }
            Ok(())
        }
        fn update(&mut self, batch: MetricBatch<'_>) -> Result<()> {
            let places = batch.tensors.iter();
            self.seen
                .extend(places.map(|(need, view)| (*need, view.data.addr())));
            Ok(())
        }
        fn export_state(&mut self) -> Result<Vec<u8>> {
            Ok(Vec::new())
        }
        fn merge_state(&mut self, _state: &[u8]) -> Result<()> {
            Ok(())
        }
        fn compute(&mut self) -> Result<Vec<(String, f64)>> {
            Ok(Vec::new())
        }
    }

    /// Passes one batch of a tiny model to the metrics. Returns the inputs that were computed for them.
    fn computed_for(lookers: &mut [Looker]) -> Vec<Need> {
        let _guard = no_grad_guard();
        let config = ModelConfig::preset("tiny")
            .expect("a preset")
            .with_vocab_size(50);
        let model = Decoder::new(config, Dtypes::of(Precision::F32), device());
        let batch = Batch::new(&[(0..16).collect(), (20..36).collect()], device());
        let ones = ByteLengths {
            within: vec![1; 50],
            at_begin: vec![0; 50],
            ends: vec![0; 50],
        };
        let byte_lengths = ByteTable::new(&ones, device());
        let mut inputs = Inputs::new(&model, &batch, &byte_lengths);
        for looker in lookers {
            let mut watched = Watched {
                label: "looker".to_owned(),
                metric: Some(looker),
                fault: None,
            };
            watched.call("reset", |metric| metric.reset());
            watched.see(Step(1), &mut inputs);
        }
        inputs.computations
    }

    #[test]
    fn only_requested_inputs_are_computed() {
        assert_eq!(computed_for(&mut []), []);
        let mut loss = [Looker::new(&[Need::LossSum])];
        assert_eq!(computed_for(&mut loss), [Need::LossSum]);
        assert_eq!(loss[0].seen.len(), 1);
        for need in Need::ALL {
            assert_eq!(computed_for(&mut [Looker::new(&[need])]), [need]);
        }
        let mut failed = Looker::new(&[Need::Logits]);
        failed.fails = true;
        assert_eq!(computed_for(&mut [failed]), []);
    }

    #[test]
    fn a_name_of_another_metric_or_of_the_host_is_rejected() {
        let values = |names: &[&str]| -> Vec<(String, f64)> {
            names.iter().map(|name| ((*name).to_owned(), 1.0)).collect()
        };
        let mut names = Names::default();
        names
            .claim("a", &values(&["x", "loss/eval"]))
            .expect("free");
        names.claim("a", &values(&["x"])).expect("its own");
        let error = names.claim("b", &values(&["y", "x"])).expect_err("taken");
        assert_eq!(
            error.message(),
            "plugin b failed in compute: the value name \"x\" is already used by plugin a"
        );
        assert_eq!(error.hint_text(), Some("remove plugin b or a"));
        names.claim("c", &values(&["y"])).expect("not claimed by b");
        assert!(names.claim("d", &values(&["system/cpu_percent"])).is_err());
    }

    #[test]
    fn an_input_of_two_metrics_is_computed_once() {
        let both = [Need::LabelRank, Need::Nll, Need::Logits];
        let mut lookers = [Looker::new(&both), Looker::new(&both)];
        assert_eq!(computed_for(&mut lookers), both);
        assert_eq!(lookers[0].seen, lookers[1].seen);
    }
}
