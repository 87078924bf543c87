use std::sync::Arc;

use host_core::{Emitter, EventBody, Metric, MetricValue, ParamInfo, Result, Step, Supervised};
use tch::Device;

use crate::checkpoint::Stored;
use crate::collective::Collective;
use crate::data::{Fingerprint, Loader, SourceFile, Workers};
use crate::evaluate::Evaluation;
use crate::model::Decoder;
use crate::ngram;
use crate::out_of_memory;
use crate::random::RandomState;
use crate::schedule::Schedule;
use crate::{SchedulerType, TrainConfig};

/// A training run that is ready to start: the data was found, the tokenizer loaded, and the model created.
pub struct Trainer {
    pub(crate) config: TrainConfig,
    pub(crate) collective: Collective,
    pub(crate) model: Decoder,
    pub(crate) loader: Loader,
    pub(crate) evaluation: Evaluation,
    pub(crate) schedule: Schedule,
    pub(crate) step: Step,
    pub(crate) stored: Option<Stored>,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) checkpoint_files: Vec<(&'static str, String)>,
    pub(crate) random: RandomState,
    /// The memory that training needs, as text for the user.
    pub(crate) memory: Option<String>,
    pub(crate) files: Arc<[SourceFile]>,
    pub(crate) workers: Arc<Workers>,
    pub(crate) params: Vec<ParamInfo>,
    /// Warnings to emit when training begins.
    pub(crate) warnings: Vec<String>,
    pub(crate) threads: usize,
    pub(crate) data_workers: usize,
    /// See `TrainerState::global_batch`.
    pub(crate) global_batch: Option<u64>,
}

impl Trainer {
    /// Returns the trainable parameters in the model's order; tied weights appear once.
    pub fn params(&self) -> &[ParamInfo] {
        &self.params
    }

    /// Adds metrics to the evaluation, in addition to the host's own `loss/eval`. Passes one batch to each
    /// metric, so that an unusable metric fails before training begins.
    ///
    /// # Errors
    /// Returns the error of the first metric that fails, or an error if two metrics use the same name.
    pub fn add_metrics(&mut self, metrics: Vec<Supervised<dyn Metric>>) -> Result<()> {
        self.evaluation.metrics.extend(metrics);
        out_of_memory::explained(|| self.evaluation.rehearse(&self.model))
    }

    /// Splits the validation set into `parts` parts and evaluates the model on each part. Then merges the
    /// metrics' states, as several processes would do, and returns the values.
    ///
    /// # Errors
    /// Returns the error of the first metric that fails.
    #[doc(hidden)]
    pub fn evaluate_in_parts(&mut self, parts: usize) -> Result<Vec<MetricValue>> {
        self.evaluation.run_in_parts(&self.model, parts)
    }

    /// Returns the step at which `fit` begins.
    pub fn step(&self) -> Step {
        self.step
    }

    /// Returns a copy of `config` in which unset settings have the values that this run uses. The copy gives
    /// the same training on a machine with other devices, cores or defaults.
    pub fn used(&self, config: &TrainConfig) -> TrainConfig {
        let device = match self.model.device {
            Device::Cuda(index) => format!("cuda:{index}"),
            _ => "cpu".to_owned(),
        };
        let decay = match config.lr_scheduler_type {
            SchedulerType::WarmupStableDecay => Some(self.schedule.decay_steps),
            _ => config.num_decay_steps,
        };
        TrainConfig {
            device,
            threads: Some(self.threads),
            data_workers: Some(self.data_workers),
            num_decay_steps: decay,
            ..config.clone()
        }
    }

    /// Returns a one-line summary for the user: parameters, layers, vocabulary, device, data, memory.
    pub fn summary(&self) -> String {
        let parameters: i64 = self.params.iter().map(ParamInfo::numel).sum();
        let data = match self.files.iter().map(|file| file.bytes).sum::<u64>() as f64 {
            bytes if bytes >= 1e10 => format!("{:.1} GB", bytes / 1e9),
            bytes => format!("{:.1} MB", bytes / 1e6),
        };
        let (title, shape) = (self.model.config.title(), &self.model.config.shape);
        let memory = self.memory.as_ref();
        let memory = memory.map_or_else(String::new, |needs| format!("; needs about {needs}"));
        let device = match self.model.device {
            Device::Cuda(index) => format!("cuda:{index}"),
            _ => "the CPU".to_owned(),
        };
        format!(
            "{title} with {:.1} M parameters ({} layers, width {}, {} heads, vocabulary {}) on {device}; {} files with {data} to train on, {} sequences of {} tokens to evaluate on{memory}",
            parameters as f64 / 1e6,
            shape.layers,
            shape.width,
            shape.heads,
            shape.vocab_size,
            self.files.len(),
            self.evaluation.validation.sequences.len(),
            self.config.seq_length,
        )
    }

    /// Emits the first events of the run: warnings, and the baselines that are computed from the data.
    ///
    /// # Errors
    /// Returns an error if the data cannot be read.
    pub(crate) fn announce(&self, emitter: &Emitter) -> Result<()> {
        let left_out = &self.evaluation.validation.left_out;
        let warnings = self.warnings.iter().cloned();
        for message in warnings.chain(left_out.message("evaluation data")) {
            emitter.emit(self.step, EventBody::Warning { message });
        }
        if self.config.ngram_baselines && self.step == Step(0) {
            let values = ngram::baselines(
                self.files.clone(),
                &self.workers,
                self.model.config.shape.vocab_size,
                &self.evaluation.validation,
            )?;
            emitter.emit(self.step, EventBody::Metrics { values });
        }
        Ok(())
    }
}
