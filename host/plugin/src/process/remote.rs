use std::sync::Arc;
use std::time::Instant;

use host_core::{Error, Result};

use super::channel::Broken;
use super::child::{Child, Launch, Limits, StartError};
use super::protocol::{Call, Reply};
use crate::CallAccount;
use crate::call_stats::CallStats;
use crate::guard::UnderWay;
use crate::instance::failed;

/// Maximum number of times per run that a child is restarted.
const MOST_RESTARTS: u32 = 3;

/// An instance in a child process. The child is restarted after it dies.
#[derive(Debug)]
pub(crate) struct Remote {
    launch: Launch,
    /// `None` after the child died, until a call restarts it.
    child: Option<Child>,
    restarts: u32,
    limits: Limits,
    stats: Arc<CallStats>,
}

/// Why a call returned no reply.
#[derive(Debug)]
pub(super) enum CallError {
    /// The child died during the call, or had died before and could not be restarted. Contains the reason.
    Died(String),
    /// The call was not made, because the restarted child could not create the instance or because the input
    /// is too large.
    Refused(Error),
}

/// Called periodically during a call. If the call must be aborted by killing the child, returns the reason.
pub(super) type Interrupt<'a> = &'a dyn Fn() -> Option<String>;

impl Remote {
    /// Starts the child and lets it create the instance.
    pub(crate) fn start(launch: Launch, limits: Limits, account: &CallAccount) -> Result<Self> {
        let child = Child::start(&launch, limits, &mut || true).map_err(|error| match error {
            StartError::Refused(error) => error,
            StartError::Died(call, reason) => failed(&launch.plugin, call, &reason),
        })?;
        let stats = account.open(launch.kind);
        Ok(Self {
            launch,
            child: Some(child),
            restarts: 0,
            limits,
            stats,
        })
    }

    pub(super) fn id(&self) -> &str {
        &self.launch.plugin
    }

    /// Returns the running child, if any.
    pub(super) fn child(&self) -> Option<&Child> {
        self.child.as_ref()
    }

    /// Whether the child died and has not been restarted yet.
    pub(super) fn is_dead(&self) -> bool {
        self.child.is_none()
    }

    /// If the instance can never work again, returns the reason.
    pub(super) fn lost(&self) -> Option<String> {
        match &self.child {
            Some(child) => child.lost().map(str::to_owned),
            None => (self.restarts == MOST_RESTARTS).then(lost),
        }
    }

    /// Restarts the child if it is dead. Returns whether it was restarted.
    pub(super) fn revive(
        &mut self,
        interrupt: Interrupt<'_>,
    ) -> std::result::Result<bool, CallError> {
        if self.child.is_some() {
            return Ok(false);
        }
        if self.restarts == MOST_RESTARTS {
            return Err(CallError::Died(lost()));
        }
        self.restarts += 1;
        self.stats.restarted();
        let started = Child::start(&self.launch, self.limits, &mut || interrupt().is_none());
        self.child = Some(started.map_err(|error| match error {
            StartError::Refused(error) => CallError::Refused(error),
            StartError::Died(call, reason) => CallError::Died(
                interrupt().unwrap_or_else(|| format!("its restart failed in {call}: {reason}")),
            ),
        })?);
        Ok(true)
    }

    /// Makes one call in the running child and records its duration. Checks `interrupt` and the time limit
    /// periodically.
    pub(super) fn call(
        &mut self,
        call: &Call<'_>,
        parts: &[&[u8]],
        interrupt: Interrupt<'_>,
    ) -> std::result::Result<Reply, CallError> {
        let Some(mut child) = self.child.take() else {
            return Err(CallError::Died("its process is not running".to_owned()));
        };
        let limit = self.limits.call;
        let under_way = UnderWay::in_child(child.plugin(), call.name(), limit);
        let begun = Instant::now();
        let mut go_on = || begun.elapsed() < limit && interrupt().is_none();
        let reply = child.exchange(call, parts, &mut go_on);
        let is_failure = reply.as_ref().map_or(true, Reply::is_failure);
        self.stats.record(begun.elapsed(), is_failure);
        drop(under_way);
        match reply {
            Ok(reply) => {
                self.child = Some(child);
                Ok(reply)
            }
            // Nothing was sent, so the child is unchanged.
            Err(Broken::TooLarge(bytes)) => {
                self.child = Some(child);
                let reason = Broken::too_large("its input", bytes);
                Err(CallError::Refused(failed(self.id(), call.name(), &reason)))
            }
            Err(broken) => {
                let asked = interrupt().filter(|_| broken == Broken::GivenUp);
                let death = child.death(broken, limit);
                Err(CallError::Died(asked.unwrap_or(death)))
            }
        }
    }

    /// Returns the raw bytes that the child sent after its last reply.
    pub(super) fn behind(&self) -> &[u8] {
        self.child.as_ref().map_or(&[], Child::behind)
    }

    /// Makes a call that cannot be interrupted. Restarts the child if necessary.
    pub(super) fn ask(&mut self, call: &Call<'_>, parts: &[&[u8]]) -> Result<Reply> {
        let never = || None;
        let reply = self
            .revive(&never)
            .and_then(|_| self.call(call, parts, &never))
            .map_err(|error| self.error(call.name(), error))?;
        match reply {
            Reply::Failed(fault) => Err(fault.into()),
            reply => Ok(reply),
        }
    }

    /// Returns the host's error for a call without a reply.
    pub(super) fn error(&self, call: &str, error: CallError) -> Error {
        match error {
            CallError::Died(reason) => failed(self.id(), call, &reason),
            CallError::Refused(error) => error,
        }
    }

    /// Returns the error of a call that the host rejects without calling the plugin.
    pub(super) fn refusal(&self, call: &str, reason: &str) -> Error {
        failed(self.id(), call, reason)
    }

    /// Returns the error for a reply of the wrong type, which only a defective child sends.
    pub(super) fn wrong_reply(&mut self, call: &str) -> Error {
        let reason = match &mut self.child {
            Some(child) => child.death(Broken::Garbage, self.limits.call),
            None => lost(),
        };
        self.child = None;
        failed(self.id(), call, &reason)
    }
}

fn lost() -> String {
    format!("its process died after {MOST_RESTARTS} restarts")
}
