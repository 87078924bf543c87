//! `on_error` and `time_limit_secs`: the effect of a plugin's failures on a run.

use std::fs;

use host_core::{DeliveryState, Event, EventBody};
use serde_json::json;

use crate::support::{Home, built, curve, events_of};

fn plugin(library: &str, settings: &str) -> String {
    format!("{}:{settings}", built(library).display())
}

/// Returns the SPEC of a plugin of three kinds (parameter groups, metric and sink) whose calls misbehave as
/// these settings say.
fn misbehaving(settings: &str) -> String {
    plugin("libmisbehaving.so", settings)
}

/// Returns the SPEC of an observer whose calls misbehave as these settings say.
fn observer(settings: &str) -> String {
    plugin("libasking.so", settings)
}

fn events(home: &Home, run: &str) -> Vec<Event> {
    events_of(&home.run_dir(run))
}

/// Returns the faults as (step, call, message).
fn faults(home: &Home, run: &str) -> Vec<(u64, String, String)> {
    let fault = |event: &Event| match &event.body {
        EventBody::PluginFault { call, message, .. } => {
            Some((event.step.0, call.clone(), message.clone()))
        }
        _ => None,
    };
    events(home, run).iter().filter_map(fault).collect()
}

fn steps(faults: &[(u64, String, String)]) -> Vec<u64> {
    faults.iter().map(|fault| fault.0).collect()
}

/// Returns the warnings about disabled plugins, as (step, text).
fn disabled(home: &Home, run: &str) -> Vec<(u64, String)> {
    let warning = |event: &Event| match &event.body {
        EventBody::Warning { message } if message.contains(" is disabled: ") => {
            Some((event.step.0, message.clone()))
        }
        _ => None,
    };
    events(home, run).iter().filter_map(warning).collect()
}

/// Returns the steps at which a metric has a value.
fn points(home: &Home, run: &str, metric: &str) -> Vec<u64> {
    let points = curve(&home.run_dir(run), metric);
    points.iter().map(|point| point.0).collect()
}

/// Changes the policy in a run's `run.toml`.
fn set_policy(home: &Home, run: &str, from: &str, to: &str) {
    let file = home.run_dir(run).join("run.toml");
    let text = fs::read_to_string(&file).expect("run.toml");
    let line = |policy: &str| format!("on_error = {policy}\n");
    assert!(text.contains(&line(from)), "{text}");
    fs::write(&file, text.replace(&line(from), &line(to))).expect("written");
}

#[test]
fn a_metric_that_failed_is_missing_once_and_called_again() {
    let home = Home::new();
    for (name, how) in [
        ("update", "fail_in=update"),
        ("compute", "fail_in=compute"),
        ("panic", "panic_in=update"),
        ("late", "slow_in=update,time_limit_secs=3"),
    ] {
        let settings = format!("{how},from_step=10,until_step=15");
        home.train(name, &["--plugin", &misbehaving(&settings)])
            .succeeded();
        let faults = faults(&home, name);
        assert_eq!(steps(&faults), [10], "{faults:?}");
        assert_eq!(points(&home, name, "predicted_tokens"), [5, 15, 20]);
        assert_eq!(points(&home, name, "loss/eval"), [5, 10, 15, 20]);
        assert_eq!(disabled(&home, name), []);
        if name == "late" {
            let message = &faults[0].2;
            assert!(message.contains("update: it took "), "{message}");
            let end = "longer than its time_limit_secs = 3";
            assert!(message.ends_with(end), "{message}");
        }
    }
}

#[test]
fn a_metric_that_fails_twice_in_a_row_is_disabled() {
    let home = Home::new();
    let settings = "fail_in=compute,from_step=10,on_error=disable_after=2";
    home.train("row", &["--plugin", &misbehaving(settings)])
        .succeeded();
    assert_eq!(steps(&faults(&home, "row")), [10, 15]);
    assert_eq!(points(&home, "row", "predicted_tokens"), [5]);
    let why = "plugin misbehaving is disabled: it failed 2 times in a row; its values are missing from here on";
    assert_eq!(disabled(&home, "row"), [(15, why.to_owned())]);
}

