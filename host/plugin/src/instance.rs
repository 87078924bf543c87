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

/// How often an instance that panicked is made anew in one run.
const MOST_RESTARTS: u32 = 3;
/// How many of its first calls the process is looked at closely around: a plugin that changes the process
/// mostly does so from the beginning, and is then known for certain.
const CLOSELY: u8 = 8;

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
    /// How many calls are still looked at closely.
    closely: u8,
    stats: Arc<CallStats>,
}

// SAFETY: by the ABI an instance may migrate between threads; `&mut self` keeps it on one at a time.
unsafe impl Send for Instance {}

/// Who makes instances: what `create` is told, how long a call may take, and who counts them.
#[derive(Clone, Debug)]
pub(crate) struct Maker {
    pub(crate) plugin: &'static PluginName,
    pub(crate) api: &'static HostApi,
    /// The settings as JSON text.
    pub(crate) config: Arc<str>,
    /// Nothing in this process can end a call, so one that took longer has failed afterwards.
    pub(crate) time_limit: Option<Duration>,
    pub(crate) account: CallAccount,
}

/// What the host's callbacks collect while a call runs.
pub(crate) trait Collector {
    /// The first thing that was wrong with what the plugin gave.
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
            // SAFETY: the function is of the loaded library, the API lives for ever, the settings and
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
            .ok_or_else(|| fail("it succeeded but gave no instance".to_owned()))?;
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
        let made = self.maker.call(self.create, self.destroy)?;
        let poisoned = std::mem::replace(&mut self.pointer, made);
        self.maker.destroy(self.destroy, poisoned);
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

    /// Enters the plugin once, measured. `body` makes the call, during which the host's own callbacks
    /// collect its output, and `take` makes the result of that. A fault of the output counts even if the
    /// plugin ignores it. So does a call that took too long, whose output comes to nothing.
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
                reason: format!("it panicked in {earlier} before and is not called again"),
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
                // The next may be quicker.
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

    /// A call that gives nothing but its status.
    pub(crate) fn act(
        &mut self,
        call: &'static str,
        body: impl FnOnce(*mut c_void) -> HostStatus,
    ) -> Result<()> {
        self.call(call, (), |instance, ()| body(instance), Ok)
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
        "it took {took:.1?}, over its time_limit_secs = {}",
        limit.as_secs_f64()
    )
}

/// What was wrong with the output of a call that took too long counts more than the time.
fn late_reason(fault: Option<&str>, took: Duration, limit: Duration) -> String {
    fault.map_or_else(|| late(took, limit), str::to_owned)
}

/// The plugin's own words, and what the host refused of its output; where there is neither, what the
/// status says.
#[cold]
fn reason(status: HostStatus, fault: Option<&str>) -> String {
    match (status, take_error(), fault) {
        (_, Some(own), Some(fault)) => format!("{own} ({fault})"),
        (_, Some(own), None) => own,
        (HOST_PANIC, None, _) => "it panicked".to_owned(),
        (_, None, Some(fault)) => fault.to_owned(),
        (HOST_UNSUPPORTED, None, None) => "it cannot do this".to_owned(),
        (HOST_CANCELLED, None, None) => "it was cancelled".to_owned(),
        (HOST_ERROR | HOST_TEMPORARY, None, None) => "it gave no reason".to_owned(),
        (other, None, None) => format!("it gave no reason, and the unknown status {other}"),
    }
}
