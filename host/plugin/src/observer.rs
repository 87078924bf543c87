use std::ffi::c_void;
use std::ptr;

use host_core::{Ask, EventBody, Observer, Result, Step};
use host_plugin_abi::{
    HOST_ERROR, HOST_UNSUPPORTED, HostCreate, HostDestroy, HostEvent, HostObserver, HostOut,
    HostRequestsOut, HostStatus, HostStr,
};

use crate::event::{self, with_view};
use crate::host_api::{cut, message_of, one_line};
use crate::instance::{Collector, Instance};
use crate::out::{Output, answer};
use crate::vtable::required;
use crate::{EventKind, PluginKind};

/// Maximum number of requests per call.
const MOST_ASKS: usize = 16;
/// Maximum length of a reason in bytes; a longer reason is truncated.
const LONGEST_REASON: usize = 1000;

type Observe =
    unsafe extern "C" fn(*mut c_void, *const HostEvent, *const HostRequestsOut) -> HostStatus;

/// A plugin's function table for an observer, with all required functions present.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the ABI documents the fields of its table")]
pub struct ObserverFunctions {
    pub create: HostCreate,
    pub destroy: HostDestroy,
    pub observe: Observe,
    pub state: Option<StateFunctions>,
}

/// The functions that export and import the state. A plugin must have both or neither, since a state that
/// cannot be imported is useless.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the ABI documents the fields of its table")]
pub struct StateFunctions {
    pub export_state: unsafe extern "C" fn(*mut c_void, *const HostOut) -> HostStatus,
    pub import_state: unsafe extern "C" fn(*mut c_void, HostStr) -> HostStatus,
}

impl ObserverFunctions {
    pub(crate) fn from_table(table: HostObserver) -> Result<Self, String> {
        let kind = PluginKind::Observer;
        let state = match (table.export_state, table.import_state) {
            (None, None) => None,
            (export_state, import_state) => Some(StateFunctions {
                export_state: required(kind, "export_state", export_state)?,
                import_state: required(kind, "import_state", import_state)?,
            }),
        };
        Ok(Self {
            create: required(kind, "create", table.create)?,
            destroy: required(kind, "destroy", table.destroy)?,
            observe: required(kind, "observe", table.observe)?,
            state,
        })
    }
}

/// Adapts a plugin's observer to the host's `Observer` trait.
#[derive(Debug)]
pub(crate) struct PluginObserver {
    pub(crate) instance: Instance,
    pub(crate) functions: ObserverFunctions,
    /// The kinds of events that the observer receives; `None` means all.
    pub(crate) events: Option<Vec<EventKind>>,
}

impl Observer for PluginObserver {
    fn id(&self) -> &str {
        self.instance.id()
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
        let observe = self.functions.observe;
        let show = |instance, requests: &mut Requests| {
            let out = requests.callbacks();
            // SAFETY: the library created the instance; the event and the callbacks' context outlive
            // the call.
            with_view(step, event, |event| unsafe {
                observe(instance, event, &raw const out)
            })
        };
        let requests = Requests::default();
        self.instance
            .call("observe", requests, show, Requests::into_result)
            .map_err(|failure| self.instance.error("observe", &failure))
    }

    fn export_state(&mut self) -> Result<Vec<u8>> {
        let Some(StateFunctions { export_state, .. }) = self.functions.state else {
            return Ok(Vec::new());
        };
        let put = |instance, output: &mut Output| {
            let out = output.callbacks();
            // SAFETY: the library created the instance; the callbacks' context outlives the call.
            unsafe { export_state(instance, &raw const out) }
        };
        self.instance
            .call("export_state", Output::default(), put, Output::into_bytes)
            .map_err(|failure| self.instance.error("export_state", &failure))
    }

    fn import_state(&mut self, state: &[u8]) -> Result<()> {
        let hint =
            "use the same version and settings of the plugin as when the checkpoint was written";
        match self.functions.state {
            _ if state.is_empty() => Ok(()),
            None => {
                let reason = format!(
                    "it has no state, but the checkpoint has a state of {} bytes for it",
                    state.len()
                );
                Err(self.instance.refusal("import_state", &reason))
            }
            Some(StateFunctions { import_state, .. }) => {
                // SAFETY: the library created the instance; the bytes outlive the call.
                self.instance.act("import_state", |instance| unsafe {
                    import_state(instance, HostStr::from_bytes(state))
                })
            }
        }
        .map_err(|error| error.hint(hint))
    }

    fn lost(&self) -> Option<String> {
        let call = self.instance.panicked()?;
        Some(format!("it panicked in {call}, and its state is lost"))
    }
}

/// The requests that a plugin makes in one call. Lives on the host's stack during the call.
#[derive(Debug, Default)]
pub struct Requests {
    asks: Vec<Ask>,
    /// The first fault. If there is one, the call fails, even if the plugin ignores the fault.
    fault: Option<String>,
}

impl Collector for Requests {
    fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }
}

impl Requests {
    /// Returns the callback that adds requests to this collector. The callback contains the collector's
    /// address, so the collector must not be moved or accessed until the call returns.
    pub fn callbacks(&mut self) -> HostRequestsOut {
        HostRequestsOut {
            struct_size: size_of::<HostRequestsOut>() as u32,
            reserved: 0,
            ctx: ptr::from_mut(self).cast(),
            ask: Some(ask),
        }
    }

    /// Returns the requests.
    ///
    /// # Errors
    /// Returns the first fault, if a request has a fault.
    pub fn into_result(self) -> Result<Vec<Ask>, String> {
        match self.fault {
            Some(fault) => Err(fault),
            None => Ok(self.asks),
        }
    }

    fn ask(&mut self, ask: Ask) -> Result<(), String> {
        if self.asks.len() == MOST_ASKS {
            return Err(format!(
                "it made more than {MOST_ASKS} requests in one call"
            ));
        }
        if ask.reason.is_empty() {
            return Err("it made a request without a reason".to_owned());
        }
        ask.request
            .check()
            .map_err(|error| format!("it made an invalid request: {error}"))?;
        self.asks.push(ask);
        Ok(())
    }
}

unsafe extern "C" fn ask(
    ctx: *mut c_void,
    request: u32,
    factor: f64,
    reason: HostStr,
) -> HostStatus {
    // SAFETY: the plugin passes the context of this call, and nothing else accesses its requests.
    let Some(requests) = (unsafe { ctx.cast::<Requests>().as_mut() }) else {
        return HOST_ERROR;
    };
    // The request belongs to a newer ABI. The plugin can make another request instead.
    let Some(request) = event::request(request, factor) else {
        return HOST_UNSUPPORTED;
    };
    let mut fault = requests.fault.take();
    let status = answer(&mut fault, || {
        // SAFETY: the ABI guarantees that the reason is readable until this callback returns.
        let reason = one_line(&unsafe { message_of(reason) });
        let reason = cut(reason, LONGEST_REASON);
        requests.ask(Ask { request, reason })
    });
    requests.fault = fault;
    status
}
