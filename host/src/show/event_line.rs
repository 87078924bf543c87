//! Events as lines of text.

use host_core::{DeliveryState, EVAL_LOSS, Event, EventBody, MetricValue, Request};

use crate::show::number;
pub(crate) use crate::show::printable::one_line;

/// Formats an event as a line. Returns `None` for events that are not shown, such as training steps, which
/// the meter shows.
pub(crate) fn event_line(event: &Event) -> Option<String> {
    let at = format!("step {:<6}", event.step);
    let line = match &event.body {
        EventBody::RunStarted { generation: 0 } => return None,
        EventBody::RunStarted { generation } => {
            format!("{at}  training resumed (resume number {generation})")
        }
        EventBody::Superseded { from_step, .. } => {
            format!("step {from_step:<6}  steps recorded after {from_step} are trained again")
        }
        EventBody::Metrics { values } => {
            let told: Vec<String> = values
                .iter()
                .filter(|metric| is_evaluation(values) && !metric.name.ends_with("_secs"))
                .map(|metric| format!("{} {}", metric.name, number::value(metric.value)))
                .collect();
            if told.is_empty() {
                return None;
            }
            format!("{at}  {}", told.join("  "))
        }
        EventBody::CheckpointWritten {
            name,
            bytes,
            write_secs,
            ..
        } => format!(
            "{at}  checkpoint {name}: {} in {}",
            number::bytes(*bytes),
            number::duration(*write_secs)
        ),
        EventBody::CheckpointFailed { reason } => format!("{at}  checkpoint failed: {reason}"),
        EventBody::Delivery {
            sink,
            checkpoint,
            state,
            detail,
            retry_time_us,
        } => match state {
            DeliveryState::Queued | DeliveryState::Sending => return None,
            DeliveryState::Delivered => {
                format!(
                    "step {checkpoint:<6}  delivered to {sink}{}",
                    receipt(detail)
                )
            }
            DeliveryState::Failed => {
                let again = if retry_time_us.is_some() {
                    "not yet"
                } else {
                    "not"
                };
                format!("step {checkpoint:<6}  {again} delivered to {sink}: {detail}")
            }
            DeliveryState::Dropped => {
                format!("step {checkpoint:<6}  dropped, not delivered to {sink}: {detail}")
            }
        },
        // Not shown, because a delivery event already reports the failed attempt.
        EventBody::PluginFault { call, .. } if call == "publish" => return None,
        EventBody::PluginFault {
            plugin,
            call,
            message,
        } => {
            let start = format!("plugin {plugin} failed in {call}: ");
            // Some messages already start with this text.
            let reason = message.strip_prefix(&start).unwrap_or(message);
            format!("warning: {start}{reason}")
        }
        EventBody::Request {
            by,
            request,
            reason,
        } => {
            let by = by.strip_prefix("client:").unwrap_or(by);
            let reason = match reason.as_str() {
                "" => String::new(),
                reason => format!(": {reason}"),
            };
            format!("{at}  {by} requested {}{reason}", request_words(*request))
        }
        EventBody::Warning { message } => format!("warning: {message}"),
        EventBody::RunFinished { reason, message } => {
            let reason = reason_word(*reason);
            if message.is_empty() {
                format!("{at}  {reason}")
            } else {
                format!("{at}  {reason}: {message}")
            }
        }
    };
    Some(one_line(&line))
}

/// Returns words that describe a request. They are printed after the word `requested`.
pub(crate) fn request_words(request: Request) -> String {
    match request {
        Request::Stop => "a stop".to_owned(),
        Request::Checkpoint => "a checkpoint".to_owned(),
        Request::SkipStep => "to skip a step".to_owned(),
        Request::ScaleLearningRate { factor } => {
            format!("to scale the learning rate by {factor}")
        }
        Request::RollBack => "to go back to the last checkpoint".to_owned(),
        Request::Evaluate => "an evaluation".to_owned(),
        Request::Pause => "a pause".to_owned(),
        Request::Continue => "to continue".to_owned(),
        Request::SetLearningRate { factor } => {
            format!("a learning rate of {factor} times the schedule's")
        }
    }
}

/// Returns how a run ended, in a word or two.
pub(crate) fn reason_word(reason: host_core::StopReason) -> &'static str {
    match reason {
        host_core::StopReason::Completed => "completed",
        host_core::StopReason::Interrupted => "interrupted",
        host_core::StopReason::Terminated => "terminated",
        host_core::StopReason::Requested => "stopped as requested",
        host_core::StopReason::Failed => "failed",
    }
}

fn is_evaluation(values: &[MetricValue]) -> bool {
    let tells =
        |name: &str| name == EVAL_LOSS || name == "perplexity" || name.starts_with("baseline/");
    values.iter().any(|metric| tells(&metric.name))
}