#[test]
fn a_metric_that_panics_is_created_again_three_times() {
    let home = Home::new();
    let plugin = misbehaving("panic_in=update,from_step=5");
    let flags = ["--save-checkpoint-steps", "2", "--plugin", &plugin];
    home.train("panic", &flags).succeeded();
    assert_eq!(steps(&faults(&home, "panic")), [6, 8, 10, 12]);
    let why = "plugin misbehaving is disabled: it panicked in update after 3 restarts; its values are missing from here on";
    assert_eq!(disabled(&home, "panic"), [(12, why.to_owned())]);
    let restarts = curve(&home.run_dir("panic"), "plugin/misbehaving/restarts");
    let last = restarts
        .last()
        .map(|(step, bits)| (*step, f64::from_bits(*bits)));
    assert_eq!(last, Some((20, 3.0)));
}

#[test]
fn a_metric_whose_failure_ends_the_run_leaves_a_checkpoint_to_resume_from() {
    let home = Home::new();
    let settings = "fail_in=update,from_step=10,on_error=fail";
    let output = home.train("fatal", &["--plugin", &misbehaving(settings), "--json"]);
    let (error, hint) = output.failed_with(3);
    let expected = "plugin misbehaving failed in update: update was told to fail";
    assert_eq!(error, expected);
    assert!(hint.contains("on_error"), "{hint}");
    let last = output.events().pop().expect("events");
    assert_eq!(
        (
            &last["kind"],
            &last["step"],
            &last["reason"],
            &last["message"]
        ),
        (
            &json!("run_finished"),
            &json!(10),
            &json!("failed"),
            &json!(expected)
        )
    );
    assert_eq!(home.checkpoints("fatal"), [5, 10]);

    // The policy belongs to the run: it applies to a resume, too.
    let (error, _) = (home.host(&["resume", "fatal"]), ());
    assert_eq!(error.failed_with(3).0, expected);
    assert_eq!(home.checkpoints("fatal"), [5, 10, 15]);
    set_policy(&home, "fatal", "\"fail\"", "\"warn\"");
    home.host(&["resume", "fatal"]).succeeded();
    assert_eq!(home.checkpoints("fatal"), [5, 10, 15, 20]);
    assert_eq!(points(&home, "fatal", "predicted_tokens"), [5]);
}

#[test]
fn an_observer_that_fails_gets_the_next_event() {
    let home = Home::new();
    let plugin = observer("fail_in=observe,from_step=15");
    home.train("failing", &["--plugin", &plugin]).succeeded();
    let faults = faults(&home, "failing");
    assert!(faults.len() >= 6, "{faults:?}");
    assert!(steps(&faults).iter().all(|step| *step >= 15), "{faults:?}");
    assert_eq!(disabled(&home, "failing"), []);
}

#[test]
fn an_observer_is_disabled_by_its_policy_or_by_a_panic() {
    let home = Home::new();
    let means = "it receives no more events and makes no more requests";
    for (name, settings, count, why) in [
        (
            // The observer fails from step 1 on. If it failed only from a later step on, it could receive an
            // event of an earlier step between two failures. That call would succeed, so the failures would
            // not be in a row.
            "row",
            "fail_in=observe,from_step=1,on_error=disable_after=3",
            3,
            "it failed 3 times in a row",
        ),
        (
            "panic",
            "panic_in=observe,from_step=7",
            1,
            "it panicked in observe, and its state is lost",
        ),
    ] {
        home.train(name, &["--plugin", &observer(settings)])
            .succeeded();
        assert_eq!(faults(&home, name).len(), count);
        let [(_, said)] = &disabled(&home, name)[..] else {
            panic!("{:?}", disabled(&home, name))
        };
        let expected = format!("plugin asking is disabled: {why}; {means}");
        assert_eq!(*said, expected);
        assert_eq!(home.checkpoints(name), [5, 10, 15, 20]);
    }
}

#[test]
fn an_observer_with_on_error_fail_ends_the_run_at_the_step_boundary() {
    let home = Home::new();
    for (name, how) in [("fails", "fail_in"), ("panics", "panic_in")] {
        let settings = format!("{how}=observe,from_step=7,on_error=fail");
        let output = home.train(name, &["--plugin", &observer(&settings)]);
        let (error, _) = output.failed_with(3);
        let start = "plugin asking failed in observe: ";
        assert!(error.starts_with(start), "{error}");
        assert_eq!(home.checkpoints(name), [5, 7]);
    }
}

