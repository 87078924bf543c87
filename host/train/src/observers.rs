use std::collections::{BTreeMap, VecDeque};

use host_core::{
    Ask, Asked, Control, Emitter, EventBody, Inbox, Observer, Request, Result, Step, Supervised,
};

/// The observers of a run, the events that they have not received yet, and their pending requests.
pub struct Observers {
    /// The observers. Their labels are unique.
    observers: Vec<Supervised<dyn Observer>>,
    inbox: Inbox,
    /// Requests that have not been carried out yet. They are stored in checkpoints, because observers do not
    /// repeat them.
    asked: VecDeque<Asked>,
}

/// The name of the call that passes an event to an observer.
const OBSERVE: &str = "observe";

impl Observers {
    /// Creates the set of observers. The run's emitter must copy its events into `inbox`.
    pub fn new(observers: Vec<Supervised<dyn Observer>>, inbox: Inbox) -> Self {
        Self {
            observers,
            inbox,
            asked: VecDeque::new(),
        }
    }

    /// Passes new events to the observers: all events since the last call of this function. If an observer
    /// fails at an event, it does not receive this event again.
    pub(crate) fn observe(&mut self, step: Step, emitter: &Emitter, control: &Control) {
        let (events, lost) = self.inbox.take();
        if lost > 0 {
            let message = format!("the observers missed {lost} events: too many in one step");
            emitter.emit(step, EventBody::Warning { message });
        }
        for (at, event) in &events {
            // Without this check, two observers that fail at every event would trigger each other endlessly.
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
                // Only a handled event resets the count of consecutive failures. Unwanted events and exported
                // states do not.
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

    /// Removes and returns the next request.
    pub(crate) fn take(&mut self) -> Option<Asked> {
        self.asked.pop_front()
    }

    /// Returns whether a request to roll back is pending.
    pub(crate) fn wants_roll_back(&self) -> bool {
        let mut asked = self.asked.iter();
        asked.any(|asked| asked.request == Request::RollBack)
    }

    /// Returns the data to store in a checkpoint: the observers' states by label, and the pending requests.
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

    /// Restores the states and requests from a checkpoint. Returns the labels of the states for which there
    /// is no observer.
    ///
    /// # Errors
    /// Returns an error if an observer rejects its state.
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

/// Calls an observer, unless it is disabled. If the call fails, emits an event and applies the observer's
/// failure policy.
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
            let consequence = "it receives no more events and makes no more requests";
            watched
                .failed(error, lost)
                .carry_out(step, emitter, control, consequence);
            None
        }
    }
}
