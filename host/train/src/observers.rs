use std::collections::{BTreeMap, VecDeque};

use host_core::{
    Ask, Asked, Control, Emitter, EventBody, Inbox, Observer, Request, Result, Step, Supervised,
};

/// The observers of a run, what they have yet to see, and what they asked for.
pub struct Observers {
    /// Each under a label of its own.
    observers: Vec<Supervised<dyn Observer>>,
    inbox: Inbox,
    /// What was not carried out yet. It is part of a checkpoint: who asked will not ask again.
    asked: VecDeque<Asked>,
}

/// The call that shows an event.
const OBSERVE: &str = "observe";

impl Observers {
    /// The observers; `inbox` gets what the run's emitter emits.
    pub fn new(observers: Vec<Supervised<dyn Observer>>, inbox: Inbox) -> Self {
        Self {
            observers,
            inbox,
            asked: VecDeque::new(),
        }
    }

    /// Shows them what happened since the last time. One that fails at an event misses it.
    pub(crate) fn observe(&mut self, step: Step, emitter: &Emitter, control: &Control) {
        let (events, lost) = self.inbox.take();
        if lost > 0 {
            let message = format!("the observers did not see {lost} events: too many at once");
            emitter.emit(step, EventBody::Warning { message });
        }
        for (at, event) in &events {
            // Two that fail at every event would feed each other for ever.
            if matches!(event, EventBody::PluginFault { call, .. } if call == OBSERVE) {
                continue;
            }
            for watched in &mut self.observers {
                if !watched.port().wants(event) {
                    continue;
                }
                let asks = call(watched, OBSERVE, step, (emitter, control), |observer| {
                    observer.observe(*at, event)
                });
                let Some(asks) = asks else { continue };
                // An event is what ends a row of failures: those it did not want, and its states, do not.
                watched.succeeded();
                let asked = |Ask { request, reason }| Asked {
                    by: watched.label().to_owned(),
                    request,
                    reason,
                };
                self.asked.extend(asks.into_iter().map(asked));
            }
        }
    }

    /// The next thing that they have asked for.
    pub(crate) fn take(&mut self) -> Option<Asked> {
        self.asked.pop_front()
    }

    /// Whether one of them has asked for a roll-back that was not carried out yet.
    pub(crate) fn wants_roll_back(&self) -> bool {
        let mut asked = self.asked.iter();
        asked.any(|asked| asked.request == Request::RollBack)
    }

    /// What a checkpoint keeps of them: their states by label, and what they asked for.
    pub(crate) fn export(
        &mut self,
        step: Step,
        emitter: &Emitter,
        control: &Control,
    ) -> (BTreeMap<String, Vec<u8>>, Vec<Asked>) {
        self.observe(step, emitter, control);
        let mut states = BTreeMap::new();
        for watched in &mut self.observers {
            let state = call(
                watched,
                "export_state",
                step,
                (emitter, control),
                |observer| observer.export_state(),
            );
            if let Some(state) = state.filter(|state| !state.is_empty()) {
                states.insert(watched.label().to_owned(), state);
            }
        }
        (states, self.asked.iter().cloned().collect())
    }

    /// Takes back what a checkpoint kept. Returns the labels of states that no observer takes.
    ///
    /// # Errors
    /// An observer refuses its state.
    pub(crate) fn import(
        &mut self,
        states: &BTreeMap<String, Vec<u8>>,
        asked: Vec<Asked>,
    ) -> Result<Vec<String>> {
        for watched in &mut self.observers {
            let state = states.get(watched.label());
            if let (Some(state), Some(observer)) = (state, watched.active()) {
                observer.import_state(state)?;
            }
        }
        self.asked = asked.into();
        let is_here = |label: &str| {
            self.observers
                .iter()
                .any(|watched| watched.label() == label)
        };
        let labels = states.keys().filter(|label| !is_here(label));
        Ok(labels.cloned().collect())
    }
}

/// Calls an observer, if it is still called. A failure is an event, and its policy says what else.
fn call<T>(
    watched: &mut Supervised<dyn Observer>,
    call: &'static str,
    step: Step,
    (emitter, control): (&Emitter, &Control),
    f: impl FnOnce(&mut dyn Observer) -> Result<T>,
) -> Option<T> {
    match f(watched.active()?) {
        Ok(output) => Some(output),
        Err(error) => {
            emitter.emit(step, watched.fault(call, &error));
            let lost = watched.port().lost();
            let consequence = "it sees nothing and asks for nothing from here on";
            watched
                .failed(error, lost)
                .carry_out(step, emitter, control, consequence);
            None
        }
    }
}
