use host_core::{
    Ask, DeliveryState, ErrorKind, EventBody, MetricValue, Observer, Request, Step, StopReason,
};
use host_plugin::PluginKind;
use serde_json::json;

use crate::fixture::{Fixture, dir, listen, log_of};

fn fixture(id: &str) -> Fixture {
    Fixture::new("observer.c", id)
}

/// Creates an observer that behaves as `how` describes. The plugin's id is `id`.
fn observer(id: &str, how: &str) -> Box<dyn Observer> {
    let plugin = fixture(id).load_with(dir().path(), json!({"how": how}));
    let plugin = plugin.unwrap();
    assert_eq!(plugin.kinds(), [PluginKind::Observer]);
    plugin.observer().unwrap()
}

fn loss(value: f64) -> EventBody {
    EventBody::Metrics {
        values: vec![
            MetricValue::new("loss/train", value),
            MetricValue::new("lr", 0.5),
        ],
    }
}

#[test]
fn every_kind_of_event_is_passed_with_its_fields() {
    listen();
    let text = ToString::to_string;
    let mut observer = observer("sees-all", "");
    for event in [
        EventBody::RunStarted { generation: 2 },
        EventBody::Superseded {
            from_step: Step(3),
            generation: 2,
        },
        loss(f64::INFINITY),
        EventBody::CheckpointWritten {
            name: text("step-000100"),
            bytes: 4096,
            stall_secs: 0.1,
            write_secs: 0.2,
        },
        EventBody::CheckpointFailed {
            reason: text("full"),
        },
        EventBody::Delivery {
            sink: text("disk"),
            checkpoint: Step(5),
            state: DeliveryState::Delivered,
            detail: text("{}"),
            retry_time_us: None,
        },
        EventBody::PluginFault {
            plugin: text("p"),
            call: text("update"),
            message: text("m"),
        },
        EventBody::Request {
            by: text("x"),
            request: Request::ScaleLearningRate { factor: 0.25 },
            reason: text("r"),
        },
        EventBody::Warning { message: text("w") },
        EventBody::RunFinished {
            reason: StopReason::Failed,
            message: text("e"),
        },
    ] {
        assert_eq!(observer.observe(Step(7), &event).unwrap(), []);
    }
    let seen = |kind: u32, name: &str, call: &str, text: &str, rest: &str| {
        format!("kind {kind} step 7 name {name} call {call} text {text} {rest}")
    };
    let rest = |bytes: u64, of: u64, generation: u32, code: u32, factor: f64| {
        format!("bytes {bytes} of {of} generation {generation} code {code} factor {factor}")
    };
    let nothing = rest(0, 0, 0, 0, 0.0);
    assert_eq!(
        log_of("sees-all")[1..],
        [
            seen(1, "", "", "", &rest(0, 0, 2, 0, 0.0)),
            seen(2, "", "", "", &rest(0, 3, 2, 0, 0.0)),
            seen(3, "", "", "", &format!("{nothing} loss/train=inf lr=0.5")),
            seen(4, "step-000100", "", "", &rest(4096, 0, 0, 0, 0.0)),
            seen(5, "", "", "full", &nothing),
            seen(6, "disk", "", "{}", &rest(0, 5, 0, 3, 0.0)),
            seen(7, "p", "update", "m", &nothing),
            seen(8, "x", "", "r", &rest(0, 0, 0, 4, 0.25)),
            seen(9, "", "", "w", &nothing),
            seen(10, "", "", "e", &rest(0, 0, 0, 4, 0.0)),
        ]
    );
}

#[test]
fn events_that_the_manifest_does_not_list_make_no_call() {
    let plugin = fixture("sees-metrics")
        .manifest_with("events", json!(["metrics", "request"]))
        .load_with(dir().path(), json!({"how": "all"}))
        .unwrap();
    let mut observer = plugin.observer().unwrap();
    let warning = EventBody::Warning {
        message: "w".to_owned(),
    };
    assert_eq!(observer.observe(Step(1), &warning).unwrap(), []);
    assert_eq!(plugin.account().summary().calls, 0);
    assert_eq!(observer.observe(Step(1), &loss(1.0)).unwrap().len(), 5);
    assert_eq!(plugin.account().summary().calls, 1);
}

