//! The warnings of a run. There is one way for all of them: each is an event, and so reaches the
//! terminal, the store, `--json` and every client alike. What is to be warned of before the run's store
//! is open waits for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use host_core::{Emitter, EventBody, Step};

use crate::show::progress::Progress;

/// Warnings that are put on record of what one plugin logs; the others are only shown.
const OF_A_PLUGIN: u64 = 100;

/// Where warnings go. `[any]`, shared.
#[derive(Clone)]
pub(crate) struct Warnings {
    progress: Progress,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    stage: Stage,
    /// What each plugin has logged.
    logged: HashMap<String, u64>,
}

#[derive(Default)]
enum Stage {
    /// There is no store yet.
    Held(Vec<String>),
    Live(Live),
    /// The store is closed: only the terminal is left.
    #[default]
    Over,
}

/// The way into the store.
struct Live {
    emitter: Emitter,
    /// One that observers do not hear: of what plugins log, lest an observer that warns of warnings never
    /// ends.
    unheard: Emitter,
    step: Box<dyn Fn() -> Step + Send>,
}

impl Warnings {
    /// Of a run that has not begun.
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

    /// Warns of something, in half a sentence.
    pub(crate) fn warn(&self, message: impl Into<String>) {
        self.state().stage.warn(message.into(), &self.progress);
    }

    /// What a plugin logged as a warning, or worse. Of one that logs without end the store gets the first
    /// alone.
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
                "{plugin} has logged {OF_A_PLUGIN} warnings: later ones are in the terminal alone"
            );
            stage.warn(message, &self.progress);
        }
    }

    /// The run's store is open: what was held becomes events, at the step that `step` tells. Observers hear
    /// what `emitter` emits and not what `unheard` does.
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

    /// The run is over, or never began: what is still held is only shown.
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
    fn what_is_held_becomes_events_and_a_plugin_that_logs_without_end_a_hundred() {
        let warnings = Warnings::new(&Progress::new(Style::Lines, 0));
        warnings.warn("early");
        let (emitter, drafts) = Emitter::new(1000);
        warnings.begin(emitter.clone(), emitter, || Step(7));
        (0..300).for_each(|n| warnings.logged("talker", &format!("line {n}")));
        warnings.logged("other", "once");
        // Lets the emitter go, so that the store can close.
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
        assert!(said[101].1.contains("terminal alone"), "{}", said[101].1);
        assert_eq!(said[102].1, "other: once");
    }
}
