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

/// Most requests that one call may make.
const MOST_ASKS: usize = 16;
/// Longest reason that is kept, in bytes; the rest is cut off.
const LONGEST_REASON: usize = 1000;

type Observe =
    unsafe extern "C" fn(*mut c_void, *const HostEvent, *const HostRequestsOut) -> HostStatus;

/// A plugin's functions for an observer, all there.
#[derive(Clone, Copy, Debug)]
#[expect(
    missing_docs,
    reason = "the fields of the ABI's table have their documentation there"
)]
pub struct ObserverFunctions {
    pub create: HostCreate,
    pub destroy: HostDestroy,
    pub observe: Observe,
    pub state: Option<StateFunctions>,
}

/// Both or neither: a state that nobody can read again is a mistake.
#[derive(Clone, Copy, Debug)]
#[expect(
    missing_docs,
    reason = "the fields of the ABI's table have their documentation there"
)]
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

/// A plugin's observer as the host's port.
#[derive(Debug)]
pub(crate) struct PluginObserver {
    pub(crate) instance: Instance,
    pub(crate) functions: ObserverFunctions,
    /// What it is shown; everything if nothing is said.
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
            // SAFETY: the instance is the library's own; the event and the callbacks' context outlive
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
            // SAFETY: the instance is the library's own; the callbacks' context outlives the call.
            unsafe { export_state(instance, &raw const out) }
        };
        self.instance
            .call("export_state", Output::default(), put, Output::into_bytes)
            .map_err(|failure| self.instance.error("export_state", &failure))
    }

    fn import_state(&mut self, state: &[u8]) -> Result<()> {
        let hint = "the checkpoint was written with another version of the plugin, or with other \
                    settings of it; use those";
        match self.functions.state {
            _ if state.is_empty() => Ok(()),
            None => {
                let reason = format!(
                    "it keeps no state, and was given one of {} bytes",
                    state.len()
                );
                Err(self.instance.refusal("import_state", &reason))
            }
            Some(StateFunctions { import_state, .. }) => {
                // SAFETY: the instance is the library's own; the bytes outlive the call.
                self.instance.act("import_state", |instance| unsafe {
                    import_state(instance, HostStr::from_bytes(state))
                })
            }
        }
        .map_err(|error| error.hint(hint))
    }

    fn lost(&self) -> Option<String> {
        let call = self.instance.panicked()?;
        Some(format!(
            "it panicked in {call}, and what it had seen is lost"
        ))
    }
}

/// What a call asks for. It lives on the host's stack for the length of one call.
#[derive(Debug, Default)]
pub struct Requests {
    asks: Vec<Ask>,
    /// The first thing that was wrong; it fails the call whatever the plugin makes of it.
    fault: Option<String>,
}

impl Collector for Requests {
    fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }
}

impl Requests {
    /// The callback that fills this. It holds its address: do not touch it until the call returns.
    pub fn callbacks(&mut self) -> HostRequestsOut {
        HostRequestsOut {
            struct_size: size_of::<HostRequestsOut>() as u32,
            reserved: 0,
            ctx: ptr::from_mut(self).cast(),
            ask: Some(ask),
        }
    }

    /// What was asked for.
    ///
    /// # Errors
    /// Says what was wrong with the first faulty request.
    pub fn into_result(self) -> Result<Vec<Ask>, String> {
        match self.fault {
            Some(fault) => Err(fault),
            None => Ok(self.asks),
        }
    }

    fn ask(&mut self, ask: Ask) -> Result<(), String> {
        if self.asks.len() == MOST_ASKS {
            return Err(format!("it asked for more than {MOST_ASKS} things at once"));
        }
        if ask.reason.is_empty() {
            return Err("it asked for something without a reason".to_owned());
        }
        ask.request
            .check()
            .map_err(|error| format!("it asked for what cannot be: {error}"))?;
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
    // SAFETY: the plugin hands back the context of this call, whose requests nobody else touches.
    let Some(requests) = (unsafe { ctx.cast::<Requests>().as_mut() }) else {
        return HOST_ERROR;
    };
    // Of a newer plugin, which may make do with another.
    let Some(request) = event::request(request, factor) else {
        return HOST_UNSUPPORTED;
    };
    let mut fault = requests.fault.take();
    let status = answer(&mut fault, || {
        // SAFETY: by the ABI the reason is readable until this returns.
        let reason = one_line(&unsafe { message_of(reason) });
        let reason = cut(reason, LONGEST_REASON);
        requests.ask(Ask { request, reason })
    });
    requests.fault = fault;
    status
}