#[test]
fn a_sink_that_fails_twice_in_a_row_is_disabled_and_its_checkpoints_stay() {
    let home = Home::new();
    for mode in ["in_process", "process"] {
        let settings = format!("fail_in=publish,on_error=disable_after=2,mode={mode}");
        let plugin = misbehaving(&settings);
        let flags = ["--keep-checkpoints", "1", "--plugin", &plugin];
        let output = home.train(mode, &flags);
        let (error, _) = output.failed_with(4);
        assert_eq!(error, "checkpoints did not reach misbehaving");
        assert_eq!(steps(&faults(&home, mode)), [5, 10]);
        let [(_, said)] = &disabled(&home, mode)[..] else {
            panic!("{:?}", disabled(&home, mode))
        };
        let start = "plugin misbehaving is disabled: it failed 2 times in a row; the ";
        assert!(said.starts_with(start), "{said}");
        assert!(said.ends_with(" stay queued in the run folder"), "{said}");
        // Queued checkpoints are kept so that `host deliver` can deliver them. For the same reason,
        // checkpoints whose delivery failed are kept.
        assert_eq!(home.checkpoints(mode), [5, 10, 15, 20]);
        let delivery = |event: &Event| match event.body {
            EventBody::Delivery {
                checkpoint, state, ..
            } if checkpoint.0 >= 15 => Some((checkpoint.0, state)),
            _ => None,
        };
        let later: Vec<_> = events(&home, mode).iter().filter_map(delivery).collect();
        let queued = DeliveryState::Queued;
        assert_eq!(later, [(15, queued), (20, queued)]);
        let depth = curve(&home.run_dir(mode), "plugin/misbehaving/queue_depth");
        let last = depth
            .last()
            .map(|(step, bits)| (*step, f64::from_bits(*bits)));
        assert_eq!(last, Some((20, 2.0)));
    }
}

#[test]
fn a_sink_with_on_error_fail_ends_the_run() {
    let home = Home::new();
    let plugin = misbehaving("fail_in=publish,on_error=fail");
    let flags = ["--max-train-steps", "1000000", "--plugin", &plugin];
    let output = home.train("fatal", &flags);
    let (error, _) = output.failed_with(3);
    assert_eq!(
        error,
        "plugin misbehaving failed in publish: publish was told to fail"
    );
    let last = events(&home, "fatal").pop().expect("events");
    let finished = matches!(last.body, EventBody::RunFinished { .. });
    assert!(finished && last.step.0 < 1_000_000, "{last:?}");
    let newest = home.checkpoints("fatal").pop();
    assert_eq!(newest, Some(last.step.0), "a checkpoint was written first");
}

#[test]
fn an_invalid_policy_is_rejected() {
    let home = Home::new();
    for (plugin, message) in [
        (
            "weight-decay:on_error=warn",
            "on_error of plugin weight-decay must be \"fail\": training is not possible without its parameter groups",
        ),
        ("perplexity:on_error=ignore", "on_error cannot be ignore"),
        ("perplexity:time_limit_secs=0", "invalid time_limit_secs: 0"),
    ] {
        let output = home.train("refused", &["--plugin", plugin]);
        assert_eq!(output.failed_with(2).0, message);
        assert!(!home.path("runs").exists());
    }
}

#[test]
fn the_metrics_of_plugin_costs_have_one_point_per_step() {
    let home = Home::new();
    let sink = format!("local-disk:dir={}", home.text_path("disk"));
    let flags = ["--plugin", "perplexity", "--plugin", &sink];
    home.train("costs", &flags).succeeded();
    let run = home.run_dir("costs");
    for metric in [
        "perplexity/calls",
        "perplexity/failures",
        "perplexity/p50_secs",
        "perplexity/p99_secs",
        "perplexity/step_share",
        "local-disk/calls",
        "local-disk/queue_depth",
        "local-disk/restarts",
        "weight-decay/calls",
    ] {
        let points = points(&home, "costs", &format!("plugin/{metric}"));
        assert_eq!(points, [5, 10, 15, 20], "{metric}");
    }
    for (_, share) in curve(&run, "plugin/perplexity/step_share") {
        let share = f64::from_bits(share);
        assert!(share > 0.0 && share < 1.0, "{share}");
    }
    let calls = curve(&run, "plugin/local-disk/calls");
    let last = calls.last().map(|(_, bits)| f64::from_bits(*bits));
    // One call is the preflight before the first step. The other four calls are deliveries.
    assert_eq!(last, Some(1.0 + 4.0), "the last delivery is counted");
    let names = home.host(&["runs", "show", "costs", "--json"]).succeeded();
    let text = names.json()["metrics"].to_string();
    assert!(!text.contains("plugin/local-disk/step_share"), "{text}");
}
