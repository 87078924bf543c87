//! The warnings of a run. Every warning is an event, so it reaches the terminal, the store, `--json` and
//! every client. A warning emitted before the run's store is open is held until then.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use host_core::{Emitter, EventBody, Step};

use crate::show::progress::Progress;

/// Maximum number of logged warnings to record per plugin; further warnings are only shown.
const OF_A_PLUGIN: u64 = 100;

/// The destination of warnings. `[any]`, shared.
#[derive(Clone)]
pub(crate) struct Warnings {
    progress: Progress,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    stage: Stage,
    /// Number of warnings that each plugin has logged.
    logged: HashMap<String, u64>,
}

#[derive(Default)]
enum Stage {
    /// The store is not open yet.
    Held(Vec<String>),
    Live(Live),
    /// The store is closed, so warnings are only shown on the terminal.
    #[default]
    Over,
}

/// The emitters that write to the store, and a function that returns the run's current step.
struct Live {
    emitter: Emitter,
    /// Emits the warnings that plugins log. Observers do not receive these warnings. Otherwise, an observer
    /// that logs a warning for each warning it receives would cause an endless loop.
    unheard: Emitter,
    step: Box<dyn Fn() -> Step + Send>,
}

impl Warnings {
    /// Creates the destination for the warnings of a run that has not started.
    pub(crate) fn new(progress: &Progress) -> Self {
        let state = State {
            stage: Stage::Held(Vec::new()),
            logged: HashMap::new(),
        };
        Self {
            progress: progress.clone(),
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Emits a warning. The message should be short and have no full stop.
    pub(crate) fn warn(&self, message: impl Into<String>) {
        self.state().stage.warn(message.into(), &self.progress);
    }

    /// Emits a message that a plugin logged as a warning or an error. Only the first `OF_A_PLUGIN` messages
    /// of each plugin are recorded.
    pub(crate) fn logged(&self, plugin: &str, message: &str) {
        let mut state = self.state();
        let State { stage, logged } = &mut *state;
        let count = logged.entry(plugin.to_owned()).or_default();
        *count += 1;
        let message = format!("{plugin}: {message}");
        match *count {
            ..=OF_A_PLUGIN => stage.logged(message, &self.progress),
            _ => self.progress.say(&format!("warning: {message}")),
        }
        if *count == OF_A_PLUGIN {
            let message = format!(
                "{plugin} has logged {OF_A_PLUGIN} warnings: later ones are only shown in the terminal"
            );
            stage.warn(message, &self.progress);
        }
    }

    /// Called once the run's store is open. Emits the held warnings as events. `step` returns the step of
    /// these events. Observers receive what `emitter` emits, but not what `unheard` emits.
    pub(crate) fn begin(
        &self,
        emitter: Emitter,
        unheard: Emitter,
        step: impl Fn() -> Step + Send + 'static,
    ) {
        let stage = Stage::Live(Live {
            emitter,
            unheard,
            step: Box::new(step),
        });
        let mut state = self.state();
        if let Stage::Held(held) = std::mem::replace(&mut state.stage, stage) {
            for message in held {
                state.stage.warn(message, &self.progress);
            }
        }
    }

    /// Called when the run has ended or failed to start. Prints the held warnings to the terminal.
    pub(crate) fn end(&self) {
        let before = std::mem::take(&mut self.state().stage);
        if let Stage::Held(held) = before {
            held.into_iter().for_each(|message| self.warn(message));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stage {
    fn warn(&mut self, message: String, progress: &Progress) {
        match self {
            Self::Held(held) => held.push(message),
            Self::Live(live) => {
                let step = (live.step)();
                live.emitter.emit(step, EventBody::Warning { message });
            }
            Self::Over => progress.insist(&format!("warning: {message}")),
        }
    }

    fn logged(&mut self, message: String, progress: &Progress) {
        match self {
            Self::Live(live) => {
                let step = (live.step)();
                live.unheard.emit(step, EventBody::Warning { message });
            }
            _ => self.warn(message, progress),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::progress::Style;

    #[test]
    fn held_warnings_become_events_and_a_plugin_has_at_most_a_hundred() {
        let warnings = Warnings::new(&Progress::new(Style::Lines, 0));
        warnings.warn("early");
        let (emitter, drafts) = Emitter::new(1000);
        warnings.begin(emitter.clone(), emitter, || Step(7));
        (0..300).for_each(|n| warnings.logged("talker", &format!("line {n}")));
        warnings.logged("other", "once");
        // Drops the emitter, so that the store can close.
        warnings.end();
        let said: Vec<(Step, String)> = drafts
            .iter()
            .map(|draft| match draft.body {
                EventBody::Warning { message } => (draft.step, message),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(said.len(), 103);
        assert_eq!(said[0], (Step(7), "early".to_owned()));
        assert_eq!(said[100].1, "talker: line 99");
        assert!(
            said[101].1.contains("only shown in the terminal"),
            "{}",
            said[101].1
        );
        assert_eq!(said[102].1, "other: once");
    }
}
