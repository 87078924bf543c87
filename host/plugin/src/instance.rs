use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::{Duration, Instant};

use host_core::{Error, Kind, Result};
use host_plugin_abi::{
    HOST_CANCELLED, HOST_ERROR, HOST_OK, HOST_PANIC, HOST_TEMPORARY, HOST_UNSUPPORTED, HostApi,
    HostCreate, HostDestroy, HostStatus, HostStr,
};

use crate::call_stats::CallStats;
use crate::host_api::take_error;
use crate::{CallAccount, PluginKind};

/// How often an instance that panicked is made anew in one run.
const MOST_RESTARTS: u32 = 3;

/// What a plugin's `create` made. Dropping it destroys it, and nothing is called after that.
#[derive(Debug)]
pub(crate) struct Instance {
    maker: Maker,
    create: HostCreate,
    destroy: HostDestroy,
    pointer: NonNull<c_void>,
    /// The call in which it panicked: it is poisoned, and only destroyed any more.
    panicked: Option<&'static str>,
    restarts: u32,
    stats: Arc<CallStats>,
}

// SAFETY: by the ABI an instance may migrate between threads; `&mut self` keeps it on one at a time.
unsafe impl Send for Instance {}

/// Who makes instances: what `create` is told, how long a call may take, and who counts them.
#[derive(Clone, Debug)]
pub(crate) struct Maker {
    pub(crate) plugin: Arc<str>,
    pub(crate) api: &'static HostApi,
    /// The settings as JSON text.
    pub(crate) config: Arc<str>,
    /// Nothing in this process can end a call, so one that took longer has failed afterwards.
    pub(crate) time_limit: Option<Duration>,
    pub(crate) account: CallAccount,
}

/// Why a call failed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) status: HostStatus,
    pub(crate) reason: String,
}

impl Maker {
    pub(crate) fn create(
        &self,
        kind: PluginKind,
        create: HostCreate,
        destroy: HostDestroy,
    ) -> Result<Instance> {
        Ok(Instance {
            pointer: self.call(create)?,
            maker: self.clone(),
            create,
            destroy,
            panicked: None,
            restarts: 0,
            stats: self.account.open(kind),
        })
    }

    fn call(&self, create: HostCreate) -> Result<NonNull<c_void>> {
        let mut pointer = ptr::null_mut();
        take_error();
        // SAFETY: the function is of the loaded library, the API lives for ever, the settings and
        // `pointer` outlive the call.
        let status = unsafe { create(self.api, HostStr::new(&self.config), &raw mut pointer) };
        let fail = |reason: String| failed(&self.plugin, "create", &reason);
        if status != HOST_OK {
            return Err(fail(reason(status)));
        }
        NonNull::new(pointer).ok_or_else(|| fail("it succeeded but gave no instance".to_owned()))
    }
}

impl Instance {
    pub(crate) fn id(&self) -> &str {
        &self.maker.plugin
    }

    pub(crate) fn pointer(&self) -> NonNull<c_void> {
        self.pointer
    }

    /// The call in which it panicked, if it did: it is not entered again.
    pub(crate) fn panicked(&self) -> Option<&'static str> {
        self.panicked
    }

    /// Puts a new instance in the place of one that panicked, unless that has happened too often.
    /// What it had in it is gone.
    pub(crate) fn renew(&mut self) -> Result<()> {
        if self.panicked.is_none() || self.restarts == MOST_RESTARTS {
            return Ok(());
        }
        self.restarts += 1;
        let made = self.maker.call(self.create)?;
        let poisoned = std::mem::replace(&mut self.pointer, made);
        // SAFETY: the pointer came from `create` and this is its last use.
        unsafe { (self.destroy)(poisoned.as_ptr()) };
        self.panicked = None;
        self.stats.restarted();
        Ok(())
    }

    /// Why [`Instance::renew`] does not help any more, if so.
    pub(crate) fn lost(&self) -> Option<String> {
        let call = self.panicked.filter(|_| self.restarts == MOST_RESTARTS)?;
        Some(format!(
            "it panicked in {call}, and was created again {MOST_RESTARTS} times before"
        ))
    }

    /// Enters the plugin once, measured. `body` gives the call's status and what the host's own
    /// callbacks made of its output: a fault of the output counts even if the plugin ignores it. So
    /// does a call that took too long, whose output comes to nothing.
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
        let late = self.maker.time_limit.filter(|limit| took > *limit);
        self.stats
            .record(took, status != HOST_OK || output.is_err() || late.is_some());
        match (status, output, late) {
            (HOST_OK, Ok(output), None) => Ok(output),
            (status, output, late) => Err(self.failure(call, status, output.err(), (took, late))),
        }
    }

    #[cold]
    fn failure(
        &mut self,
        call: &'static str,
        status: HostStatus,
        fault: Option<String>,
        (took, late): (Duration, Option<Duration>),
    ) -> Failure {
        if status == HOST_PANIC {
            self.panicked = Some(call);
        }
        match (status, fault, late) {
            (status, Some(fault), _) if status != HOST_PANIC => Failure {
                status: HOST_ERROR,
                reason: fault,
            },
            (HOST_OK, None, Some(limit)) => Failure {
                // The next may be quicker.
                status: HOST_TEMPORARY,
                reason: format!(
                    "it took {took:.1?}, over its time_limit_secs = {}",
                    limit.as_secs_f64()
                ),
            },
            _ => Failure {
                status,
                reason: reason(status),
            },
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
        failed(self.id(), call, reason)
    }

    /// The failure as the error of the house.
    pub(crate) fn error(&self, call: &str, failure: &Failure) -> Error {
        failed(self.id(), call, &failure.reason)
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
