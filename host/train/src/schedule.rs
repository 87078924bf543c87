use std::f64::consts::PI;

use crate::config::{SchedulerType, TrainConfig};

/// The learning rate as a function of the step, with the formulas of transformers' `optimization.py`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    pub(crate) kind: SchedulerType,
    pub(crate) peak: f64,
    pub(crate) warmup_steps: u64,
    /// Number of steps of the decay. Used only by `warmup_stable_decay`.
    pub(crate) decay_steps: u64,
    pub(crate) total_steps: u64,
}

/// The final learning rate of `polynomial`: transformers' `lr_end`.
const POLYNOMIAL_END: f64 = 1e-7;

impl Schedule {
    /// Returns the schedule that a configuration specifies.
    pub(crate) fn of(config: &TrainConfig) -> Self {
        Self {
            kind: config.lr_scheduler_type,
            peak: config.learning_rate,
            warmup_steps: config.num_warmup_steps,
            decay_steps: config
                .num_decay_steps
                .unwrap_or(config.max_train_steps / 10),
            total_steps: config.max_train_steps,
        }
    }

    /// Returns the learning rate of the step that follows `done` finished steps. Warm-up begins at 0.
    pub(crate) fn learning_rate(&self, done: u64) -> f64 {
        if self.kind != SchedulerType::Constant && done < self.warmup_steps {
            return self.peak * (done as f64 / self.warmup_steps.max(1) as f64);
        }
        let progress =
            |begin: u64, steps: u64| done.saturating_sub(begin) as f64 / steps.max(1) as f64;
        let half_cosine = |progress: f64| (0.5 * (1.0 + (PI * progress).cos())).max(0.0);
        let all = progress(
            self.warmup_steps,
            self.total_steps.saturating_sub(self.warmup_steps),
        );
        match self.kind {
            SchedulerType::Constant | SchedulerType::ConstantWithWarmup => self.peak,
            SchedulerType::Linear => self.peak * (1.0 - all).max(0.0),
            SchedulerType::Cosine => self.peak * half_cosine(all),
            // A single cycle, as is the default in transformers. Afterwards the learning rate stays at 0.
            SchedulerType::CosineWithRestarts if all >= 1.0 => 0.0,
            SchedulerType::CosineWithRestarts => self.peak * half_cosine(all),
            SchedulerType::Polynomial if all > 1.0 => POLYNOMIAL_END,
            SchedulerType::Polynomial => {
                (self.peak - POLYNOMIAL_END) * (1.0 - all) + POLYNOMIAL_END
            }
            SchedulerType::WarmupStableDecay => {
                let begin = self.total_steps.saturating_sub(self.decay_steps);
                match progress(begin, self.decay_steps) {
                    decay if decay >= 1.0 => 0.0,
                    decay => self.peak * half_cosine(decay),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(kind: SchedulerType) -> Vec<f64> {
        let schedule = Schedule {
            kind,
            peak: 1.0,
            warmup_steps: 2,
            decay_steps: 2,
            total_steps: 6,
        };
        (0..8).map(|done| schedule.learning_rate(done)).collect()
    }

    /// The expected values are from transformers' `get_scheduler(NAME, optimizer, 2, 6)` with a peak of 1.
    /// The parity tests compare longer schedules with transformers itself.
    #[test]
    fn rates_are_those_of_transformers() {
        let near = |kind, expected: [f64; 8]| {
            for (rate, expected) in rates(kind).iter().zip(expected) {
                assert!(
                    (rate - expected).abs() < 1e-6,
                    "{kind:?}: {rate}, expected {expected}"
                );
            }
        };
        near(
            SchedulerType::Linear,
            [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0],
        );
        near(
            SchedulerType::Cosine,
            [
                0.0,
                0.5,
                1.0,
                0.853_553_4,
                0.5,
                0.146_446_6,
                0.0,
                0.146_446_6,
            ],
        );
        near(
            SchedulerType::CosineWithRestarts,
            [0.0, 0.5, 1.0, 0.853_553_4, 0.5, 0.146_446_6, 0.0, 0.0],
        );
        near(
            SchedulerType::Polynomial,
            [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0],
        );
        near(SchedulerType::Constant, [1.0; 8]);
        near(
            SchedulerType::ConstantWithWarmup,
            [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        );
        near(
            SchedulerType::WarmupStableDecay,
            [0.0, 0.5, 1.0, 1.0, 1.0, 0.5, 0.0, 0.0],
        );
    }
}
