//! The training loop.

use std::thread;

use host_core::Result;

use crate::data::Batch;
use crate::out_of_memory;
use crate::ports::{Outcome, Ports};
use crate::trainer::Trainer;
use crate::training::Training;

impl Trainer {
    /// Trains until the last step or until a stop is requested. Does not return before the last checkpoint is
    /// written.
    ///
    /// # Errors
    /// Returns the error that ended training. Checkpoints written before it remain.
    pub fn fit(self, ports: Ports<'_>) -> Result<Outcome> {
        let (config, schedule) = (self.config.clone(), self.schedule);
        let (collective, device) = (self.collective.clone(), self.model.device);
        let batch_size = config.train_batch_size as usize;
        out_of_memory::explained(|| {
            thread::scope(|scope| {
                let (mut training, mut boundary) = Training::begin(self, ports, scope)?;
                let params = &training.state.model.params;
                let gradients = collective.gradients(params, config.bucket_cap_mb, device)?;
                while let Some(orders) = boundary.next(&mut training)? {
                    let state = &mut training.state;
                    let batches = state.next_batches(
                        config.gradient_accumulation_steps,
                        batch_size,
                        collective.share(),
                    )?;
                    let counted = collective
                        .share()
                        .of_all(batches.iter().map(Batch::counted).sum());
                    let mut loss = state.zero_loss();
                    for (number, batch) in batches.iter().enumerate() {
                        collective.seed_dropout(config.seed, state.step.0, number);
                        gradients.begin(number + 1 == batches.len())?;
                        let weight = batch.counted() as f64 / counted as f64;
                        let mean = state.model.backward(
                            &batch.tokens,
                            weight,
                            config.gradient_checkpointing,
                        )?;
                        gradients.end()?;
                        loss += mean * weight;
                    }
                    gradients.wait()?;
                    let loss = collective.sum(loss, "the sum of the loss")?;
                    let norm = state.optimizer.clip_gradients(config.max_grad_norm)?;
                    let skip = orders.skip(config.on_nonfinite, &loss, &norm);
                    let learning_rate =
                        schedule.learning_rate(state.step.0) * orders.learning_rate_factor;
                    state.optimizer.step(learning_rate, skip.as_ref())?;
                    state.step = state.step.next();
                    training
                        .log
                        .stepped(state.step, learning_rate, loss, norm, &state.loader)?;
                    if state.step.is_multiple_of(config.save_checkpoint_steps) {
                        training.evaluate_and_save(&mut boundary)?;
                    }
                }
                training.finish(boundary)
            })
        })
    }
}