/// Formats the texts and numbers of a receipt, for example as `: path /c, files 3`. Leaves out digests.
/// Returns an empty string if the receipt has no other texts or numbers.
pub(crate) fn receipt(json: &str) -> String {
    let Ok(serde_json::Value::Object(receipt)) = serde_json::from_str(json) else {
        return String::new();
    };
    let told: Vec<String> = receipt
        .iter()
        .filter(|(key, _)| !key.ends_with("sha256"))
        .filter_map(|(key, value)| match value {
            serde_json::Value::String(text) => Some(format!("{key} {text}")),
            serde_json::Value::Number(number) => Some(format!("{key} {number}")),
            _ => None,
        })
        .collect();
    if told.is_empty() {
        return String::new();
    }
    format!(": {}", told.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use host_core::{Step, StopReason};

    fn line(step: u64, body: EventBody) -> Option<String> {
        event_line(&Event {
            seq: 1,
            time_us: 0,
            step: Step(step),
            body,
        })
    }

    #[test]
    fn evaluations_have_a_line_and_steps_have_none() {
        let metrics = |names: &[(&str, f64)]| EventBody::Metrics {
            values: names
                .iter()
                .map(|&(name, value)| MetricValue::new(name, value))
                .collect(),
        };
        assert_eq!(line(1, metrics(&[("loss/train", 3.0), ("lr", 1e-4)])), None);
        assert_eq!(
            line(
                100,
                metrics(&[("loss/eval", 4.2109), ("perplexity", 67.4212)])
            )
            .as_deref(),
            Some("step 100     loss/eval 4.2109  perplexity 67.421")
        );
    }

    #[test]
    fn a_fault_names_the_plugin_and_the_call_once() {
        for message in ["no room", "plugin x failed in update: no room"] {
            let fault = EventBody::PluginFault {
                plugin: "x".to_owned(),
                call: "update".to_owned(),
                message: message.to_owned(),
            };
            let expected = "warning: plugin x failed in update: no room";
            assert_eq!(line(1, fault).as_deref(), Some(expected));
        }
    }

    #[test]
    fn deliveries_show_their_receipt_or_reason_on_one_line() {
        let delivery = |state, detail: &str| EventBody::Delivery {
            sink: "local-disk".to_owned(),
            checkpoint: Step(100),
            state,
            detail: detail.to_owned(),
            retry_time_us: None,
        };
        assert_eq!(line(120, delivery(DeliveryState::Sending, "")), None);
        assert_eq!(
            line(
                120,
                delivery(DeliveryState::Delivered, r#"{"path":"/c/step-000100"}"#)
            )
            .as_deref(),
            Some("step 100     delivered to local-disk: path /c/step-000100")
        );
        assert_eq!(
            line(120, delivery(DeliveryState::Failed, "a\u{1b}[2J\nb")).as_deref(),
            Some("step 100     not delivered to local-disk: a [2J b")
        );
    }

    #[test]
    fn a_request_names_its_author_and_its_reason() {
        let asked = |by: &str, request, reason: &str| {
            let (by, reason) = (by.to_owned(), reason.to_owned());
            line(
                7,
                EventBody::Request {
                    by,
                    request,
                    reason,
                },
            )
            .expect("a line")
        };
        assert_eq!(
            asked("loss-guard", Request::Stop, "loss/train is NaN"),
            "step 7       loss-guard requested a stop: loss/train is NaN"
        );
        let slower = Request::ScaleLearningRate { factor: 0.5 };
        assert_eq!(
            asked("loss-guard", slower, "loss/train is NaN"),
            "step 7       loss-guard requested to scale the learning rate by 0.5: loss/train is NaN"
        );
        assert_eq!(
            asked("client:ann", Request::Pause, ""),
            "step 7       ann requested a pause"
        );
    }

    #[test]
    fn a_resume_names_its_number_and_the_steps_that_are_repeated() {
        assert_eq!(
            line(68, EventBody::RunStarted { generation: 1 }).as_deref(),
            Some("step 68      training resumed (resume number 1)")
        );
        let superseded = EventBody::Superseded {
            from_step: Step(68),
            generation: 1,
        };
        assert_eq!(
            line(68, superseded).as_deref(),
            Some("step 68      steps recorded after 68 are trained again")
        );
    }

    #[test]
    fn the_end_includes_the_reason() {
        let end = |reason, message: &str| {
            let message = message.to_owned();
            line(9, EventBody::RunFinished { reason, message }).expect("a line")
        };
        assert_eq!(end(StopReason::Completed, ""), "step 9       completed");
        assert_eq!(
            end(StopReason::Failed, "loss is NaN"),
            "step 9       failed: loss is NaN"
        );
    }
}
