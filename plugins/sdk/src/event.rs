use host_plugin_abi::{
    HOST_DELIVERY_DELIVERED, HOST_DELIVERY_DROPPED, HOST_DELIVERY_FAILED, HOST_DELIVERY_QUEUED,
    HOST_DELIVERY_SENDING, HOST_EVENT_CHECKPOINT_FAILED, HOST_EVENT_CHECKPOINT_WRITTEN,
    HOST_EVENT_DELIVERY, HOST_EVENT_METRICS, HOST_EVENT_PLUGIN_FAULT, HOST_EVENT_REQUEST,
    HOST_EVENT_RUN_FINISHED, HOST_EVENT_RUN_STARTED, HOST_EVENT_SUPERSEDED, HOST_EVENT_WARNING,
    HOST_STOP_COMPLETED, HOST_STOP_FAILED, HOST_STOP_INTERRUPTED, HOST_STOP_REQUESTED,
    HOST_STOP_TERMINATED, HostEvent,
};

use crate::{Request, Result, instance, sized};

/// Something that happened in a run.
///
/// ```
/// use host_plugin_sdk::Event;
///
/// fn describe(event: &Event<'_>) -> String {
///     match event {
///         Event::CheckpointWritten { name, bytes } => format!("{name} has {bytes} bytes"),
///         Event::Metrics { values } => format!("{} values", values.len()),
///         _ => "something else".to_owned(),
///     }
/// }
/// let metrics = Event::Metrics { values: vec![("loss/train", 2.5)] };
/// assert_eq!(describe(&metrics), "1 values");
/// assert_eq!(metrics.metric("loss/train"), Some(2.5));
/// ```
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq)]
pub enum Event<'a> {
    /// Training begins or, with a generation above 0, goes on after a resume.
    RunStarted {
        /// How often the run was resumed.
        generation: u32,
    },
    /// What was recorded above `from_step` no longer counts: the run went back to a checkpoint of
    /// that step.
    Superseded {
        /// The last step that still counts.
        from_step: u64,
        /// How often the run was resumed.
        generation: u32,
    },
    /// Measured values.
    Metrics {
        /// Each name once. Infinity and NaN are values.
        values: Vec<(&'a str, f64)>,
    },
    /// A complete checkpoint stands in the run folder.
    CheckpointWritten {
        /// Its folder's name: `step-000100`.
        name: &'a str,
        /// Size of all its files.
        bytes: u64,
    },
    /// A checkpoint could not be written; training goes on.
    CheckpointFailed {
        /// Why.
        reason: &'a str,
    },
    /// A checkpoint's way to a sink.
    Delivery {
        /// The sink's plugin id.
        sink: &'a str,
        /// The checkpoint's step.
        checkpoint: u64,
        /// How far it came.
        state: DeliveryState,
        /// The sink's receipt (JSON) when delivered, the reason when failed, else empty.
        detail: &'a str,
    },
    /// A plugin failed in a call.
    PluginFault {
        /// Its id.
        plugin: &'a str,
        /// The call: `update`, `publish`.
        call: &'a str,
        /// Why.
        message: &'a str,
    },
    /// The loop carries out what was asked of it.
    Request {
        /// Who asked: a plugin's id, perhaps the observer's own.
        by: &'a str,
        /// What for.
        request: Request,
        /// Why.
        reason: &'a str,
    },
    /// Something odd that the user should know.
    Warning {
        /// What.
        message: &'a str,
    },
    /// Training ended.
    RunFinished {
        /// Why.
        reason: StopReason,
        /// The error's text if it ended by one, else empty.
        message: &'a str,
    },
}

/// How far a delivery came.
///
/// ```
/// use host_plugin_sdk::{DeliveryState, Event};
///
/// fn lost<'a>(event: &Event<'a>) -> Option<&'a str> {
///     match event {
///         Event::Delivery { sink, state: DeliveryState::Failed, .. } => Some(sink),
///         _ => None,
///     }
/// }
/// let state = DeliveryState::Failed;
/// let event = Event::Delivery { sink: "hub-git", checkpoint: 100, state, detail: "no network" };
/// assert_eq!(lost(&event), Some("hub-git"));
/// ```
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryState {
    /// It waits for the sink.
    Queued,
    /// The sink is at work.
    Sending,
    /// The sink gave a receipt.
    Delivered,
    /// A try failed, or the sink gave up.
    Failed,
    /// A newer checkpoint took its place in a queue that keeps the latest alone.
    Dropped,
}

