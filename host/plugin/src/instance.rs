use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::{Duration, Instant};

use host_core::{Error, ErrorKind, Result};
use host_plugin_abi::{
    HOST_CANCELLED, HOST_ERROR, HOST_OK, HOST_PANIC, HOST_TEMPORARY, HOST_UNSUPPORTED, HostApi,
    HostCreate, HostDestroy, HostStatus, HostStr,
};

use crate::call_stats::CallStats;
use crate::guard::{self, Look, PluginName};
use crate::host_api::{flush_log, take_error};
use crate::{CallAccount, PluginKind};

/// The maximum number of times that an instance is recreated after a panic.
const MOST_RESTARTS: u32 = 3;
/// The whole process state is checked before and after each of the first `CLOSELY` calls of an instance. A
/// plugin that changes the process usually does so from the start. Thanks to these checks, the report names
/// the exact call.
const CLOSELY: u8 = 8;

/// An instance that a plugin's `create` returned. Dropping it calls `destroy`, which is the last call.
#[derive(Debug)]
pub(crate) struct Instance {
    maker: Maker,
    create: HostCreate,
    destroy: HostDestroy,
    pointer: NonNull<c_void>,
    /// The call that panicked, if one did. The instance is then poisoned and can only be destroyed.
    panicked: Option<&'static str>,
    restarts: u32,
    /// The number of calls for which the whole process state will still be checked.
    closely: u8,
    stats: Arc<CallStats>,
}

// SAFETY: by the ABI, an instance may migrate between threads. `&mut self` ensures that only one thread uses
// it at a time.
unsafe impl Send for Instance {}

/// Everything that is needed to create instances: the arguments of `create`, the time limit of a call, and
/// the account that counts the calls.
#[derive(Clone, Debug)]
pub(crate) struct Maker {
    pub(crate) plugin: &'static PluginName,
    pub(crate) api: &'static HostApi,
    /// The settings as JSON text.
    pub(crate) config: Arc<str>,
    /// The time limit of a call. A call in this process cannot be interrupted, so a call that took longer
    /// fails after it has returned.
    pub(crate) time_limit: Option<Duration>,
    pub(crate) account: CallAccount,
}

/// Collects the output of a call through the host's callbacks.
pub(crate) trait Collector {
    /// Returns the first fault in the plugin's output.
    fn fault(&self) -> Option<&str>;
}

impl Collector for () {
    fn fault(&self) -> Option<&str> {
        None
    }
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
            pointer: self.call(create, destroy)?,
            maker: self.clone(),
            create,
            destroy,
            panicked: None,
            restarts: 0,
            closely: CLOSELY,
            stats: self.account.open(kind),
        })
    }

    fn call(&self, create: HostCreate, destroy: HostDestroy) -> Result<NonNull<c_void>> {
        let mut pointer = ptr::null_mut();
        take_error();
        let mut took = Duration::ZERO;
        let status = guard::enter(self.plugin, "create", Look::Close, || {
            let start = Instant::now();
            // SAFETY: the function belongs to the loaded library, the API lives forever, and the settings and
            // `pointer` outlive the call.
            let status = unsafe { create(self.api, HostStr::new(&self.config), &raw mut pointer) };
            took = start.elapsed();
            status
        });
        let fail = |reason: String| failed(self.plugin, "create", &reason);
        if status != HOST_OK {
            return Err(fail(reason(status, None)));
        }
        let made = NonNull::new(pointer)
            .ok_or_else(|| fail("it succeeded but returned no instance".to_owned()))?;
        match self.time_limit.filter(|limit| took > *limit) {
            None => Ok(made),
            Some(limit) => {
                self.destroy(destroy, made);
                Err(fail(late(took, limit)))
            }
        }
    }

    fn destroy(&self, destroy: HostDestroy, instance: NonNull<c_void>) {
        guard::enter(self.plugin, "destroy", Look::Close, || {
            // SAFETY: the pointer came from `create` and this is its last use.
            unsafe { destroy(instance.as_ptr()) };
        });
        flush_log(self.api);
    }
}

impl Instance {
    pub(crate) fn id(&self) -> &str {
        self.maker.plugin
    }

    pub(crate) fn pointer(&self) -> NonNull<c_void> {
        self.pointer
    }

