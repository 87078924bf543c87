//! The loop.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use host_core::{
    Asked, Control, Emitter, EventBody, MetricValue, Request, Requests, Result, Step, StopReason,
};
use tch::{Kind as TorchKind, Tensor};

use crate::batch;
use crate::checkpoint::{
    self, CheckpointWriter, Layout, Live, Outside, Setup, Stored, TrainerState,
};
use crate::config::OnNonfinite;
use crate::data::{Fingerprint, Loader};
use crate::evaluate::Evaluation;
use crate::model::Gpt2;
use crate::observers::Observers;
use crate::optimizer::Optimizer;
use crate::random::RandomState;
use crate::step_log::StepLog;
use crate::trainer::{Outcome, Ports, Trainer};

/// How long the plugins' accounts are not reported at most, where no evaluation comes before.
const REPORT_PERIOD: Duration = Duration::from_secs(10);

/// How often a pause looks whether a signal ends it.
const PAUSE_PERIOD: Duration = Duration::from_millis(50);

/// Trains from `trainer`'s step to the last, or until somebody says stop.
pub(crate) fn fit(trainer: Trainer, ports: Ports<'_>) -> Result<Outcome> {
    let (config, schedule, mut report) = (trainer.config, trainer.schedule, ports.report);
    let layout = Layout {
        folder: ports.checkpoints.clone(),
        files: trainer.checkpoint_files,
        keep: config.keep_checkpoints,
        stuck: BTreeSet::new(),
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
        control: ports.control,
        observers: ports.observers,
        requests: Some(ports.requests),
        is_paused: false,
        learning_rate_factor: 1.0,
        put_back: ports.put_back,
        checkpoints: ports.checkpoints,
        generation: ports.generation,
        model: trainer.model,
        loader: trainer.loader,
        fingerprint: trainer.fingerprint,
        setup: Setup::of(&config),
        random: trainer.random,
    };
    if let Some(stored) = trainer.stored {
        let left = state
            .observers
            .import(&stored.observers, stored.state.asked)?;
        if !left.is_empty() {
            let names = left.join(", ");
            let message = format!(
                "the checkpoint has the state of plugins that this run does not have, and it is lost: {names}"
            );
            state.emitter.emit(step, EventBody::Warning { message });
        }
        state.learning_rate_factor = stored.state.learning_rate_factor;
        state.optimizer.restore(stored.optimizer)?;
        state.random.restore(&stored.random)?;
    }

    thread::scope(|scope| {
        let reserve = state.live(step)?;
        let mut writer = CheckpointWriter::spawn(
            scope,
            layout,
            state.emitter.clone(),
            Outside {
                await_events: ports.await_events,
                on_checkpoint: ports.on_checkpoint,
                is_needed: ports.is_needed,
                give_up: ports.give_up,
            },
            reserve,
        )?;
        if config.eval_on_start && step == Step(0) {
            state.evaluate(step);
        }

        let mut saved = step;
        let mut reason = StopReason::Completed;
        let mut reported = Instant::now();
        state.log.begin();
        'training: while step.0 < config.max_train_steps {
            state.observe(step);
            let mut skip_step = false;
            while let Some(request) = state.next_request(step) {
                match request {
                    Request::Stop => {
                        reason = StopReason::Requested;
                        break 'training;
                    }
                    // The one of this step stands, with its evaluation, or is on its way.
                    Request::Checkpoint if step == saved && step.0 > 0 => {}
                    Request::Checkpoint => {
                        state.log.flush()?;
                        state.save(step, Vec::new(), &mut writer)?;
                        saved = step;
                    }
                    Request::SkipStep => skip_step = true,
                    Request::ScaleLearningRate { factor } => state.learning_rate_factor *= factor,
                    Request::RollBack => step = state.roll_back(step, &mut writer)?,
                    Request::Evaluate => {
                        state.log.flush()?;
                        state.evaluate(step);
                    }
                    Request::Pause => {
                        state.log.flush()?;
                        state.is_paused = true;
                    }
                    Request::Continue => state.is_paused = false,
                    Request::SetLearningRate { factor } => state.learning_rate_factor = factor,
                }
            }
            if let Some(stop) = state.control.stop_requested() {
                reason = stop;
                break;
            }
            if step.is_multiple_of(config.save_checkpoint_steps)
                || reported.elapsed() > REPORT_PERIOD
            {
                reported = Instant::now();
                report(step);
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
                _ if skip_step => Some(norm.ones_like().to_kind(TorchKind::Float)),
                OnNonfinite::Continue => None,
                OnNonfinite::Stop | OnNonfinite::Skip => Some(
                    (&loss + &norm)
                        .isfinite()
                        .logical_not()
                        .to_kind(TorchKind::Float),
                ),
            };
            let learning_rate = schedule.learning_rate(step.0) * state.learning_rate_factor;
            state.optimizer.step(learning_rate, skip.as_ref())?;
            step = step.next();
            state
                .log
                .stepped(step, learning_rate, loss, norm, &state.loader)?;

            if step.is_multiple_of(config.save_checkpoint_steps) {
                state.log.flush()?;
                let scores = state.evaluate(step);
                state.observe(step);
                // What somebody wants to be taken back is nothing to go back to.
                if !state.observers.ask_to_roll_back() {
                    state.save(step, scores, &mut writer)?;
                    saved = step;
                }
            }
        }

        state.log.flush()?;
        // Nothing is carried out any more: whoever still waits is told.
        drop(state.requests.take());
        if step != saved {
            let scores = match reason {
                StopReason::Completed | StopReason::Requested => state.evaluate(step),
                // Whoever interrupts does not wait for an evaluation.
                _ => Vec::new(),
            };
            state.save(step, scores, &mut writer)?;
        }
        writer.finish()?;
        Ok(Outcome { reason, step })
    })
}

