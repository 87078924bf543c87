//! Tests the requests of observers. They are carried out at the next step boundary, recorded, and stored in
//! checkpoints.

use std::sync::{Arc, Mutex};

use host_core::{
    Ask, Error, ErrorKind, EventBody, Observer, OnError, Request, Result, Step, Supervised,
};

use super::*;

/// An observer that makes each planned request once, when it receives the loss of the request's step.
struct Asking {
    plan: Vec<(u64, Request)>,
    /// The steps whose losses the observer received.
    seen: Arc<Mutex<Vec<u64>>>,
    done: u8,
}

impl Observer for Asking {
    fn id(&self) -> &str {
        "asking"
    }

    fn observe(&mut self, step: Step, event: &EventBody) -> Result<Vec<Ask>> {
        let EventBody::Metrics { values } = event else {
            return Ok(Vec::new());
        };
        if !values.iter().any(|value| &*value.name == "loss/train") {
            return Ok(Vec::new());
        }
        self.seen.lock().expect("not poisoned").push(step.0);
        let mut asks = Vec::new();
        while let Some((_, request)) = self
            .plan
            .get(usize::from(self.done))
            .filter(|(at, _)| *at == step.0)
        {
            self.done += 1;
            asks.push(Ask {
                request: *request,
                reason: format!("the loss of step {step} was seen"),
            });
        }
        Ok(asks)
    }

    fn export_state(&mut self) -> Result<Vec<u8>> {
        Ok(vec![self.done])
    }

    fn import_state(&mut self, state: &[u8]) -> Result<()> {
        self.done = state[0];
        Ok(())
    }
}

fn asking(plan: &[(u64, Request)], seen: &Arc<Mutex<Vec<u64>>>) -> Vec<Supervised<dyn Observer>> {
    let observer = Asking {
        plan: plan.to_vec(),
        seen: seen.clone(),
        done: 0,
    };
    vec![Supervised::new("asking", OnError::Warn, Box::new(observer))]
}

fn run(home: &Path, start: &Start, config: &TrainConfig, plan: &[(u64, Request)]) -> Run {
    let observers = asking(plan, &Arc::default());
    train_observed(config, start, home, &Control::new(), observers)
}

/// Returns the requests that were carried out, with their steps.
fn carried_out(run: &Run) -> Vec<(u64, Request)> {
    let request = |draft: &Draft| match &draft.body {
        EventBody::Request { by, request, .. } => {
            assert_eq!(by, "asking");
            Some((draft.step.0, *request))
        }
        _ => None,
    };
    run.drafts.iter().filter_map(request).collect()
}

#[test]
fn a_request_is_carried_out_at_the_next_step_boundary() {
    let home = tempfile::tempdir().expect("a folder");
    corpus(&home.path().join("data"));
    let config = config(&home.path().join("data"));
    let half = Request::ScaleLearningRate { factor: 0.5 };
    let plan = [
        (1, half),
        (2, Request::SkipStep),
        (5, Request::Checkpoint),
        (6, Request::Stop),
    ];
    let seen = Arc::default();
    let observed = train_observed(
        &config,
        &Start::Fresh,
        &home.path().join("observed"),
        &Control::new(),
        asking(&plan, &seen),
    );
    let plain = train(
        &config,
        &Start::Fresh,
        &home.path().join("plain"),
        &Control::new(),
    );
    assert_eq!(observed.outcome.reason, StopReason::Requested);
    assert_eq!(*seen.lock().expect("not poisoned"), [1, 2, 3, 4, 5, 6]);
    assert_eq!(
        carried_out(&observed),
        [
            (1, half),
            (2, Request::SkipStep),
            (5, Request::Checkpoint),
            (6, Request::Stop)
        ]
    );
    let (ours, theirs) = (observed.series("lr"), plain.series("lr"));
    assert_eq!(ours[0], theirs[0]);
    for (ours, theirs) in ours.iter().zip(&theirs).skip(1) {
        assert_eq!(ours.1, theirs.1 * 0.5);
    }
    // The first step is the same in both runs, so their second steps begin with equal weights.
    let (ours, theirs) = (observed.series("loss/train"), plain.series("loss/train"));
    assert_eq!(ours[..2], theirs[..2]);
    assert_ne!(ours[2], theirs[2]);
    assert!(
        observed
            .checkpoints
            .join("step-000006/manifest.json")
            .is_file()
    );
}

#[test]
fn a_skipped_step_changes_only_the_position_in_the_data() {
    let home = tempfile::tempdir().expect("a folder");
    corpus(&home.path().join("data"));
    let config = TrainConfig {
        max_train_steps: 4,
        save_checkpoint_steps: 1,
        ..config(&home.path().join("data"))
    };
    let run = run(
        home.path(),
        &Start::Fresh,
        &config,
        &[(2, Request::SkipStep)],
    );
    let weights = |step| {
        let file = format!("step-00000{step}/model.safetensors");
        fs::read(run.checkpoints.join(file)).expect("read")
    };
    assert_eq!(carried_out(&run), [(2, Request::SkipStep)]);
    assert!(weights(1) != weights(2));
    assert!(weights(2) == weights(3), "the third step was skipped");
    assert!(weights(3) != weights(4));
}

