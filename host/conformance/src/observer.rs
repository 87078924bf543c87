//! Tests of an observer's events, of its requests, and of its state in checkpoints.

use std::sync::Arc;

use host_core::{DeliveryState, EventBody, MetricValue, Request, Step, StopReason};
use host_plugin_abi::{HostEvent, HostStr, HostValue};
use serde_json::{Map, Value};

use crate::setup::Setup;
use crate::state;
use crate::subject::{Failure, Observer, Subject, tolerate};
use crate::test::{Stop, Test, Topic, Verdict, fault};
use host_plugin::raw::with_view;
use host_plugin::{EventKind, PluginKind};

const TOPIC: Topic = Topic {
    name: "observer",
    kinds: &[PluginKind::Observer],
};

pub(super) const TESTS: &[Test] = &[
    TOPIC.test(
        "every-event",
        "every kind of event in the manifest is accepted",
        every_event,
    ),
    TOPIC.test(
        "unknown-event",
        "an event of an unknown kind is ignored",
        unknown_event,
    ),
    TOPIC.test(
        "odd-values",
        "NaN, infinity, empty texts and huge texts are accepted",
        odd_values,
    ),
    TOPIC.test(
        "newer-host-event",
        "values in larger structs are read correctly",
        newer_host_event,
    ),
    TOPIC.test(
        "valid-requests",
        "requests are valid and have a reason",
        valid_requests,
    ),
    TOPIC.test(
        "state-round-trip",
        "an imported state is exported unchanged",
        state_round_trip,
    ),
    TOPIC.test(
        "state-continues",
        "an instance with an imported state continues like the instance that exported it",
        state_continues,
    ),
    TOPIC.test(
        "observer-truncated-state",
        "a truncated or extended state is rejected and changes nothing",
        |setup| state::truncated(&mut tried(setup)?),
    ),
    TOPIC.test(
        "observer-foreign-state",
        "a state of another version is rejected",
        |setup| state::foreign(&mut tried(setup)?),
    ),
    TOPIC.test(
        "observer-random-state",
        "random bytes as a state do not crash the plugin",
        |setup| state::random(&mut tried(setup)?, &mut setup.random()),
    ),
    TOPIC.test(
        "observer-state-refusals-have-reasons",
        "the rejection of a state reports a reason",
        |setup| state::has_reasons(&mut tried(setup)?),
    ),
];

