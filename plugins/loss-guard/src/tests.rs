use host_plugin_sdk::fake;
use serde_json::{Value, json};

use super::*;

/// A guard in a simulated training loop. The loop has a current step. Requests wait for the next step
/// boundary.
struct Run {
    guard: fake::Observer,
    step: u64,
    asked: Vec<(Request, String)>,
}

impl Run {
    fn new(config: Value) -> Self {
        let plugin = fake::Plugin::load(&PLUGIN);
        let guard = plugin.observer(&config.to_string()).expect("created");
        let mut run = Self {
            guard,
            step: 0,
            asked: Vec::new(),
        };
        run.show(&Event::RunStarted { generation: 0 });
        run
    }

    fn show(&mut self, event: &Event<'_>) {
        let asked = self.guard.observe(self.step, event).expect("observed");
        self.asked.extend(asked);
    }

    /// Finishes a step with this loss.
    fn step(&mut self, loss: f64) {
        self.step += 1;
        self.show(&Event::Metrics {
            values: vec![("loss/train", loss), ("lr", 0.5)],
        });
    }

    fn steps(&mut self, losses: &[f64]) {
        for &loss in losses {
            self.step(loss);
        }
    }

    /// Simulates a step boundary: carries out all waiting requests, and returns them.
    fn boundary(&mut self) -> Vec<(Request, String)> {
        let asked = std::mem::take(&mut self.asked);
        for (request, reason) in &asked {
            let request = *request;
            let (by, reason) = ("loss-guard", reason.as_str());
            self.show(&Event::Request {
                by,
                request,
                reason,
            });
        }
        asked
    }

    /// Runs steps with a boundary after each. Returns the number of requests.
    fn train(&mut self, losses: &[f64]) -> usize {
        let mut requests = 0;
        for &loss in losses {
            self.step(loss);
            requests += self.boundary().len();
        }
        requests
    }

    fn roll_back_to(&mut self, step: u64) {
        self.step = step;
        self.show(&Event::Superseded {
            from_step: step,
            generation: 0,
        });
    }
}

#[test]
fn a_spike_is_above_the_factor_times_the_median_of_a_full_window() {
    let mut run = Run::new(json!({"window": 4}));
    assert_eq!(run.train(&[90.0, 3.0, 3.25, 3.0]), 0, "it warms up");
    assert_eq!(run.train(&[6.0]), 0, "twice the median is not above it");
    run.step(6.5);
    assert_eq!(
        run.boundary(),
        [(
            Request::Stop,
            "loss/train is 6.5 at step 6, above 2 times 3, the median over a window of 4"
                .to_owned()
        )]
    );
    let mut lenient = Run::new(json!({"window": 4, "spike_factor": 3}));
    assert_eq!(lenient.train(&[3.0, 3.0, 3.0, 3.0, 9.0]), 0);
    assert_eq!(lenient.train(&[9.5]), 1);
}

#[test]
fn a_value_that_is_not_finite_is_reported_at_once() {
    for (value, word) in [(f64::NAN, "NaN"), (f64::INFINITY, "inf")] {
        let mut run = Run::new(json!({}));
        run.step(value);
        let reason = format!("loss/train is {word} at step 1");
        assert_eq!(run.boundary(), [(Request::Stop, reason)]);
    }
}

#[test]
fn another_metric_can_be_watched() {
    let mut run = Run::new(json!({"metric": "grad_norm", "window": 1}));
    assert_eq!(run.train(&[1.0, 100.0]), 0);
    for norm in [1.0, 2.5] {
        run.step += 1;
        run.show(&Event::Metrics {
            values: vec![("grad_norm", norm)],
        });
    }
    assert_eq!(run.boundary().len(), 1);
}

#[test]
fn there_is_no_spike_while_the_median_is_not_above_0() {
    let mut run = Run::new(json!({"window": 3}));
    assert_eq!(run.train(&[-1.0, -1.0, -1.0, -0.1, 0.0, 0.0, 0.0, 7.0]), 0);
}

#[test]
fn each_action_makes_its_request() {
    for (action, request) in [
        ("stop", Request::Stop),
        ("roll_back", Request::RollBack),
        ("skip", Request::SkipStep),
    ] {
        let mut run = Run::new(json!({"action": action}));
        run.step(f64::NAN);
        let asked = run.boundary();
        assert_eq!(asked.len(), 1);
        assert_eq!(asked[0].0, request);
    }
}

#[test]
fn consecutive_faults_cause_one_request() {
    for action in ["stop", "roll_back", "skip"] {
        let mut run = Run::new(json!({"action": action}));
        run.steps(&[f64::NAN, f64::NAN, f64::NAN]);
        assert_eq!(run.boundary().len(), 1, "{action}");
        // This loss belongs to a step that finished before the request was carried out. The loss was read
        // later.
        run.show(&Event::Metrics {
            values: vec![("loss/train", f64::NAN)],
        });
        assert_eq!(run.boundary(), [], "{action}");
        run.step(f64::NAN);
        assert_eq!(run.boundary().len(), 1, "{action}: another fault");
    }
}

#[test]
fn after_a_roll_back_repeated_steps_are_checked_again() {
    let mut run = Run::new(json!({"action": "roll_back", "window": 4}));
    assert_eq!(run.train(&[3.0; 10]), 0);
    assert_eq!(run.train(&[30.0]), 1);
    run.roll_back_to(9);
    assert_eq!(run.train(&[3.0; 2]), 0);
    assert_eq!(run.train(&[30.0]), 1);
}

