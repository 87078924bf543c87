use std::collections::BTreeMap;

use host_core::{Ask, Emitter, EventBody, Inbox, Observer, Request, Result, Step};
use serde::{Deserialize, Serialize};

/// The observers of a run, what they have yet to see, and what they asked for.
pub struct Observers {
    /// Each under a label of its own.
    observers: Vec<Watching>,
    inbox: Inbox,
    asked: Vec<Asked>,
}

struct Watching {
    label: String,
    observer: Box<dyn Observer>,
    /// After its first failure an observer is left alone: its state may be anything.
    failed: bool,
}

/// A request that was not carried out yet. It is part of a checkpoint: who asked will not ask again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Asked {
    by: String,
    request: Request,
    reason: String,
}

impl Observers {
    /// The observers, each with its label; `inbox` gets what the run's emitter emits.
    pub fn new(observers: Vec<(String, Box<dyn Observer>)>, inbox: Inbox) -> Self {
        let watching = |(label, observer)| Watching {
            label,
            observer,
            failed: false,
        };
        Self {
            observers: observers.into_iter().map(watching).collect(),
            inbox,
            asked: Vec::new(),
        }
    }

    /// Shows them what happened since the last time.
    pub(crate) fn observe(&mut self, step: Step, emitter: &Emitter) {
        let (events, lost) = self.inbox.take();
        if lost > 0 {
            let message = format!("the observers did not see {lost} events: too many at once");
            emitter.emit(step, EventBody::Warning { message });
        }
        for (at, event) in &events {
            for watching in &mut self.observers {
                let asks = watching
                    .call("observe", step, emitter, |observer| {
                        observer.observe(*at, event)
                    })
                    .unwrap_or_default();
                let asked = |Ask { request, reason }| Asked {
                    by: watching.label.clone(),
                    request,
                    reason,
                };
                self.asked.extend(asks.into_iter().map(asked));
            }
        }
    }

    /// What they ask for at this step boundary, each recorded as carried out now.
    pub(crate) fn requests(&mut self, step: Step, emitter: &Emitter) -> Vec<Request> {
        self.observe(step, emitter);
        let carried_out = |asked: Asked| {
            let request = asked.request;
            emitter.emit(
                step,
                EventBody::Request {
                    by: asked.by,
                    request,
                    reason: asked.reason,
                },
            );
            request
        };
        self.asked.drain(..).map(carried_out).collect()
    }

    /// What a checkpoint keeps of them: their states by label, and what they asked for.
    pub(crate) fn export(
        &mut self,
        step: Step,
        emitter: &Emitter,
    ) -> (BTreeMap<String, Vec<u8>>, Vec<Asked>) {
        self.observe(step, emitter);
        let mut states = BTreeMap::new();
        for watching in &mut self.observers {
            let state = watching.call("export_state", step, emitter, |observer| {
                observer.export_state()
            });
            if let Some(state) = state.filter(|state| !state.is_empty()) {
                states.insert(watching.label.clone(), state);
            }
        }
        (states, self.asked.clone())
    }

    /// Takes back what a checkpoint kept.
    ///
    /// # Errors
    /// An observer refuses its state.
    pub(crate) fn import(
        &mut self,
        states: &BTreeMap<String, Vec<u8>>,
        asked: Vec<Asked>,
    ) -> Result<()> {
        for watching in &mut self.observers {
            if let Some(state) = states.get(&watching.label) {
                watching.observer.import_state(state)?;
            }
        }
        self.asked = asked;
        Ok(())
    }
}

impl Watching {
    fn call<T>(
        &mut self,
        call: &str,
        step: Step,
        emitter: &Emitter,
        f: impl FnOnce(&mut dyn Observer) -> Result<T>,
    ) -> Option<T> {
        if self.failed {
            return None;
        }
        f(&mut *self.observer)
            .inspect_err(|error| {
                self.failed = true;
                emitter.emit(
                    step,
                    EventBody::PluginFault {
                        plugin: self.label.clone(),
                        call: call.to_owned(),
                        message: error.to_string(),
                    },
                );
            })
            .ok()
    }
}
