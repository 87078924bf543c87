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

/// How often a child is started again in one run.
const MOST_RESTARTS: u32 = 3;

/// An instance in a child process, which is started again when it has died.
#[derive(Debug)]
pub(crate) struct Remote {
    launch: Launch,
    /// Absent from its death until the next call.
    child: Option<Child>,
    restarts: u32,
    limits: Limits,
    stats: Arc<CallStats>,
}

/// Why a call gave nothing.
#[derive(Debug)]
pub(super) enum CallError {
    /// The child died in it, or before and could not be started again. Says how.
    Died(String),
    /// The child was started again and the plugin makes no instance any more.
    Refused(Error),
}

/// What interrupts a call: a reason to kill the child, which the caller looks for now and then.
pub(super) type Interrupt<'a> = &'a dyn Fn() -> Option<String>;

impl Remote {
    /// Starts the child and lets it make the instance.
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

    /// The child, if one is there.
    pub(super) fn child(&self) -> Option<&Child> {
        self.child.as_ref()
    }

    /// Whether the child died and was not started again yet.
    pub(super) fn is_dead(&self) -> bool {
        self.child.is_none()
    }

    /// Why the instance will never work again, if so.
    pub(super) fn lost(&self) -> Option<String> {
        match &self.child {
            Some(child) => child.lost().map(str::to_owned),
            None => (self.restarts == MOST_RESTARTS).then(lost),
        }
    }

    /// Starts the child again if it is dead; whether that was so.
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
                interrupt().unwrap_or_else(|| format!("started again, in {call} {reason}")),
            ),
        })?);
        Ok(true)
    }

    /// One call, measured, in a child that is there. `interrupt` is asked now and then, and so is the
    /// clock.
    pub(super) fn call(
        &mut self,
        call: &Call<'_>,
        parts: &[&[u8]],
        interrupt: Interrupt<'_>,
    ) -> std::result::Result<Reply, CallError> {
        let Some(mut child) = self.child.take() else {
            return Err(CallError::Died("its process is not there".to_owned()));
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
            // Nothing of it was sent: the child is as it was.
            Err(Broken::TooLarge(bytes)) => {
                self.child = Some(child);
                let reason = Broken::too_large("what it is called with", bytes);
                Err(CallError::Refused(failed(self.id(), call.name(), &reason)))
            }
            Err(broken) => {
                let asked = interrupt().filter(|_| broken == Broken::GivenUp);
                let death = child.death(broken, limit);
                Err(CallError::Died(asked.unwrap_or(death)))
            }
        }
    }

    /// What stood behind the last reply.
    pub(super) fn behind(&self) -> &[u8] {
        self.child.as_ref().map_or(&[], Child::behind)
    }

    /// A call as a port makes it that has nothing to wait for: the child is started again if it must
    /// be.
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

    /// The error of the house for a call that gave nothing.
    pub(super) fn error(&self, call: &str, error: CallError) -> Error {
        match error {
            CallError::Died(reason) => failed(self.id(), call, &reason),
            CallError::Refused(error) => error,
        }
    }

    /// What the host refuses in the plugin's place, without calling it.
    pub(super) fn refusal(&self, call: &str, reason: &str) -> Error {
        failed(self.id(), call, reason)
    }

    /// For a reply that is not of the call's kind, which only a child gone wrong gives.
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
    format!("its process died, and was started again {MOST_RESTARTS} times before")
}
