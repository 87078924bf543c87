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
    /// Training starts or, if `generation` is above 0, continues after a resume.
    RunStarted {
        /// Number of times the run was resumed.
        generation: u32,
    },
    /// The run went back to the checkpoint of step `from_step`. Earlier events no longer count if their step
    /// is above `from_step`.
    Superseded {
        /// The last step that still counts.
        from_step: u64,
        /// Number of times the run was resumed.
        generation: u32,
    },
    /// Measured values.
    Metrics {
        /// The names and values. Each name appears once. Values can be infinite or NaN.
        values: Vec<(&'a str, f64)>,
    },
    /// A checkpoint in the run folder is complete.
    CheckpointWritten {
        /// Name of the checkpoint's folder, such as `step-000100`.
        name: &'a str,
        /// Total size of the checkpoint's files.
        bytes: u64,
    },
    /// A checkpoint could not be written. Training continues.
    CheckpointFailed {
        /// The reason.
        reason: &'a str,
    },
    /// The delivery of a checkpoint to a sink has a new state.
    Delivery {
        /// The sink's plugin id.
        sink: &'a str,
        /// The checkpoint's step.
        checkpoint: u64,
        /// The new state.
        state: DeliveryState,
        /// If the checkpoint was delivered, the sink's receipt (JSON). If the delivery failed or was dropped,
        /// the reason. Otherwise, the text is empty.
        detail: &'a str,
    },
    /// A call to a plugin failed.
    PluginFault {
        /// The plugin's id.
        plugin: &'a str,
        /// The call, such as `update` or `publish`.
        call: &'a str,
        /// The reason.
        message: &'a str,
    },
    /// The training loop carries out a request.
    Request {
        /// The sender: a plugin's id, which can be the observer's own, or `client:NAME`.
        by: &'a str,
        /// The request.
        request: Request,
        /// The reason that the sender gave.
        reason: &'a str,
    },
    /// A problem that users should know about.
    Warning {
        /// The warning's text.
        message: &'a str,
    },
    /// Training ended.
    RunFinished {
        /// Why training ended.
        reason: StopReason,
        /// The error's text if an error ended training, otherwise empty.
        message: &'a str,
    },
}

/// The state of a delivery.
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
    /// The checkpoint is in the sink's queue.
    Queued,
    /// The sink is sending the checkpoint.
    Sending,
    /// The sink returned a receipt.
    Delivered,
    /// An attempt failed. The host can try again.
    Failed,
    /// A newer checkpoint replaced this one in a queue that keeps only the latest.
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
    /// All steps are done.
    Completed,
    /// A user interrupted it (SIGINT).
    Interrupted,
    /// The system terminated it (SIGTERM).
    Terminated,
    /// An observer or a client requested the stop.
    Requested,
    /// An error ended it.
    Failed,
}

impl<'a> Event<'a> {
    /// Returns the value of the metric with this name, if the event contains that metric.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let Self::Metrics { values } = self else {
            return None;
        };
        let found = values.iter().find(|(known, _)| *known == name);
        found.map(|&(_, value)| value)
    }

    /// Returns the event's step and the event. The event is `None` if this SDK does not support its kind or
    /// code.
    ///
    /// # Safety
    /// `event` is null, or points to data that is valid according to the ABI for `'a`.
    pub(crate) unsafe fn read(event: *const HostEvent) -> Result<(u64, Option<Self>)> {
        // SAFETY: guaranteed by the caller.
        let raw = unsafe { sized::read(event) }?;
        // SAFETY: as above. The guarantee includes all fields that an event of this kind has.
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
    fn every_kind_survives_the_conversion() {
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
                // SAFETY: the view is valid during the call.
                let read = unsafe { Event::read(raw) }.expect("read");
                assert_eq!(read, (9, Some(event.clone())));
            });
        }
    }

    #[test]
    fn unknown_events_are_skipped_and_invalid_ones_are_errors() {
        let read = |change: &dyn Fn(&mut HostEvent)| {
            let warning = Event::Warning { message: "w" };
            fake::event_view(3, &warning, |raw| {
                let mut raw = *raw;
                change(&mut raw);
                // SAFETY: the view is valid during the call. The changes below cause no invalid reads.
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