/// Returns events of every kind, with this text and number.
fn of_every_kind(text: &str, number: f64) -> Vec<EventBody> {
    let text = || text.to_owned();
    let value = |name: &str| MetricValue::new(name, number);
    let mut events = vec![
        EventBody::RunStarted { generation: 0 },
        EventBody::Superseded {
            from_step: Step(3),
            generation: 1,
        },
        EventBody::Metrics { values: Vec::new() },
        EventBody::Metrics {
            values: vec![value("loss/train"), value("loss/eval"), value("perplexity")],
        },
        EventBody::CheckpointWritten {
            name: "step-000100".to_owned(),
            bytes: 1 << 40,
            stall_secs: 0.1,
            write_secs: 1.0,
        },
        EventBody::CheckpointFailed { reason: text() },
        EventBody::PluginFault {
            plugin: "perplexity".to_owned(),
            call: "update".to_owned(),
            message: text(),
        },
        EventBody::Warning { message: text() },
    ];
    events.extend(
        [
            DeliveryState::Queued,
            DeliveryState::Sending,
            DeliveryState::Delivered,
            DeliveryState::Failed,
            DeliveryState::Dropped,
        ]
        .map(|state| EventBody::Delivery {
            sink: "local-disk".to_owned(),
            checkpoint: Step(100),
            state,
            detail: text(),
            retry_time_us: None,
        }),
    );
    events.extend(
        [
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
        .map(|request| EventBody::Request {
            by: "loss-guard".to_owned(),
            request,
            reason: text(),
        }),
    );
    events.extend(
        [
            StopReason::Completed,
            StopReason::Interrupted,
            StopReason::Terminated,
            StopReason::Failed,
            StopReason::Requested,
        ]
        .map(|reason| EventBody::RunFinished {
            reason,
            message: text(),
        }),
    );
    events
}

/// Returns measurements that follow a random walk. They contain the metrics of a run, and the metrics named
/// in the plugin's settings. The values stay finite and small.
pub(super) fn measurements(setup: &Setup, count: usize) -> Vec<(EventBody, &'static str)> {
    let mut random = setup.random();
    let names = metric_names(setup);
    let mut level = 4.0;
    (0..count)
        .map(|_| {
            level = (level + random.f64() - 0.52_f64).clamp(0.5, 9.0);
            let values = names
                .iter()
                .map(|name| MetricValue::new(Arc::clone(name), level))
                .collect();
            (EventBody::Metrics { values }, "measured values")
        })
        .collect()
}

fn metric_names(setup: &Setup) -> Vec<Arc<str>> {
    let mut names: Vec<Arc<str>> = ["loss/train", "loss/eval", "perplexity", "lr", "grad_norm"]
        .map(Arc::from)
        .to_vec();
    let schema = setup.manifest().config.as_ref();
    let properties = schema
        .and_then(|schema| schema.get("properties"))
        .and_then(Value::as_object);
    let defaults = properties
        .into_iter()
        .flatten()
        .filter_map(|(_, property)| property.get("default")?.as_str());
    let settings: Map<String, Value> = setup
        .config()
        .ok()
        .and_then(|config| serde_json::from_str(&config).ok())
        .unwrap_or_default();
    let chosen = settings.values().filter_map(Value::as_str);
    for named in defaults.chain(chosen) {
        if !names.iter().any(|name| &**name == named) {
            names.push(named.into());
        }
    }
    names
}

/// Passes events to the observer. If its manifest lists kinds of events, skips events of all other kinds.
fn show(
    setup: &Setup,
    observer: &Observer,
    step: usize,
    events: impl IntoIterator<Item = EventBody>,
    given: &str,
) -> Verdict {
    for event in events {
        let kind = EventKind::of(&event);
        let is_wanted = |events: &Vec<EventKind>| events.contains(&kind);
        if !setup.manifest().events.as_ref().is_none_or(is_wanted) {
            continue;
        }
        let given = format!("{} {given}", kind.name());
        with_view(Step(step as u64), &event, |event| {
            observer.observe(event, &given).map(drop)
        })?;
    }
    Ok(())
}

fn every_event(setup: &Setup) -> Verdict {
    let observer = Subject::load(setup)?.observer()?;
    show(
        setup,
        &observer,
        1,
        of_every_kind("a reason", 1.5),
        "as in a run",
    )
}

fn unknown_event(setup: &Setup) -> Verdict {
    let observer = Subject::load(setup)?.observer()?;
    for kind in [0, 11, 1000, u32::MAX] {
        let event = HostEvent {
            text: HostStr::new("of a newer host"),
            ..HostEvent::new(kind, 7)
        };
        if let Err(failure) = observer.observe(&event, &format!("an event of the kind {kind}")) {
            return Err(fault(
                failure.words(),
                "a plugin ignores events of unknown kinds: a newer host has more kinds",
                "return HOST_OK for them",
            ));
        }
    }
    Ok(())
}

fn odd_values(setup: &Setup) -> Verdict {
    let subject = Subject::load(setup)?;
    let huge = "重い ".repeat(200_000);
    for (text, number, given) in [
        ("", f64::NAN, "with NaN and an empty text"),
        (
            "\u{0}\n\"\\{}",
            f64::INFINITY,
            "with infinity and an unusual text",
        ),
        (
            &*huge,
            f64::NEG_INFINITY,
            "with negative infinity and a huge text",
        ),
        ("x", f64::MAX, "with the largest number"),
    ] {
        show(
            setup,
            &subject.observer()?,
            1,
            of_every_kind(text, number),
            given,
        )?;
    }
    let many: Vec<MetricValue> = (0..5000)
        .map(|n| MetricValue::new(format!("metric/{n}"), f64::from(n)))
        .collect();
    let events = [EventBody::Metrics { values: many }];
    show(setup, &subject.observer()?, 1, events, "with 5000 values")
}

/// The requests of an observer.
#[derive(Default)]
struct Asked {
    /// Each request and each failed call, with its step.
    all: Vec<String>,
    failure: Option<Failure>,
}

/// Passes the measurements to the observer and collects its requests. The measurements begin at the step
/// `first`. Each value is followed by `more` 8-byte words, which stand for fields that a newer host adds.
fn asks(
    setup: &Setup,
    observer: &Observer,
    (first, events): (usize, &[EventBody]),
    more: usize,
) -> Result<Asked, Stop> {
    let mut asked = Asked::default();
    for (step, event) in (first..).zip(events) {
        let EventBody::Metrics { values } = event else {
            continue;
        };
        let words = size_of::<HostValue>() / 8 + more;
        let mut array = vec![u64::MAX; words * values.len()];
        for (n, value) in values.iter().enumerate() {
            let value = HostValue {
                struct_size: u32::try_from(words * 8).unwrap_or(u32::MAX),
                flags: 0,
                name: HostStr::new(&value.name),
                value: value.value,
            };
            // SAFETY: the pointer is within the vector and aligned to 8.
            unsafe {
                let at = array.as_mut_ptr().add(n * words);
                at.cast::<HostValue>().write(value);
            }
        }
        let event = HostEvent {
            values: array.as_ptr().cast(),
            n_values: values.len(),
            ..HostEvent::new(host_plugin_abi::HOST_EVENT_METRICS, step as u64)
        };
        let given = match more {
            0 => "measured values",
            _ => "measured values of a newer host",
        };
        let asks = match observer.observe(&event, given) {
            Ok(asks) => asks,
            Err(failure) => {
                asked.all.push(format!("{step}: a failure"));
                asked.failure.get_or_insert(failure);
                continue;
            }
        };
        // As in a run, requests are carried out at the next step boundary and become events.
        let carried_out = asks.iter().map(|ask| EventBody::Request {
            by: setup.manifest().id.clone(),
            request: ask.request,
            reason: ask.reason.clone(),
        });
        show(
            setup,
            observer,
            step,
            carried_out,
            "that the plugin itself requested",
        )?;
        for ask in asks {
            asked
                .all
                .push(format!("{step}: {:?}: {}", ask.request, ask.reason));
        }
    }
    Ok(asked)
}

/// Returns measurements that trigger all kinds of observers: they fall, stay constant and fluctuate, with a
/// spike and values that are not finite.
fn eventful(setup: &Setup) -> Vec<EventBody> {
    let mut random = setup.random();
    let names = metric_names(setup);
    (0..400)
        .map(|n| {
            let value = match n {
                0..100 => 8.0 - 0.05 * f64::from(n),
                150 => 1e6,
                200 => f64::NAN,
                201 => f64::INFINITY,
                250..300 => 3.0,
                _ => 3.0 + random.f64(),
            };
            EventBody::Metrics {
                values: names
                    .iter()
                    .map(|name| MetricValue::new(Arc::clone(name), value))
                    .collect(),
            }
        })
        .collect()
}

fn newer_host_event(setup: &Setup) -> Verdict {
    let subject = Subject::load(setup)?;
    let events = eventful(setup);
    let (one, other) = (subject.observer()?, subject.observer()?);
    let asked = asks(setup, &one, (0, &events), 0)?.all;
    let of_newer = asks(setup, &other, (0, &events), 3)?.all;
    let is_same_state = one.state().is_err() || one.export_state()? == other.export_state()?;
    if asked != of_newer || !is_same_state {
        return Err(fault(
            format!(
                "made {} requests, but {} when each value's struct was larger",
                asked.len(),
                of_newer.len()
            ),
            "the next value is struct_size bytes after the previous value",
            "advance by value->struct_size instead of indexing",
        ));
    }
    Ok(())
}

fn valid_requests(setup: &Setup) -> Verdict {
    let observer = Subject::load(setup)?.observer()?;
    match asks(setup, &observer, (0, &eventful(setup)), 0)?.failure {
        None => Ok(()),
        Some(failure) => Err(fault(
            failure.words(),
            "each request has a reason; a request to scale the learning rate has a factor in (0, 1]; measured \
             values cause no error",
            "call ask with a reason, and check the status that it returns",
        )),
    }
}

fn state_round_trip(setup: &Setup) -> Verdict {
    let subject = Subject::load(setup)?;
    let observer = subject.observer()?;
    let events = eventful(setup);
    for part in [0..0, 0..1, 1..120, 120..events.len()] {
        asks(setup, &observer, (part.start, &events[part]), 0)?;
        let state = observer.export_state()?;
        let expected = "repeated exports of a state give the same bytes, and an imported state is exported unchanged";
        if observer.export_state()? != state {
            return Err(fault(
                "exported two different states in a row",
                expected,
                "keep addresses, times and the order of a hash map out of the state",
            ));
        }
        let other = subject.observer()?;
        if state.is_empty() {
            continue;
        }
        other.import_state(&state, "a state that another instance exported")?;
        if other.export_state()? != state {
            return Err(fault(
                "exported a state that differs from the one that it had just imported",
                expected,
                "write and read every field of the state",
            ));
        }
    }
    Ok(())
}

fn state_continues(setup: &Setup) -> Verdict {
    let subject = Subject::load(setup)?;
    let events = eventful(setup);
    for at in [1, 90, 151, 230, 270] {
        let observer = subject.observer()?;
        asks(setup, &observer, (0, &events[..at]), 0)?;
        let state = observer.export_state()?;
        let other = subject.observer()?;
        if !state.is_empty() {
            other.import_state(&state, "a state that another instance exported")?;
        }
        // The first event of a resumed run.
        let resumed = [EventBody::RunStarted { generation: 1 }];
        show(setup, &other, at, resumed, "of a resumed run")?;
        let (asked, of_other) = (
            asks(setup, &observer, (at, &events[at..]), 0)?.all,
            asks(setup, &other, (at, &events[at..]), 0)?.all,
        );
        if asked != of_other {
            let first = asked.iter().zip(&of_other).find(|(a, b)| a != b);
            let (one, two) = first.map_or(
                (
                    format!("{} requests", asked.len()),
                    format!("{}", of_other.len()),
                ),
                |(a, b)| (a.clone(), b.clone()),
            );
            return Err(fault(
                format!("continued with {one}, but with {two} after export and import"),
                "a resumed run behaves like an uninterrupted run",
                "put all data that determines requests into the state",
            ));
        }
    }
    Ok(())
}

/// An observer's state, for the tests that observers share with metrics.
struct Tried {
    observer: Observer,
    state: Vec<u8>,
}

fn tried(setup: &Setup) -> Result<Tried, Stop> {
    let observer = Subject::load(setup)?.observer()?;
    asks(setup, &observer, (0, &eventful(setup)[..120]), 0)?;
    let state = observer.export_state()?;
    Ok(Tried { observer, state })
}

impl state::Stateful for Tried {
    fn state(&self) -> &[u8] {
        &self.state
    }

    fn take(&mut self, state: &[u8], given: &str) -> Result<(), Failure> {
        match state.is_empty() {
            // The host never imports an empty state; it creates a new instance instead.
            true => Err(Failure::of_the_host("import_state")),
            false => self.observer.import_state(state, given),
        }
    }

    fn is_as_before(&mut self) -> Result<bool, Stop> {
        Ok(self.observer.export_state()? == self.state)
    }

    fn renew(&mut self) -> Verdict {
        let state = self.state.clone();
        // An observer without a state exports no bytes, so there is nothing to import.
        if state.is_empty() {
            return Ok(());
        }
        tolerate(self.observer.import_state(&state, "its own state"))??;
        Ok(())
    }
}
