//! Tests that clients' requests are recorded, and are carried out at the next step boundary.

use host_core::{Ask, Asker, CarriedOut, Request};

use super::*;

/// A client that waits for the answer, but ignores its content.
struct Patient;

impl Asker for Patient {
    fn waits(&self) -> bool {
        true
    }

    fn answer(self: Box<Self>, _at: CarriedOut) {}
}

fn run(home: &Path, start: &Start, config: &TrainConfig, wishes: &[Request]) -> Run {
    let (queue, requests) = RequestQueue::new();
    for &request in wishes {
        let ask = Ask {
            request,
            reason: "r".to_owned(),
        };
        let asked = queue.ask(RequestQueue::client("ann"), ask, Box::new(Patient));
        assert!(asked.expect("it trains"));
    }
    train_asked(config, start, home, &Control::new(), Vec::new(), requests)
}

#[test]
fn requests_of_clients_are_carried_out_in_order_and_recorded() {
    let home = tempfile::tempdir().expect("a folder");
    corpus(&home.path().join("data"));
    let config = TrainConfig {
        max_train_steps: 3,
        ..config(&home.path().join("data"))
    };
    let plain = run(&home.path().join("plain"), &Start::Fresh, &config, &[]);
    let wishes = [
        Request::Pause,
        Request::SetLearningRate { factor: 3.0 },
        Request::Evaluate,
        Request::Checkpoint,
        Request::Continue,
    ];
    let asked = run(&home.path().join("asked"), &Start::Fresh, &config, &wishes);
    let carried_out: Vec<(u64, String, Request)> = asked
        .drafts
        .iter()
        .filter_map(|draft| match &draft.body {
            EventBody::Request { by, request, .. } => Some((draft.step.0, by.clone(), *request)),
            _ => None,
        })
        .collect();
    let expected = wishes.map(|wish| (0, "client:ann".to_owned(), wish));
    assert_eq!(carried_out, expected);
    assert_eq!(asked.series("loss/eval")[0].0, 0);
    assert_eq!(plain.series("loss/eval")[0].0, 3);
    for (ours, theirs) in asked.series("lr").iter().zip(plain.series("lr")) {
        assert_eq!(ours.1, theirs.1 * 3.0);
    }

    // The checkpoint stores the learning rate's factor, so a run that resumes from it performs the same
    // steps.
    let from = Start::From(asked.checkpoints.join("step-000000"));
    let resumed = run(&home.path().join("resumed"), &from, &config, &[]);
    for name in ["lr", "loss/train", "grad_norm"] {
        assert_eq!(resumed.series(name), asked.series(name), "{name}");
    }
}

#[test]
fn a_stop_request_or_a_signal_ends_a_paused_run() {
    let home = tempfile::tempdir().expect("a folder");
    corpus(&home.path().join("data"));
    let config = config(&home.path().join("data"));
    let wishes = [Request::Pause, Request::Stop];
    let stopped = run(
        &home.path().join("stopped"),
        &Start::Fresh,
        &config,
        &wishes,
    );
    assert_eq!(stopped.outcome.reason, StopReason::Requested);
    assert_eq!(stopped.outcome.step, Step(0));

    let control = Control::new();
    control.stop(StopReason::Interrupted);
    let (_queue, requests) = RequestQueue::new();
    let home = home.path().join("interrupted");
    let interrupted = train_asked(
        &config,
        &Start::Fresh,
        &home,
        &control,
        Vec::new(),
        requests,
    );
    assert_eq!(interrupted.outcome.reason, StopReason::Interrupted);
}