/// Why training ended.
///
/// ```
/// use host_plugin_sdk::{Event, StopReason};
///
/// fn went_well(event: &Event<'_>) -> bool {
///     matches!(event, Event::RunFinished { reason: StopReason::Completed, .. })
/// }
/// assert!(went_well(&Event::RunFinished { reason: StopReason::Completed, message: "" }));
/// ```
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// All steps were done.
    Completed,
    /// A person interrupted it (SIGINT).
    Interrupted,
    /// The system asked it to end (SIGTERM).
    Terminated,
    /// A request for it was carried out.
    Requested,
    /// An error.
    Failed,
}

impl<'a> Event<'a> {
    /// The value of this name, if these are metrics and it is among them.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let Self::Metrics { values } = self else {
            return None;
        };
        let found = values.iter().find(|(known, _)| *known == name);
        found.map(|&(_, value)| value)
    }

    /// The event and its step; no event if it is of a kind, or has a code, that this SDK is too old
    /// for.
    ///
    /// # Safety
    /// `event` is null, or what it points to is as the ABI promises and stays so for `'a`.
    pub(crate) unsafe fn read(event: *const HostEvent) -> Result<(u64, Option<Self>)> {
        // SAFETY: the caller's promise.
        let raw = unsafe { sized::read(event) }?;
        // SAFETY: as above, for the fields that the kind has.
        let text = |view, what| unsafe { instance::text(view, what) };
        let event = match raw.kind {
            HOST_EVENT_RUN_STARTED => Self::RunStarted {
                generation: raw.generation,
            },
            HOST_EVENT_SUPERSEDED => Self::Superseded {
                from_step: raw.of_step,
                generation: raw.generation,
            },
            HOST_EVENT_METRICS => {
                // SAFETY: as above.
                let values = unsafe { sized::read_array(raw.values, raw.n_values) }?;
                let values = values.map(|value| {
                    let value = value?;
                    Ok((text(value.name, "a metric's name")?, value.value))
                });
                Self::Metrics {
                    values: values.collect::<Result<_>>()?,
                }
            }
            HOST_EVENT_CHECKPOINT_WRITTEN => Self::CheckpointWritten {
                name: text(raw.name, "a checkpoint's name")?,
                bytes: raw.bytes,
            },
            HOST_EVENT_CHECKPOINT_FAILED => Self::CheckpointFailed {
                reason: text(raw.text, "a reason")?,
            },
            HOST_EVENT_DELIVERY => {
                let Some(state) = delivery_state(raw.code) else {
                    return Ok((raw.step, None));
                };
                Self::Delivery {
                    sink: text(raw.name, "a sink's id")?,
                    checkpoint: raw.of_step,
                    state,
                    detail: text(raw.text, "a receipt or reason")?,
                }
            }
            HOST_EVENT_PLUGIN_FAULT => Self::PluginFault {
                plugin: text(raw.name, "a plugin's id")?,
                call: text(raw.call, "a call's name")?,
                message: text(raw.text, "a message")?,
            },
            HOST_EVENT_REQUEST => {
                let Some(request) = Request::from_code(raw.code, raw.factor) else {
                    return Ok((raw.step, None));
                };
                Self::Request {
                    by: text(raw.name, "a plugin's id")?,
                    request,
                    reason: text(raw.text, "a reason")?,
                }
            }
            HOST_EVENT_WARNING => Self::Warning {
                message: text(raw.text, "a message")?,
            },
            HOST_EVENT_RUN_FINISHED => {
                let Some(reason) = stop_reason(raw.code) else {
                    return Ok((raw.step, None));
                };
                Self::RunFinished {
                    reason,
                    message: text(raw.text, "a message")?,
                }
            }
            _ => return Ok((raw.step, None)),
        };
        Ok((raw.step, Some(event)))
    }
}