#[test]
fn after_a_long_roll_back_the_loss_is_compared_with_earlier_values() {
    let mut run = Run::new(json!({"action": "roll_back", "window": 4}));
    let falling: Vec<f64> = (0..20).map(|step| 20.0 - f64::from(step)).collect();
    assert_eq!(run.train(&falling), 0);
    assert_eq!(run.train(&[30.0]), 1);
    run.roll_back_to(5);
    assert_eq!(run.train(&falling[5..]), 0, "15 is not a spike at step 6");
}

#[test]
fn after_the_most_roll_backs_the_request_is_a_stop() {
    let mut run = Run::new(json!({"action": "roll_back", "max_roll_backs": 2}));
    for _ in 0..2 {
        run.step(f64::NAN);
        assert_eq!(run.boundary()[0].0, Request::RollBack);
        run.roll_back_to(0);
    }
    run.step(f64::NAN);
    let reason = "loss/train is NaN at step 1; 2 roll-backs have already been requested".to_owned();
    assert_eq!(run.boundary(), [(Request::Stop, reason)]);
    let mut never = Run::new(json!({"action": "roll_back", "max_roll_backs": 0}));
    never.step(f64::NAN);
    assert_eq!(never.boundary()[0].0, Request::Stop);
}

#[test]
fn a_new_level_stops_being_a_spike() {
    let mut run = Run::new(json!({"action": "skip", "window": 8}));
    assert_eq!(run.train(&[1.0; 8]), 0);
    let skipped = run.train(&[3.0; 20]);
    assert_eq!(
        skipped, 5,
        "until most values of the window are at the new level"
    );
}

#[test]
fn the_state_survives_a_resume() {
    let config = json!({"action": "roll_back", "window": 4, "max_roll_backs": 1});
    let mut before = Run::new(config.clone());
    assert_eq!(before.train(&[3.0, 3.0, 3.0, 3.0, 30.0]), 1);
    let state = before.guard.export_state().expect("exported");
    let mut after = Run::new(config);
    after.guard.import_state(&state).expect("imported");
    assert_eq!(after.guard.export_state().expect("exported"), state);
    after.step(30.0);
    assert_eq!(
        after.boundary()[0].1,
        "loss/train is 30 at step 1, above 2 times 3, the median over a window of 4; \
         1 roll-back has already been requested"
    );
}

#[test]
fn a_request_that_was_lost_with_the_process_is_made_again() {
    let mut run = Run::new(json!({}));
    run.step(f64::NAN);
    assert_eq!(run.asked.len(), 1);
    run.asked.clear();
    run.show(&Event::RunStarted { generation: 1 });
    run.step(f64::NAN);
    assert_eq!(run.boundary().len(), 1);
}

#[test]
fn a_smaller_window_keeps_the_last_values() {
    let mut large = Run::new(json!({"window": 4}));
    assert_eq!(large.train(&[1.0, 2.0, 3.0, 4.0]), 0);
    let state = large.guard.export_state().expect("exported");
    let mut small = Run::new(json!({"window": 2}));
    small.guard.import_state(&state).expect("imported");
    let smaller = small.guard.export_state().expect("exported");
    assert_eq!(smaller[STATE_HEAD..], state[STATE_HEAD + 32..]);
}

#[test]
fn invalid_states_are_refused_and_change_nothing() {
    let mut run = Run::new(json!({"window": 4}));
    assert_eq!(run.train(&[1.0, 2.0]), 0);
    let state = run.guard.export_state().expect("exported");
    assert_eq!(state.len(), STATE_HEAD + 32);
    for length in 0..state.len() {
        assert!(
            run.guard.import_state(&state[..length]).is_err(),
            "{length}"
        );
    }
    let newer = [&[STATE_VERSION + 1], &state[1..]].concat();
    let failure = run.guard.import_state(&newer).expect_err("newer");
    assert!(failure.is_unsupported());
    assert_eq!(run.guard.export_state().expect("exported"), state);
}

#[test]
fn invalid_settings_are_refused() {
    let plugin = fake::Plugin::load(&PLUGIN);
    for (config, message) in [
        (
            r#"{"spike_factor": 1}"#,
            "spike_factor is 1, it must be above 1",
        ),
        (r#"{"window": 0}"#, "window is 0, it must be at least 1"),
    ] {
        assert_eq!(plugin.observer(config).expect_err(config).message, message);
    }
    assert!(plugin.observer(r#"{"action": "panic"}"#).is_err());
}

#[test]
fn the_defaults_of_schema_and_code_are_equal() {
    let plugin = fake::Plugin::load(&PLUGIN);
    let properties = &plugin.manifest()["config"]["properties"];
    let defaults: serde_json::Map<String, Value> = properties
        .as_object()
        .expect("properties")
        .iter()
        .filter_map(|(name, schema)| Some((name.clone(), schema.get("default")?.clone())))
        .collect();
    assert_eq!(defaults.len(), 5);
    let said: Config = serde_json::from_value(Value::Object(defaults)).expect("settings");
    assert_eq!(format!("{said:?}"), format!("{:?}", Config::default()));
}
