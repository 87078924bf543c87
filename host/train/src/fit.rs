//! The loop.

use std::thread;

use host_core::{Emitter, MetricValue, Result, Step, StopReason};
use tch::{Kind as TorchKind, Tensor};

use crate::batch;
use crate::checkpoint::{CheckpointWriter, Layout, Live, TrainerState};
use crate::config::OnNonfinite;
use crate::data::Loader;
use crate::evaluate::Evaluation;
use crate::model::Gpt2;
use crate::optimizer::Optimizer;
use crate::random::RandomState;
use crate::step_log::StepLog;
use crate::trainer::{Outcome, Ports, Trainer};

/// Trains from `trainer`'s step to the last, or until somebody says stop.
pub(crate) fn fit(trainer: Trainer, ports: Ports<'_>) -> Result<Outcome> {
    let (config, schedule, control) = (trainer.config, trainer.schedule, ports.control);
    let layout = Layout {
        folder: ports.checkpoints,
        files: trainer.checkpoint_files,
        keep: config.keep_checkpoints,
    };
    let mut step = trainer.step;
    let mut state = State {
        optimizer: Optimizer::new(&trainer.model.params, &ports.groups),
        evaluation: trainer.evaluation,
        log: StepLog::new(
            ports.emitter.clone(),
            &config,
            &trainer.model,
            &trainer.loader,
        ),
        emitter: ports.emitter,
        model: trainer.model,
        loader: trainer.loader,
        data_sha256: trainer.data_sha256,
        random: trainer.random,
    };
    if let Some(stored) = trainer.stored {
        state.optimizer.restore(stored.optimizer)?;
        state.random.restore(&stored.random)?;
    }

    thread::scope(|scope| {
        let reserve = state.live(step, Vec::new())?;
        let mut writer = CheckpointWriter::spawn(
            scope,
            layout,
            state.emitter.clone(),
            ports.await_events,
            ports.on_checkpoint,
            ports.is_needed,
            reserve,
        )?;
        if config.eval_on_start && step == Step(0) {
            state.evaluate(step);
        }

        let mut saved = step;
        let mut reason = StopReason::Completed;
        state.log.begin();
        while step.0 < config.max_train_steps {
            if let Some(stop) = control.stop_requested() {
                reason = stop;
                break;
            }
            let mut loss = Tensor::zeros([], (TorchKind::Double, state.model.device));
            for _ in 0..config.gradient_accumulation_steps {
                let tokens = batch(
                    &state.loader.next(config.train_batch_size as usize)?,
                    state.model.device,
                );
                let scale = 1.0 / config.gradient_accumulation_steps as f64;
                loss += state
                    .model
                    .backward(&tokens, scale, config.gradient_checkpointing)?
                    * scale;
            }
            let norm = state.optimizer.clip_gradients(config.max_grad_norm)?;
            let skip = match config.on_nonfinite {
                OnNonfinite::Continue => None,
                OnNonfinite::Stop | OnNonfinite::Skip => Some(
                    (&loss + &norm)
                        .isfinite()
                        .logical_not()
                        .to_kind(TorchKind::Float),
                ),
            };
            let learning_rate = schedule.learning_rate(step.0);
            state.optimizer.step(learning_rate, skip.as_ref())?;
            step = step.next();
            state
                .log
                .stepped(step, learning_rate, loss, norm, &state.loader)?;

            if step.is_multiple_of(config.save_checkpoint_steps) {
                state.log.flush()?;
                let scores = state.evaluate(step);
                state.save(step, scores, &mut writer)?;
                saved = step;
            }
        }

        state.log.flush()?;
        if step != saved {
            // Whoever interrupts does not wait for an evaluation.
            let scores = if reason == StopReason::Completed {
                state.evaluate(step)
            } else {
                Vec::new()
            };
            state.save(step, scores, &mut writer)?;
        }
        writer.finish()?;
        Ok(Outcome { reason, step })
    })
}

/// What the loop works on.
struct State {
    model: Gpt2,
    optimizer: Optimizer,
    loader: Loader,
    evaluation: Evaluation,
    log: StepLog,
    emitter: Emitter,
    data_sha256: String,
    random: RandomState,
}

impl State {
    fn evaluate(&mut self, step: Step) -> Vec<MetricValue> {
        self.log.begin();
        let scores = self
            .evaluation
            .evaluate(&self.model, step, &mut |body| self.emitter.emit(step, body));
        self.log.evaluated(step, &scores);
        scores
    }

    fn save(
        &mut self,
        step: Step,
        scores: Vec<MetricValue>,
        writer: &mut CheckpointWriter<'_>,
    ) -> Result<()> {
        let (waited, copied) = writer.save(self.live(step, scores)?)?;
        self.log.saved(step, waited, copied);
        Ok(())
    }

    /// What a checkpoint of this moment is made from.
    fn live(&self, step: Step, scores: Vec<MetricValue>) -> Result<Live<'_>> {
        Ok(Live {
            state: TrainerState::new(step, self.loader.cursor(), self.data_sha256.clone()),
            model: self
                .model
                .params
                .iter()
                .map(|param| (param.name.as_str(), &param.tensor))
                .collect(),
            optimizer: self.optimizer.state(),
            random: self.random.take()?,
            buffer: self.loader.buffer(),
            metrics: scores,
        })
    }
}
