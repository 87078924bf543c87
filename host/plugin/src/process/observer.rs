use std::borrow::Cow;

use host_core::{Ask, EventBody, Observer, Result, Step};

use super::protocol::{Call, Reply};
use super::remote::Remote;
use crate::EventKind;

/// An observer in a child process.
#[derive(Debug)]
pub(crate) struct RemoteObserver {
    remote: Remote,
    /// The kinds of events that the observer receives; `None` means all.
    events: Option<Vec<EventKind>>,
    /// The last state that the observer exported or imported. A restarted child continues from this state.
    last_state: Vec<u8>,
    /// Whether the current child has the state in `last_state`.
    is_restored: bool,
}

impl RemoteObserver {
    pub(crate) fn new(remote: Remote, events: Option<Vec<EventKind>>) -> Self {
        Self {
            remote,
            events,
            last_state: Vec::new(),
            is_restored: true,
        }
    }

    fn call(&mut self, call: &Call<'_>, parts: &[&[u8]]) -> Result<Reply> {
        let revived = self
            .remote
            .revive(&|| None)
            .map_err(|error| self.remote.error(call.name(), error))?;
        if revived {
            self.is_restored = self.last_state.is_empty();
        }
        if !self.is_restored && !matches!(call, Call::ImportState) {
            self.remote.ask(&Call::ImportState, &[&self.last_state])?;
            self.is_restored = true;
        }
        self.remote.ask(call, parts)
    }
}

impl Observer for RemoteObserver {
    fn id(&self) -> &str {
        self.remote.id()
    }

    fn wants(&self, event: &EventBody) -> bool {
        let kind = EventKind::of(event);
        let events = self.events.as_ref();
        events.is_none_or(|events| events.contains(&kind))
    }

    fn observe(&mut self, step: Step, event: &EventBody) -> Result<Vec<Ask>> {
        if !self.wants(event) {
            return Ok(Vec::new());
        }
        let call = Call::Observe {
            step,
            event: Cow::Borrowed(event),
        };
        match self.call(&call, &[])? {
            Reply::Asks(asks) => Ok(asks),
            _ => Err(self.remote.wrong_reply(call.name())),
        }
    }

    fn export_state(&mut self) -> Result<Vec<u8>> {
        match self.call(&Call::ExportState, &[])? {
            Reply::State => {
                self.last_state = self.remote.behind().to_vec();
                Ok(self.last_state.clone())
            }
            _ => Err(self.remote.wrong_reply("export_state")),
        }
    }

    fn import_state(&mut self, state: &[u8]) -> Result<()> {
        match self.call(&Call::ImportState, &[state])? {
            Reply::Done => {
                self.last_state = state.to_vec();
                self.is_restored = true;
                Ok(())
            }
            _ => Err(self.remote.wrong_reply("import_state")),
        }
    }

    fn lost(&self) -> Option<String> {
        self.remote.lost()
    }
}
