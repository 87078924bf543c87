//! The shipped observers in real runs: one ends a run, the other rolls a run back.

use host_core::{Event, EventBody, Request};
use serde_json::{Value, json};

use crate::nonfinite::poisoned;
use crate::support::{Home, curve, events_of};

/// Returns the requests as (step, plugin, request, reason).
fn requests(home: &Home, run: &str) -> Vec<(u64, String, Request, String)> {
    let request = |event: &Event| match &event.body {
        EventBody::Request {
            by,
            request,
            reason,
        } => Some((event.step.0, by.clone(), *request, reason.clone())),
        _ => None,
    };
    let events = events_of(&home.run_dir(run));
    events.iter().filter_map(request).collect()
}

/// Returns the losses in the order of the events, including superseded ones.
fn losses(home: &Home, run: &str) -> Vec<(u64, f64)> {
    let loss = |event: &Event| match &event.body {
        EventBody::Metrics { values } => {
            let loss = values.iter().find(|value| &*value.name == "loss/train")?;
            Some((event.step.0, loss.value))
        }
        _ => None,
    };
    let events = events_of(&home.run_dir(run));
    events.iter().filter_map(loss).collect()
}

fn shown(home: &Home, run: &str) -> Value {
    let shown = home.host(&["runs", "show", run, "--json"]);
    shown.succeeded().json()
}

#[test]
fn early_stopping_ends_a_training_that_no_longer_improves() {
    let home = Home::new();
    // No improvement is large enough, so the run ends at step 15, two evaluations after the first.
    let plugin = "early-stopping:patience=2,min_delta=10";
    let output = home
        .train("early", &["--plugin", plugin, "--json"])
        .succeeded();
    let [(step, by, request, reason)] = &requests(&home, "early")[..] else {
        panic!("{:?}", requests(&home, "early"))
    };
    assert_eq!(
        (*step, by.as_str(), *request),
        (15, "early-stopping", Request::Stop)
    );
    assert!(reason.contains("loss/eval"), "{reason}");
    assert_eq!(home.checkpoints("early"), [5, 10, 15]);
    let last = output.events().pop().expect("events");
    assert_eq!(
        (&last["kind"], &last["step"], &last["reason"]),
        (&json!("run_finished"), &json!(15), &json!("requested"))
    );
    let shown = shown(&home, "early");
    assert_eq!(shown["last_step"], 15);
    let warnings = shown["warnings"].to_string();
    assert!(warnings.contains(reason.as_str()), "{warnings}");
    let text = home.host(&["runs", "show", "early"]).succeeded().stdout;
    assert!(text.contains(reason.as_str()), "{text}");

    // A run that keeps improving is not ended.
    let plugin = "early-stopping:patience=2";
    home.train("improving", &["--plugin", plugin]).succeeded();
    assert_eq!(requests(&home, "improving"), []);
    assert_eq!(home.checkpoints("improving"), [5, 10, 15, 20]);
}

#[test]
fn loss_guard_rolls_back_and_skips_the_batches() {
    let home = poisoned();
    let flags = |on_nonfinite, period, plugin| {
        [
            "--model",
            "model",
            "--on-nonfinite",
            on_nonfinite,
            "--save-checkpoint-steps",
            period,
            "--lr-scheduler-type",
            "constant",
            "--plugin",
            plugin,
        ]
    };
    let plugin = "loss-guard:action=roll_back,max_roll_backs=1000";
    home.train("skip", &flags("skip", "3", plugin)).succeeded();
    let seen = losses(&home, "skip");
    let odd = |(step, loss): &&(u64, f64)| !loss.is_finite() && *step < 20;
    let odd: Vec<u64> = seen.iter().filter(odd).map(|(step, _)| *step).collect();
    let asked = requests(&home, "skip");
    let steps: Vec<u64> = asked.iter().map(|asked| asked.0).collect();
    assert!(!odd.is_empty() && steps == odd, "{odd:?} {asked:?}");
    for (_, by, request, reason) in &asked {
        assert_eq!((by.as_str(), *request), ("loss-guard", Request::RollBack));
        assert!(reason.contains("loss/train"), "{reason}");
    }
    // The run completes, and its history has one loss for each step.
    assert_eq!(home.checkpoints("skip").last(), Some(&20));
    let counts = curve(&home.run_dir("skip"), "loss/train");
    let steps: Vec<u64> = counts.iter().map(|point| point.0).collect();
    assert_eq!(steps, (1..=20).collect::<Vec<_>>());
    // The number of used batches equals the number of measured losses, including superseded losses. So no
    // batch was repeated.
    let samples = curve(&home.run_dir("skip"), "samples");
    let last = samples.last().map(|(_, bits)| f64::from_bits(*bits));
    assert_eq!(last, Some(seen.len() as f64 * 4.0));

    // If NaN got into the weights, a rollback restores them from the last checkpoint, and the loss is finite
    // again. This holds even if a checkpoint was due at the same step.
    let plugin = "loss-guard:action=roll_back,max_roll_backs=1";
    for period in ["3", "1"] {
        let run = format!("continue-{period}");
        let flags = [
            &flags("continue", period, plugin)[..],
            &["--max-train-steps", "12"],
        ];
        home.train(&run, &flags.concat()).succeeded();
        let seen = losses(&home, &run);
        let first = seen.iter().position(|(_, loss)| !loss.is_finite());
        let first = first.expect("a loss that is not finite");
        assert_eq!(requests(&home, &run)[0].2, Request::RollBack);
        let (step, loss) = seen[first + 1];
        assert!(step <= seen[first].0, "it did not roll back: {seen:?}");
        assert!(loss.is_finite(), "{seen:?}");
    }
}