/// What the loop works on.
struct State<'a> {
    model: Gpt2,
    optimizer: Optimizer,
    loader: Loader,
    evaluation: Evaluation,
    log: StepLog,
    emitter: Emitter,
    control: Control,
    observers: Observers,
    /// What clients ask for; none once the loop has ended.
    requests: Option<Requests>,
    is_paused: bool,
    /// What the schedule's learning rate is multiplied by: what a client set, and observers lowered.
    learning_rate_factor: f64,
    put_back: Box<dyn FnMut(Step, bool) + 'a>,
    checkpoints: PathBuf,
    generation: u32,
    fingerprint: Fingerprint,
    setup: Setup,
    random: RandomState,
}

impl State<'_> {
    /// Shows the observers what happened since the last time.
    fn observe(&mut self, step: Step) {
        self.observers.observe(step, &self.emitter, &self.control);
        (self.put_back)(step, false);
    }

    /// The next thing to be carried out before the step goes on, recorded: of the observers first, then
    /// of clients. While the loop pauses, waits for one. None, too, when the outside says stop.
    fn next_request(&mut self, step: Step) -> Option<Request> {
        let was_paused = self.is_paused;
        let asked = loop {
            if self.control.stop_requested().is_some() {
                return None;
            }
            let requests = self.requests.as_mut()?;
            match self.observers.take().or_else(|| requests.take()) {
                None if self.is_paused => requests.wait(PAUSE_PERIOD),
                next => break next,
            }
        };
        if was_paused {
            // The step that follows did not take as long as the pause.
            self.log.begin();
        }
        let Asked {
            by,
            request,
            reason,
        } = asked?;
        let event = EventBody::Request {
            by,
            request,
            reason,
        };
        self.emitter.emit(step, event);
        Some(request)
    }

    fn evaluate(&mut self, step: Step) -> Vec<MetricValue> {
        self.log.begin();
        let scores = self
            .evaluation
            .evaluate(&self.model, step, &self.emitter, &self.control);
        (self.put_back)(step, true);
        self.log.evaluated(step, &scores);
        scores
    }

    fn save(
        &mut self,
        step: Step,
        scores: Vec<MetricValue>,
        writer: &mut CheckpointWriter<'_>,
    ) -> Result<()> {
        let (observers, asked) = self.observers.export(step, &self.emitter, &self.control);
        (self.put_back)(step, true);
        let mut live = self.live(step)?;
        live.state.learning_rate_factor = self.learning_rate_factor;
        live.state.asked = asked;
        live.observers = observers;
        live.metrics = scores;
        let (waited, copied) = writer.save(live)?;
        self.log.saved(step, waited, copied);
        Ok(())
    }

    /// Makes weights, optimizer and random numbers those of the last complete checkpoint and returns
    /// its step. The data goes on where it is: the batches that led here are not met again.
    fn roll_back(&mut self, step: Step, writer: &mut CheckpointWriter<'_>) -> Result<Step> {
        self.log.flush()?;
        writer.settle()?;
        let Some((back, folder)) = checkpoint::newest(&self.checkpoints, step) else {
            let message = "there is no checkpoint to go back to; training continues".to_owned();
            self.emitter.emit(step, EventBody::Warning { message });
            return Ok(step);
        };
        let stored = Stored::read(&folder)?;
        self.model.load(&folder)?;
        self.optimizer.restore(stored.optimizer)?;
        self.random.restore(&stored.random)?;
        self.emitter.emit(
            back,
            EventBody::Superseded {
                from_step: back,
                generation: self.generation,
            },
        );
        self.log.begin();
        Ok(back)
    }

    /// What a checkpoint of this moment is made from, but for what others add to it.
    fn live(&self, step: Step) -> Result<Live<'_>> {
        Ok(Live {
            state: TrainerState::new(
                step,
                self.loader.cursor(),
                self.fingerprint.clone(),
                self.setup.clone(),
            ),
            model: self
                .model
                .params
                .iter()
                .map(|param| (param.name.as_str(), &param.tensor))
                .collect(),
            optimizer: self.optimizer.state(),
            random: self.random.take()?,
            buffer: self.loader.buffer(),
            observers: BTreeMap::new(),
            metrics: Vec::new(),
        })
    }
}
