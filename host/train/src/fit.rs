//! The loop.

use std::thread;

use host_core::{Error, MetricValue, Result, Step, StopReason};
use tch::{Kind as TorchKind, Tensor};

use crate::batch;
use crate::checkpoint::{CheckpointWriter, Layout, Live, TrainerState};
use crate::config::OnNonfinite;
use crate::evaluate::Evaluation;
use crate::optimizer::Optimizer;
use crate::step_log::StepLog;
use crate::torch_shim;
use crate::trainer::{Outcome, Ports, Trainer};

/// Trains from `trainer`'s step to the last, or until somebody says stop.
pub(crate) fn fit(trainer: Trainer, ports: Ports<'_>) -> Result<Outcome> {
    let Trainer {
        config,
        model,
        mut loader,
        schedule,
        mut step,
        stored,
        ..
    } = trainer;
    let Ports {
        groups,
        metrics,
        emitter,
        control,
        checkpoints,
        on_checkpoint,
        is_needed,
    } = ports;
    let mut optimizer = Optimizer::new(&model.params, &groups);
    let mut evaluation = Evaluation {
        validation: trainer.validation,
        byte_lengths: trainer.byte_lengths,
        batch_size: config.valid_batch_size as usize,
        metrics,
    };
    let layout = Layout {
        folder: checkpoints,
        files: trainer.checkpoint_files,
        keep: config.keep_checkpoints,
    };
    evaluation.rehearse(&model)?;
    if let Some(stored) = stored {
        optimizer.restore(stored.optimizer)?;
        for &(name, device) in &trainer.random {
            if let Some(state) = stored.random.get(name) {
                torch_shim::set_rng_state(device, state)?;
            }
        }
    }

    thread::scope(|scope| {
        let mut writer =
            CheckpointWriter::spawn(scope, layout, emitter.clone(), on_checkpoint, is_needed)?;
        let mut log = StepLog::new(emitter.clone(), &config, loader.cursor().sequences);

        let mut evaluate = |step, log: &mut StepLog| {
            log.pause();
            let values = evaluation.evaluate(&model, step, &mut |body| emitter.emit(step, body));
            log.evaluated(step, &values);
            values
        };
        let mut save = |step,
                        metrics: Vec<MetricValue>,
                        optimizer: &Optimizer,
                        loader: &crate::data::Loader,
                        log: &mut StepLog| {
            log.pause();
            let (waited, copied) = writer.save(Live {
                state: TrainerState::new(step, loader.cursor(), trainer.data_sha256.clone()),
                model: model
                    .params
                    .iter()
                    .map(|param| (param.name.as_str(), &param.tensor))
                    .collect(),
                optimizer: optimizer.state(),
                random: trainer
                    .random
                    .iter()
                    .map(|&(name, device)| Ok((name, torch_shim::rng_state(device)?)))
                    .collect::<Result<_>>()?,
                buffer: loader.buffer(),
                metrics,
            })?;
            log.saved(step, waited, copied);
            Ok::<_, Error>(())
        };

        if config.eval_on_start && step == Step(0) {
            evaluate(step, &mut log);
        }
        let mut saved = step;
        let mut reason = StopReason::Completed;
        while step.0 < config.max_train_steps {
            if let Some(stop) = control.stop_requested() {
                reason = stop;
                break;
            }
            let learning_rate = schedule.learning_rate(step.0);
            let mut loss = Tensor::zeros([], (TorchKind::Double, model.device));
            for _ in 0..config.gradient_accumulation_steps {
                let tokens = batch(
                    &loader.next(config.train_batch_size as usize)?,
                    model.device,
                );
                let scale = 1.0 / config.gradient_accumulation_steps as f64;
                loss += model.backward(&tokens, scale, config.gradient_checkpointing)? * scale;
            }
            let norm = optimizer.clip_gradients(config.max_grad_norm)?;
            let skip = match config.on_nonfinite {
                OnNonfinite::Continue => None,
                OnNonfinite::Stop | OnNonfinite::Skip => Some(
                    (&loss + &norm)
                        .isfinite()
                        .logical_not()
                        .to_kind(TorchKind::Float),
                ),
            };
            optimizer.step(learning_rate, skip.as_ref())?;
            step = step.next();
            log.stepped(step, learning_rate, loss, norm, &loader)?;

            if step.is_multiple_of(config.save_checkpoint_steps) {
                log.flush()?;
                let values = evaluate(step, &mut log);
                save(step, values, &optimizer, &loader, &mut log)?;
                saved = step;
            }
        }

        log.flush()?;
        if step != saved {
            // Whoever interrupts does not wait for an evaluation.
            let values = if reason == StopReason::Completed {
                evaluate(step, &mut log)
            } else {
                Vec::new()
            };
            save(step, values, &optimizer, &loader, &mut log)?;
        }
        writer.finish();
        Ok(Outcome { reason, step })
    })
}