#[test]
fn a_roll_back_restores_the_checkpoint_but_continues_with_new_batches() {
    let home = tempfile::tempdir().expect("a folder");
    corpus(&home.path().join("data"));
    let config = config(&home.path().join("data"));
    let back = [(7, Request::RollBack)];
    let run = run(home.path(), &Start::Fresh, &config, &back);
    assert_eq!(carried_out(&run), [(7, Request::RollBack)]);
    let superseded = run.drafts.iter().any(|draft| {
        let expected = EventBody::Superseded {
            from_step: Step(5),
            generation: 0,
        };
        draft.body == expected
    });
    assert!(superseded, "{:?}", run.drafts);
    let losses = run.series("loss/train");
    let steps: Vec<u64> = losses.iter().map(|point| point.0).collect();
    assert_eq!(steps, [1, 2, 3, 4, 5, 6, 7, 6, 7, 8, 9, 10]);
    assert_ne!(losses[5], losses[7], "the batches are new");
    assert!((losses[5].1 - losses[7].1).abs() < 0.5, "{losses:?}");
    assert_eq!(
        (run.outcome.step, run.outcome.reason),
        (Step(10), StopReason::Completed)
    );
    // Twelve steps were trained, each with two micro-batches of four sequences.
    assert_eq!(
        run.series("samples").last().map(|point| point.1),
        Some(12.0 * 8.0)
    );
}

#[test]
fn a_step_with_a_requested_roll_back_has_no_checkpoint() {
    let home = tempfile::tempdir().expect("a folder");
    corpus(&home.path().join("data"));
    let config = TrainConfig {
        save_checkpoint_steps: 3,
        ..config(&home.path().join("data"))
    };
    let back = [(6, Request::RollBack)];
    let run = run(home.path(), &Start::Fresh, &config, &back);
    let losses = run.series("loss/train");
    let steps: Vec<u64> = losses.iter().map(|point| point.0).collect();
    assert_eq!(steps, [1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8, 9, 10]);
    let written = run.drafts.iter().filter_map(|draft| match &draft.body {
        EventBody::CheckpointWritten { .. } => Some(draft.step.0),
        _ => None,
    });
    assert_eq!(written.collect::<Vec<_>>(), [3, 6, 9, 10]);
}

#[test]
fn pending_requests_survive_a_resume() {
    let home = tempfile::tempdir().expect("a folder");
    corpus(&home.path().join("data"));
    let config = TrainConfig {
        // At step 5, a request is made, then the checkpoint is written, then the request is carried out.
        save_checkpoint_steps: 5,
        ..config(&home.path().join("data"))
    };
    let half = Request::ScaleLearningRate { factor: 0.3 };
    let plan = [(2, half), (5, Request::SkipStep), (7, half)];
    let whole = run(&home.path().join("whole"), &Start::Fresh, &config, &plan);
    let parts = home.path().join("parts");
    let first = run(&parts, &Start::Fresh, &config, &plan);
    fs::remove_dir_all(first.checkpoints.join("step-000010")).expect("removed");
    let start = Start::From(first.checkpoints.join("step-000005"));
    let second = run(&parts, &start, &config, &plan);
    assert_eq!(carried_out(&second), [(5, Request::SkipStep), (7, half)]);
    let manifest = |run: &Run| {
        fs::read_to_string(run.checkpoints.join("step-000010/manifest.json")).expect("read")
    };
    assert_eq!(manifest(&whole), manifest(&second));
    assert_eq!(whole.series("lr")[5..], second.series("lr"));
}

/// An observer that fails when it receives an event of one of the steps `at`.
struct Failing {
    at: Vec<u64>,
    panics: bool,
    seen: Arc<Mutex<Vec<u64>>>,
    panicked: bool,
}

impl Observer for Failing {
    fn id(&self) -> &str {
        "failing"
    }
    fn wants(&self, event: &EventBody) -> bool {
        matches!(
            event,
            EventBody::Metrics { .. } | EventBody::PluginFault { .. }
        )
    }
    fn observe(&mut self, step: Step, event: &EventBody) -> Result<Vec<Ask>> {
        assert!(!self.panicked, "not called after a panic");
        if !matches!(
            event,
            EventBody::Metrics { .. } | EventBody::PluginFault { .. }
        ) {
            return Ok(Vec::new());
        }
        if self.at.contains(&step.0) {
            self.panicked = self.panics;
            return Err(Error::new(ErrorKind::Plugin, "no"));
        }
        self.seen.lock().expect("not poisoned").push(step.0);
        Ok(Vec::new())
    }
    fn export_state(&mut self) -> Result<Vec<u8>> {
        assert!(!self.panicked, "not called after a panic");
        Ok(Vec::new())
    }
    fn import_state(&mut self, _: &[u8]) -> Result<()> {
        Ok(())
    }
    fn lost(&self) -> Option<String> {
        self.panicked.then(|| "it panicked".to_owned())
    }
}

