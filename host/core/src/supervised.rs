use std::fmt;
use std::ops::DerefMut;

use crate::{Control, Emitter, Error, EventBody, OnError, Step};

/// The port of a plugin, with a label and a policy. The caller reports whether each call succeeded. The
/// policy then determines whether the plugin is called again.
///
/// The caller defines the unit that succeeds or fails: an evaluation for a metric, an event for an observer,
/// and a delivery for a sink.
pub struct Supervised<P: ?Sized> {
    label: String,
    /// The name by which commands find the plugin.
    name: String,
    on_error: OnError,
    port: Box<P>,
    failures_in_a_row: u32,
    is_disabled: bool,
}

/// The consequence of a plugin's failure.
#[derive(Debug)]
pub enum Verdict {
    /// The plugin is called again as usual.
    GoOn,
    /// The plugin is not called again, for this reason.
    Disable(String),
    /// The run ends with this error.
    End(Error),
}

impl<P: ?Sized> Supervised<P> {
    /// Creates a supervised port. The run's events and metrics use `label` as the plugin's name.
    pub fn new(label: impl Into<String>, on_error: OnError, port: Box<P>) -> Self {
        let label = label.into();
        Self {
            name: label.clone(),
            label,
            on_error,
            port,
            failures_in_a_row: 0,
            is_disabled: false,
        }
    }

    /// Sets the name by which commands find the plugin: its id, or its path.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Returns the name by which commands find the plugin.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the plugin's name in the run's events and metrics.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Returns the port, even if it is disabled.
    pub fn port(&self) -> &P {
        &self.port
    }

    /// Returns the port for a call, or `None` if it is disabled.
    pub fn active(&mut self) -> Option<&mut P> {
        (!self.is_disabled).then(|| self.port.deref_mut())
    }

    /// Returns whether the port is disabled.
    pub fn is_disabled(&self) -> bool {
        self.is_disabled
    }

    /// Disables the port, as another process has done.
    pub fn disable(&mut self) {
        self.is_disabled = true;
    }

    /// Records a success, which resets the count of failures in a row.
    pub fn succeeded(&mut self) {
        self.failures_in_a_row = 0;
    }

    /// Records a failure. If `lost` contains a reason, the port cannot be called again, regardless of the
    /// policy.
    pub fn failed(&mut self, error: Error, lost: Option<String>) -> Verdict {
        self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
        let why = match (self.on_error, lost) {
            (OnError::Fail, _) => {
                let error = match error.hint_text() {
                    Some(_) => error,
                    None => error.hint(format!(
                        "set on_error = \"warn\" for {} in the run's run.toml, and run `host resume` to continue despite such failures",
                        self.label
                    )),
                };
                return Verdict::End(error);
            }
            (_, Some(lost)) => lost,
            (OnError::DisableAfter(limit), None) if self.failures_in_a_row >= limit => {
                match limit {
                    1 => "it failed".to_owned(),
                    _ => format!("it failed {limit} times in a row"),
                }
            }
            _ => return Verdict::GoOn,
        };
        self.is_disabled = true;
        Verdict::Disable(format!("plugin {} is disabled: {why}", self.label))
    }

    /// Returns the event that reports a failure of the plugin.
    pub fn fault(&self, call: &str, reason: impl fmt::Display) -> EventBody {
        EventBody::PluginFault {
            plugin: self.label.clone(),
            call: call.to_owned(),
            message: reason.to_string(),
        }
    }
}

impl Verdict {
    /// Applies the verdict: for `Disable`, emits a warning with the reason and the `consequence`; for `End`,
    /// stops the loop; for `GoOn`, does nothing.
    pub fn carry_out(self, step: Step, emitter: &Emitter, control: &Control, consequence: &str) {
        match self {
            Self::GoOn => {}
            Self::Disable(why) => {
                let message = format!("{why}; {consequence}");
                emitter.emit(step, EventBody::Warning { message });
            }
            Self::End(error) => control.fail(error),
        }
    }
}

impl<P: ?Sized> fmt::Debug for Supervised<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervised")
            .field("label", &self.label)
            .field("on_error", &self.on_error)
            .field("failures_in_a_row", &self.failures_in_a_row)
            .field("is_disabled", &self.is_disabled)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorKind, StopReason};

    fn error() -> Error {
        Error::new(ErrorKind::Plugin, "plugin x failed in update: no")
    }

    fn under(on_error: OnError) -> Supervised<u8> {
        Supervised::new("x", on_error, Box::new(7))
    }

    #[test]
    fn warn_never_disables() {
        let mut plugin = under(OnError::Warn);
        for _ in 0..100 {
            assert!(matches!(plugin.failed(error(), None), Verdict::GoOn));
        }
        assert_eq!(plugin.active(), Some(&mut 7));
    }

    #[test]
    fn only_failures_in_a_row_disable() {
        let mut plugin = under(OnError::DisableAfter(2));
        assert!(matches!(plugin.failed(error(), None), Verdict::GoOn));
        plugin.succeeded();
        assert!(matches!(plugin.failed(error(), None), Verdict::GoOn));
        match plugin.failed(error(), None) {
            Verdict::Disable(why) => {
                assert_eq!(why, "plugin x is disabled: it failed 2 times in a row");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(plugin.active(), None);
    }

    #[test]
    fn a_lost_plugin_is_disabled_under_every_policy() {
        let mut plugin = under(OnError::Warn);
        let verdict = plugin.failed(error(), Some("it panicked".to_owned()));
        assert!(matches!(verdict, Verdict::Disable(_)));
        assert_eq!(plugin.active(), None);
    }

    #[test]
    fn fail_stops_the_loop_and_keeps_the_first_error() {
        let (emitter, drafts) = Emitter::new(10);
        let control = Control::new();
        let mut plugin = under(OnError::Fail);
        for _ in 0..2 {
            let verdict = plugin.failed(error(), Some("it panicked".to_owned()));
            verdict.carry_out(Step(3), &emitter, &control, "it has no effect");
        }
        assert_eq!(control.stop_requested(), Some(StopReason::Failed));
        let error = control.take_failure().expect("an error");
        assert_eq!(error.message(), "plugin x failed in update: no");
        assert!(error.hint_text().is_some());
        assert!(control.take_failure().is_none());
        drop(emitter);
        assert_eq!(drafts.iter().count(), 0);
    }
}
