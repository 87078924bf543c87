use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::Instant;

use host_core::{Error, Kind, Result};
use host_plugin_abi::{
    HOST_CANCELLED, HOST_ERROR, HOST_OK, HOST_PANIC, HOST_TEMPORARY, HOST_UNSUPPORTED, HostApi,
    HostCreate, HostDestroy, HostStatus, HostStr,
};

use crate::CallStats;
use crate::host_api::take_error;

/// What a plugin's `create` made. Dropping it destroys it, and nothing is called after that.
#[derive(Debug)]
pub(crate) struct Instance {
    plugin: Arc<str>,
    pointer: NonNull<c_void>,
    destroy: HostDestroy,
    /// The call in which it panicked: it is poisoned, and only destroyed any more.
    panicked: Option<&'static str>,
    stats: Arc<CallStats>,
}

// SAFETY: by the ABI an instance may migrate between threads; `&mut self` keeps it on one at a time.
unsafe impl Send for Instance {}

/// Who makes instances: what `create` is told, and how it is accounted for.
#[derive(Clone, Debug)]
pub(crate) struct Maker {
    pub(crate) plugin: Arc<str>,
    pub(crate) api: &'static HostApi,
    /// The settings as JSON text.
    pub(crate) config: Arc<str>,
    pub(crate) stats: Arc<CallStats>,
}

/// Why a call failed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) status: HostStatus,
    pub(crate) reason: String,
}

impl Maker {
    pub(crate) fn create(&self, create: HostCreate, destroy: HostDestroy) -> Result<Instance> {
        let mut pointer = ptr::null_mut();
        take_error();
        // SAFETY: the function is of the loaded library, the API lives for ever, the settings and
        // `pointer` outlive the call.
        let status = unsafe { create(self.api, HostStr::new(&self.config), &raw mut pointer) };
        let fail = |reason: String| failed(&self.plugin, "create", &reason);
        if status != HOST_OK {
            return Err(fail(reason(status)));
        }
        let pointer = NonNull::new(pointer)
            .ok_or_else(|| fail("it succeeded but gave no instance".to_owned()))?;
        Ok(Instance {
            plugin: Arc::clone(&self.plugin),
            pointer,
            destroy,
            panicked: None,
            stats: Arc::clone(&self.stats),
        })
    }
}

impl Instance {
    pub(crate) fn id(&self) -> &str {
        &self.plugin
    }

    pub(crate) fn pointer(&self) -> NonNull<c_void> {
        self.pointer
    }

    pub(crate) fn is_poisoned(&self) -> bool {
        self.panicked.is_some()
    }

    /// Enters the plugin once, measured. `body` gives the call's status and what the host's own
    /// callbacks made of its output: a fault of the output counts even if the plugin ignores it.
    pub(crate) fn call<T>(
        &mut self,
        call: &'static str,
        body: impl FnOnce(*mut c_void) -> (HostStatus, Result<T, String>),
    ) -> Result<T, Failure> {
        if let Some(earlier) = self.panicked {
            return Err(Failure {
                status: HOST_PANIC,
                reason: format!("it panicked in {earlier} before and is not called again"),
            });
        }
        take_error();
        let start = Instant::now();
        let (status, output) = body(self.pointer.as_ptr());
        let took = start.elapsed();
        self.stats
            .record(took, status != HOST_OK || output.is_err());
        if status == HOST_PANIC {
            self.panicked = Some(call);
        }
        match (status, output) {
            (HOST_OK, Ok(output)) => Ok(output),
            (HOST_PANIC, _) | (_, Ok(_)) => Err(Failure {
                status,
                reason: reason(status),
            }),
            (_, Err(fault)) => Err(Failure {
                status: HOST_ERROR,
                reason: fault,
            }),
        }
    }

    /// A call that gives nothing but its status.
    pub(crate) fn act(
        &mut self,
        call: &'static str,
        body: impl FnOnce(*mut c_void) -> HostStatus,
    ) -> Result<()> {
        self.call(call, |instance| (body(instance), Ok(())))
            .map_err(|failure| self.error(call, &failure))
    }

    /// What the host refuses in the plugin's place, without calling it.
    pub(crate) fn refusal(&self, call: &str, reason: &str) -> Error {
        failed(&self.plugin, call, reason)
    }

    /// The failure as the error of the house.
    pub(crate) fn error(&self, call: &str, failure: &Failure) -> Error {
        failed(&self.plugin, call, &failure.reason)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `create` and this is its last use.
        unsafe { (self.destroy)(self.pointer.as_ptr()) };
    }
}

fn failed(plugin: &str, call: &str, reason: &str) -> Error {
    Error::new(
        Kind::Plugin,
        format!("plugin {plugin} failed in {call}: {reason}"),
    )
}

/// The plugin's own words or, where it gave none, what the status says.
fn reason(status: HostStatus) -> String {
    let own = take_error();
    match (status, own) {
        (_, Some(own)) => own,
        (HOST_PANIC, None) => "it panicked".to_owned(),
        (HOST_UNSUPPORTED, None) => "it cannot do this".to_owned(),
        (HOST_CANCELLED, None) => "it was cancelled".to_owned(),
        (HOST_ERROR | HOST_TEMPORARY, None) => "it gave no reason".to_owned(),
        (other, None) => format!("it gave no reason, and the unknown status {other}"),
    }
}