#[test]
fn requests_keep_their_order_and_their_reasons() {
    let asked = observer("asks-all", "all").observe(Step(1), &loss(1.0));
    let expected = [
        (Request::Stop, "a"),
        (Request::Checkpoint, "b"),
        (Request::SkipStep, "c"),
        (Request::ScaleLearningRate { factor: 0.5 }, "d"),
        (Request::RollBack, "e [31me"),
    ]
    .map(|(request, reason)| Ask {
        request,
        reason: reason.to_owned(),
    });
    assert_eq!(asked.unwrap(), expected);
    let fallen_back = observer("asks-newer", "newer").observe(Step(1), &loss(1.0));
    let old = Ask {
        request: Request::Stop,
        reason: "old".to_owned(),
    };
    assert_eq!(fallen_back.unwrap(), [old]);
}

#[test]
fn an_invalid_request_fails_the_call_even_if_the_plugin_ignores_it() {
    for (how, reason) in [
        ("observe", "observe was told to fail"),
        ("no_reason", "it made a request without a reason"),
        (
            "raise",
            "it made an invalid request: the learning rate cannot be scaled by 2",
        ),
        (
            "nan",
            "it made an invalid request: the learning rate cannot be scaled by NaN",
        ),
        ("many", "it made more than 16 requests in one call"),
    ] {
        let id = format!("observer-{how}");
        let error = observer(&id, how).observe(Step(1), &loss(1.0)).unwrap_err();
        assert_eq!(
            error.message(),
            format!("plugin {id} failed in observe: {reason}")
        );
        assert_eq!(error.kind(), ErrorKind::Plugin);
    }
}

#[test]
fn an_exported_state_can_be_imported_by_another_instance() {
    let mut first = observer("has-state", "");
    for _ in 0..3 {
        first.observe(Step(1), &loss(1.0)).unwrap();
    }
    let state = first.export_state().unwrap();
    assert_eq!(state, 3i64.to_le_bytes());
    let mut second = observer("has-state", "all");
    second.import_state(&[]).unwrap();
    second.import_state(&state).unwrap();
    assert_eq!(second.export_state().unwrap(), state);
    let error = second.import_state(&state[1..]).unwrap_err();
    assert_eq!(
        error.message(),
        "plugin has-state failed in import_state: the state has a wrong size"
    );
    assert!(error.hint_text().unwrap().contains("same version"));
    let error = observer("puts-nothing", "export_state").export_state();
    assert_eq!(
        error.unwrap_err().message(),
        "plugin puts-nothing failed in export_state: it succeeded but put no output"
    );
}

#[test]
fn the_state_functions_are_optional_but_only_together() {
    let dir = dir();
    let stateless = fixture("stateless").flag("-DNO_STATE").load(dir.path());
    let mut stateless = stateless.unwrap().observer().unwrap();
    assert_eq!(stateless.export_state().unwrap(), b"");
    stateless.import_state(&[]).unwrap();
    let error = stateless.import_state(&[1, 2]).unwrap_err();
    assert_eq!(
        error.message(),
        "plugin stateless failed in import_state: it has no state, but the checkpoint has a state of 2 bytes for it"
    );
    let half = fixture("half-a-state").flag("-DNO_IMPORT").load(dir.path());
    let message = half.unwrap_err().message().to_owned();
    assert!(
        message.starts_with("plugin half-a-state lacks the function import_state of observer"),
        "{message}"
    );
}

#[test]
fn after_a_panic_it_is_not_called_again() {
    let mut observer = observer("observer-panic", "panic");
    let failed =
        |call: &str, reason: &str| format!("plugin observer-panic failed in {call}: {reason}");
    let error = observer.observe(Step(1), &loss(1.0)).unwrap_err();
    assert_eq!(error.message(), failed("observe", "it panicked"));
    let again = "it panicked in observe earlier and is not called again";
    let error = observer.observe(Step(2), &loss(1.0)).unwrap_err();
    assert_eq!(error.message(), failed("observe", again));
    let error = observer.export_state().unwrap_err();
    assert_eq!(error.message(), failed("export_state", again));
}