fn delivery_state(code: u32) -> Option<DeliveryState> {
    match code {
        HOST_DELIVERY_QUEUED => Some(DeliveryState::Queued),
        HOST_DELIVERY_SENDING => Some(DeliveryState::Sending),
        HOST_DELIVERY_DELIVERED => Some(DeliveryState::Delivered),
        HOST_DELIVERY_FAILED => Some(DeliveryState::Failed),
        HOST_DELIVERY_DROPPED => Some(DeliveryState::Dropped),
        _ => None,
    }
}

fn stop_reason(code: u32) -> Option<StopReason> {
    match code {
        HOST_STOP_COMPLETED => Some(StopReason::Completed),
        HOST_STOP_INTERRUPTED => Some(StopReason::Interrupted),
        HOST_STOP_TERMINATED => Some(StopReason::Terminated),
        HOST_STOP_REQUESTED => Some(StopReason::Requested),
        HOST_STOP_FAILED => Some(StopReason::Failed),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;

    #[test]
    fn every_kind_crosses_as_it_was() {
        let deliveries = [
            DeliveryState::Queued,
            DeliveryState::Sending,
            DeliveryState::Delivered,
            DeliveryState::Failed,
            DeliveryState::Dropped,
        ]
        .map(|state| Event::Delivery {
            sink: "local-disk",
            checkpoint: 7,
            state,
            detail: "{}",
        });
        let requests = [
            Request::Stop,
            Request::Checkpoint,
            Request::SkipStep,
            Request::ScaleLearningRate { factor: 0.5 },
            Request::RollBack,
            Request::Evaluate,
            Request::Pause,
            Request::Continue,
            Request::SetLearningRate { factor: 3.0 },
        ]
        .map(|request| Event::Request {
            by: "x",
            request,
            reason: "r",
        });
        let ends = [
            StopReason::Completed,
            StopReason::Interrupted,
            StopReason::Terminated,
            StopReason::Requested,
            StopReason::Failed,
        ]
        .map(|reason| Event::RunFinished {
            reason,
            message: "m",
        });
        let others = [
            Event::RunStarted { generation: 2 },
            Event::Superseded {
                from_step: 7,
                generation: 1,
            },
            Event::Metrics {
                values: vec![("a", 1.5), ("b", f64::INFINITY)],
            },
            Event::Metrics { values: Vec::new() },
            Event::CheckpointWritten {
                name: "step-000100",
                bytes: u64::MAX,
            },
            Event::CheckpointFailed { reason: "full" },
            Event::PluginFault {
                plugin: "p",
                call: "update",
                message: "m",
            },
            Event::Warning { message: "w" },
        ];
        for event in deliveries
            .iter()
            .chain(&requests)
            .chain(&ends)
            .chain(&others)
        {
            fake::event_view(9, event, |raw| {
                // SAFETY: the view is good for the call.
                let read = unsafe { Event::read(raw) }.expect("read");
                assert_eq!(read, (9, Some(event.clone())));
            });
        }
    }

    #[test]
    fn what_a_newer_host_says_is_skipped_and_what_a_broken_one_says_is_refused() {
        let read = |change: &dyn Fn(&mut HostEvent)| {
            let warning = Event::Warning { message: "w" };
            fake::event_view(3, &warning, |raw| {
                let mut raw = *raw;
                change(&mut raw);
                // SAFETY: the view is good for the call; what is changed below is not read beyond.
                unsafe { Event::read(&raw const raw) }.map(|(step, event)| (step, event.is_some()))
            })
        };
        assert_eq!(read(&|_| {}), Ok((3, true)));
        assert_eq!(read(&|raw| raw.kind = 1000), Ok((3, false)));
        for kind in [
            HOST_EVENT_DELIVERY,
            HOST_EVENT_REQUEST,
            HOST_EVENT_RUN_FINISHED,
        ] {
            let unknown = read(&|raw| (raw.kind, raw.code) = (kind, 1000));
            assert_eq!(unknown, Ok((3, false)));
        }
        assert!(read(&|raw| raw.struct_size = 8).is_err());
        let null = read(&|raw| raw.text.ptr = std::ptr::null());
        assert_eq!(
            null.expect_err("refused").message(),
            "the host passed a message as null"
        );
    }
}