/// Trains for ten steps, with checkpoints at steps 5 and 10. There is one observer for each policy. The
/// observers fail at the steps `at`. Returns three things: the run; the steps of the events that the
/// observers handled; the run's [`Control`].
fn beside_failing(
    home: &Path,
    policies: &[OnError],
    at: &[u64],
    panics: bool,
) -> (Run, Vec<u64>, Control) {
    corpus(&home.join("data"));
    let (seen, control) = (Arc::default(), Control::new());
    let observer = |policy: &OnError| -> Supervised<dyn Observer> {
        let failing = Failing {
            at: at.to_vec(),
            panics,
            seen: Arc::clone(&seen),
            panicked: false,
        };
        Supervised::new("failing", *policy, Box::new(failing))
    };
    let observers = policies.iter().map(observer).collect();
    let config = config(&home.join("data"));
    let run = train_observed(&config, &Start::Fresh, home, &control, observers);
    let mut seen = seen.lock().expect("not poisoned").clone();
    seen.dedup();
    (run, seen, control)
}

fn faults(run: &Run) -> Vec<u64> {
    let fault = |draft: &Draft| match &draft.body {
        EventBody::PluginFault { plugin, call, .. } => {
            assert_eq!((plugin.as_str(), call.as_str()), ("failing", "observe"));
            Some(draft.step.0)
        }
        _ => None,
    };
    run.drafts.iter().filter_map(fault).collect()
}

fn warnings(run: &Run) -> Vec<&str> {
    fn warning(draft: &Draft) -> Option<&str> {
        match &draft.body {
            EventBody::Warning { message } => Some(message),
            _ => None,
        }
    }
    run.drafts.iter().filter_map(warning).collect()
}

#[test]
fn an_observer_that_fails_misses_the_event_and_sees_the_next() {
    let home = tempfile::tempdir().expect("a folder");
    let (run, seen, _) = beside_failing(home.path(), &[OnError::Warn], &[2, 3], false);
    assert_eq!(run.outcome.reason, StopReason::Completed);
    assert_eq!(faults(&run), [2, 3]);
    assert_eq!(seen, [1, 4, 5, 6, 7, 8, 9, 10]);
    assert!(warnings(&run).is_empty());
}

#[test]
fn two_observers_that_always_fail_do_not_trigger_each_other() {
    let home = tempfile::tempdir().expect("a folder");
    let always: Vec<u64> = (0..=10).collect();
    let (run, seen, _) = beside_failing(home.path(), &[OnError::Warn; 2], &always, false);
    assert!(seen.is_empty());
    let metrics = |draft: &&Draft| matches!(draft.body, EventBody::Metrics { .. });
    let shown = run.drafts.iter().filter(metrics).count();
    assert!(faults(&run).len() <= 2 * shown, "{}", faults(&run).len());
}

#[test]
fn an_observer_is_disabled_after_enough_failures_in_a_row() {
    let home = tempfile::tempdir().expect("a folder");
    let (run, seen, _) =
        beside_failing(home.path(), &[OnError::DisableAfter(2)], &[2, 4, 5], false);
    assert_eq!(run.outcome.reason, StopReason::Completed);
    assert_eq!(seen, [1, 3]);
    assert_eq!(faults(&run), [2, 4, 5]);
    assert_eq!(
        warnings(&run),
        [
            "plugin failing is disabled: it failed 2 times in a row; it receives no more events and makes no more requests"
        ]
    );
}

/// Two things do not reset the count of consecutive failures: an event to which the observer did not
/// subscribe, and a successful export of the state.
#[test]
fn only_a_handled_event_ends_a_row_of_failures() {
    let home = tempfile::tempdir().expect("a folder");
    let always: Vec<u64> = (0..=10).collect();
    let (run, seen, _) = beside_failing(home.path(), &[OnError::DisableAfter(8)], &always, false);
    assert_eq!(run.outcome.reason, StopReason::Completed);
    assert_eq!((faults(&run).len(), seen), (8, Vec::new()));
    assert_eq!(warnings(&run).len(), 1);
}

#[test]
fn an_observer_that_panicked_is_disabled_under_every_policy() {
    let home = tempfile::tempdir().expect("a folder");
    let (run, seen, _) = beside_failing(home.path(), &[OnError::Warn], &[3], true);
    assert_eq!((faults(&run), seen), (vec![3], vec![1, 2]));
    assert_eq!(warnings(&run).len(), 1);
}

#[test]
fn an_observer_whose_failure_ends_the_run_leaves_a_checkpoint() {
    let home = tempfile::tempdir().expect("a folder");
    let (run, _, control) = beside_failing(home.path(), &[OnError::Fail], &[3], false);
    assert_eq!(
        (run.outcome.reason, run.outcome.step),
        (StopReason::Failed, Step(3))
    );
    assert!(run.checkpoints.join("step-000003/manifest.json").is_file());
    let error = control.take_failure().expect("the plugin's error");
    assert_eq!((error.message(), error.kind()), ("no", ErrorKind::Plugin));
}