    /// Returns the call that panicked, if one did. The instance is then not called again.
    pub(crate) fn panicked(&self) -> Option<&'static str> {
        self.panicked
    }

    /// If the instance panicked, creates a new instance in its place, unless it was already replaced too
    /// often. The state of the old instance is lost.
    pub(crate) fn renew(&mut self) -> Result<()> {
        if self.panicked.is_none() || self.restarts == MOST_RESTARTS {
            return Ok(());
        }
        self.restarts += 1;
        let made = self.maker.call(self.create, self.destroy)?;
        let poisoned = std::mem::replace(&mut self.pointer, made);
        self.maker.destroy(self.destroy, poisoned);
        self.panicked = None;
        self.stats.restarted();
        Ok(())
    }

    /// If the instance panicked and was already replaced too often, returns the reason why it is lost.
    pub(crate) fn lost(&self) -> Option<String> {
        let call = self.panicked.filter(|_| self.restarts == MOST_RESTARTS)?;
        Some(format!(
            "it panicked in {call} after {MOST_RESTARTS} restarts"
        ))
    }

    /// Calls the plugin once and measures the call's duration. `body` makes the call, during which the host's
    /// callbacks collect the output. `take` converts the output to the result. If the output has a fault, the
    /// call fails, even if the plugin ignores the fault. A call that took too long also fails, and its output
    /// is discarded.
    pub(crate) fn call<C: Collector, T>(
        &mut self,
        call: &'static str,
        mut output: C,
        body: impl FnOnce(*mut c_void, &mut C) -> HostStatus,
        take: impl FnOnce(C) -> Result<T, String>,
    ) -> Result<T, Failure> {
        if let Some(earlier) = self.panicked {
            return Err(Failure {
                status: HOST_PANIC,
                reason: format!("it panicked in {earlier} earlier and is not called again"),
            });
        }
        let look = match self.closely {
            0 => Look::Quick,
            _ => {
                self.closely -= 1;
                Look::Close
            }
        };
        take_error();
        let mut took = Duration::ZERO;
        let status = guard::enter(self.maker.plugin, call, look, || {
            let start = Instant::now();
            let status = body(self.pointer.as_ptr(), &mut output);
            took = start.elapsed();
            status
        });
        let late = self.maker.time_limit.filter(|limit| took > *limit);
        let failure = match (status, late) {
            (HOST_OK, None) => match take(output) {
                Ok(taken) => {
                    self.stats.record(took, false);
                    return Ok(taken);
                }
                Err(fault) => Failure {
                    status: HOST_ERROR,
                    reason: reason(HOST_ERROR, Some(&fault)),
                },
            },
            (HOST_OK, Some(limit)) => Failure {
                // The failure is temporary, because the next call may be faster.
                status: HOST_TEMPORARY,
                reason: late_reason(output.fault(), took, limit),
            },
            (status, _) => Failure {
                status,
                reason: reason(status, output.fault()),
            },
        };
        self.stats.record(took, true);
        if status == HOST_PANIC {
            self.panicked = Some(call);
        }
        Err(failure)
    }

    /// Makes a call that returns only a status.
    pub(crate) fn act(
        &mut self,
        call: &'static str,
        body: impl FnOnce(*mut c_void) -> HostStatus,
    ) -> Result<()> {
        self.call(call, (), |instance, ()| body(instance), Ok)
            .map_err(|failure| self.error(call, &failure))
    }

    /// Returns the error for a call that the host rejects without calling the plugin.
    pub(crate) fn refusal(&self, call: &str, reason: &str) -> Error {
        failed(self.id(), call, reason)
    }

    /// Converts a failure to the host's error type.
    pub(crate) fn error(&self, call: &str, failure: &Failure) -> Error {
        failed(self.id(), call, &failure.reason)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.maker.destroy(self.destroy, self.pointer);
    }
}

pub(crate) fn failed(plugin: &str, call: &str, reason: &str) -> Error {
    Error::new(
        ErrorKind::Plugin,
        format!("plugin {plugin} failed in {call}: {reason}"),
    )
}

pub(crate) fn late(took: Duration, limit: Duration) -> String {
    format!(
        "it took {took:.1?}, longer than its time_limit_secs = {}",
        limit.as_secs_f64()
    )
}

/// Returns the reason for the failure of a call that took too long. A fault in its output takes precedence.
fn late_reason(fault: Option<&str>, took: Duration, limit: Duration) -> String {
    fault.map_or_else(|| late(took, limit), str::to_owned)
}

/// Returns the reason for a failure. This is the plugin's message. If the host found a fault, the fault
/// follows in parentheses. If there is no message, the reason is the fault. If there is no fault either, it
/// is a text for the status.
#[cold]
fn reason(status: HostStatus, fault: Option<&str>) -> String {
    match (status, take_error(), fault) {
        (_, Some(own), Some(fault)) => format!("{own} ({fault})"),
        (_, Some(own), None) => own,
        (HOST_PANIC, None, _) => "it panicked".to_owned(),
        (_, None, Some(fault)) => fault.to_owned(),
        (HOST_UNSUPPORTED, None, None) => "it does not support this operation".to_owned(),
        (HOST_CANCELLED, None, None) => "it was cancelled".to_owned(),
        (HOST_ERROR | HOST_TEMPORARY, None, None) => "it gave no reason".to_owned(),
        (other, None, None) => format!("it gave no reason and returned the unknown status {other}"),
    }
}
