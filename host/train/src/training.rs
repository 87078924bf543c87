use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::Scope;

use host_core::{EventBody, MetricValue, Result, Step, StopReason};

use crate::boundary::Boundary;
use crate::checkpoint::{self, BoundaryState, CheckpointWriter, Layout, Setup, Stored};
use crate::collective::Collective;
use crate::evaluate::Evaluation;
use crate::optimizer::Optimizer;
use crate::ports::{Outcome, Ports};
use crate::rank_report;
use crate::skipped_data::SkippedData;
use crate::state::State;
use crate::step_log::StepLog;
use crate::trainer::Trainer;

/// The state of a training run. Its methods are the operations of the training loop: log, evaluate, save, and
/// roll back. They do not include the training step.
pub(crate) struct Training<'scope> {
    pub(crate) state: State,
    pub(crate) log: StepLog,
    evaluation: Evaluation,
    /// `None` on a rank other than the lead.
    writer: Option<CheckpointWriter<'scope>>,
    /// The step of the last checkpoint, or the step at which this process began.
    saved: Step,
    /// The folder for the checkpoints.
    checkpoints: PathBuf,
    /// Number of times the run was resumed.
    generation: u32,
    skipped_data: Arc<SkippedData>,
    collective: Collective,
}

impl<'scope> Training<'scope> {
    /// Prepares the first step. Returns the run's state, and the boundary that carries out requests between
    /// its steps. The checkpoint writer's thread ends when the returned `Training` is dropped.
    ///
    /// # Errors
    /// Returns an error if the data cannot be read, the checkpoint to resume from cannot be restored, the
    /// thread cannot be started, or the first evaluation fails.
    pub(crate) fn begin<'env>(
        trainer: Trainer,
        ports: Ports<'env>,
        scope: &'scope Scope<'scope, 'env>,
    ) -> Result<(Self, Boundary<'env>)> {
        let collective = trainer.collective.clone();
        let is_lead = collective.is_lead();
        collective.join_stops(&ports.boundary.control);
        if is_lead {
            trainer.announce(&ports.emitter)?;
            rank_report::announce(trainer.step, &trainer.config, &collective, &ports.emitter);
        }
        let config = trainer.config;
        let emitter = ports.emitter.clone();
        let skipped = SkippedData::new(trainer.loader.left_out().clone(), emitter.clone());
        let skipped_data = Arc::new(skipped);
        let log = StepLog::new(
            emitter.clone(),
            &config,
            &trainer.model,
            &trainer.loader,
            collective.clone(),
        );
        let mut state = State {
            step: trainer.step,
            optimizer: Optimizer::new(&trainer.model.params, &ports.groups),
            model: trainer.model,
            loader: trainer.loader,
            random: trainer.random,
            fingerprint: trainer.fingerprint,
            setup: Setup::of(&config),
            global_batch: trainer.global_batch,
        };
        let mut boundary =
            Boundary::new(&config, collective.clone(), emitter.clone(), ports.boundary);
        if let Some(mut stored) = trainer.stored {
            boundary.import(state.step, stored.take_boundary())?;
            state.restore(stored)?;
        }
        state.follow_lead(&collective)?;
        boundary.follow_lead()?;
        let layout = Layout {
            folder: ports.checkpoints.folder.clone(),
            files: trainer.checkpoint_files,
            keep: config.keep_checkpoints,
            stuck: BTreeSet::new(),
        };
        let folder = ports.checkpoints.folder.clone();
        let checkpoints = skipped_data.report_with(ports.checkpoints);
        let writer = match is_lead {
            true => {
                let view = state.view()?;
                Some(CheckpointWriter::spawn(
                    scope,
                    layout,
                    emitter,
                    checkpoints,
                    view,
                )?)
            }
            false => None,
        };
        let mut training = Self {
            saved: state.step,
            state,
            log,
            evaluation: trainer.evaluation,
            writer,
            checkpoints: folder,
            generation: ports.generation,
            skipped_data,
            collective,
        };
        if config.eval_on_start && training.state.step == Step(0) {
            training.evaluate(&mut boundary)?;
        }
        training.log.begin();
        Ok((training, boundary))
    }

    /// Evaluates the model and emits the values.
    ///
    /// # Errors
    /// See [`Evaluation::evaluate`].
    pub(crate) fn evaluate(&mut self, boundary: &mut Boundary<'_>) -> Result<Vec<MetricValue>> {
        let step = self.state.step;
        self.log.begin();
        let scores = self.evaluation.evaluate(
            &self.state.model,
            step,
            &self.collective,
            (&boundary.emitter, &boundary.control),
        )?;
        (boundary.put_back)(step, true);
        self.log.evaluated(step, &scores);
        Ok(scores)
    }

    /// Evaluates the model. Then saves a checkpoint, unless an observer requested a roll-back.
    ///
    /// # Errors
    /// Returns an error if the last loss was not finite, or the checkpoint cannot be written.
    pub(crate) fn evaluate_and_save(&mut self, boundary: &mut Boundary<'_>) -> Result<()> {
        self.log.flush()?;
        let scores = self.evaluate(boundary)?;
        boundary.observe(self.state.step);
        let wants_roll_back = boundary.observers.wants_roll_back();
        if self
            .collective
            .agree(wants_roll_back, "the lead's decision")?
        {
            return Ok(());
        }
        self.save(scores, boundary)
    }

    /// Saves a checkpoint, unless a checkpoint of this step exists or is being written.
    ///
    /// # Errors
    /// See [`Training::evaluate_and_save`].
    pub(crate) fn save_once(&mut self, boundary: &mut Boundary<'_>) -> Result<()> {
        if self.state.step == self.saved && self.saved > Step(0) {
            return Ok(());
        }
        self.log.flush()?;
        self.save(Vec::new(), boundary)
    }

    fn save(&mut self, scores: Vec<MetricValue>, boundary: &mut Boundary<'_>) -> Result<()> {
        let step = self.state.step;
        self.state.compare_weights(&self.collective)?;
        self.collective.unlimited("writing a checkpoint");
        let BoundaryState {
            learning_rate_factor,
            observers,
            asked,
        } = boundary.export(step);
        let Some(writer) = &mut self.writer else {
            self.saved = step;
            return Ok(());
        };
        let mut view = self.state.view()?;
        view.state.learning_rate_factor = learning_rate_factor;
        view.state.asked = asked;
        view.observers = observers;
        view.metrics = scores;
        let (waited, copied) = writer.save(view)?;
        self.log.saved(step, waited, copied);
        self.saved = step;
        Ok(())
    }

    /// Restores weights, optimizer and random numbers from the last complete checkpoint. The position in the
    /// data does not change, so that the batches that led to the roll-back are not repeated.
    ///
    /// # Errors
    /// Returns an error if the last loss was not finite, or the checkpoint cannot be read.
    pub(crate) fn roll_back(&mut self, boundary: &Boundary<'_>) -> Result<()> {
        self.log.flush()?;
        let step = self.state.step;
        let mut back = None;
        if let Some(writer) = &mut self.writer {
            writer.settle()?;
            back = checkpoint::newest(&self.checkpoints, step);
        }
        let is_possible = self
            .collective
            .agree(back.is_some(), "the lead's decision")?;
        if !is_possible {
            let message = "there is no checkpoint to roll back to; training continues".to_owned();
            boundary.emitter.emit(step, EventBody::Warning { message });
            return Ok(());
        }
        if let Some((back, folder)) = back {
            let stored = Stored::read(&folder)?;
            self.state.model.load(&folder)?;
            self.state.restore(stored)?;
            self.state.step = back;
        }
        self.state.follow_lead(&self.collective)?;
        let back = self.state.step;
        let superseded = EventBody::Superseded {
            from_step: back,
            generation: self.generation,
        };
        boundary.emitter.emit(back, superseded);
        self.log.begin();
        Ok(())
    }

    /// Saves the last checkpoint and waits until it is written. Does not evaluate the model after a signal or
    /// a failure, so that the process ends soon.
    ///
    /// # Errors
    /// Returns an error if the last loss was not finite, or the checkpoint cannot be written.
    pub(crate) fn finish(mut self, mut boundary: Boundary<'_>) -> Result<Outcome> {
        self.log.flush()?;
        let reason = boundary.end();
        let step = self.state.step;
        if step != self.saved {
            let scores = match reason {
                StopReason::Completed | StopReason::Requested => self.evaluate(&mut boundary)?,
                _ => Vec::new(),
            };
            self.save(scores, &mut boundary)?;
        }
        if let Some(writer) = self.writer {
            writer.finish()?;
        }
        // The other ranks end when the last checkpoint is written.
        self.collective.agree((), "the end of the training")?;
        self.collective.leave();
        self.skipped_data.report(step);
        Ok(Outcome { reason, step })
    }
}
