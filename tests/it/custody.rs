//! A sink that modifies the checkpoint that it receives.

use std::fs;

use host_core::{DeliveryState, EventBody};

use crate::support::{Fixture, Home, events_of};

/// Returns the messages of the sink's faults and of its failed deliveries.
fn told(home: &Home, run: &str) -> (Vec<String>, Vec<String>) {
    let (mut faults, mut failures) = (Vec::new(), Vec::new());
    for event in events_of(&home.run_dir(run)) {
        match event.body {
            EventBody::PluginFault {
                plugin,
                call,
                message,
            } => {
                assert_eq!((&*plugin, &*call), ("careless", "publish"));
                faults.push(message);
            }
            EventBody::Delivery {
                sink,
                state: DeliveryState::Failed,
                detail,
                ..
            } => {
                assert_eq!(sink, "careless");
                failures.push(detail);
            }
            _ => {}
        }
    }
    (faults, failures)
}

#[test]
fn changes_by_a_sink_are_detected_when_it_returns_and_undone() {
    let home = Home::new();
    let library = Fixture::sink("careless").build(&home.path(""));
    for (how, mode, did) in [
        ("alter", "process", "changed model.safetensors"),
        ("remove", "process", "removed config.json"),
        ("alter", "in_process", "changed model.safetensors"),
    ] {
        let run = format!("{how}-{mode}");
        let plugin = format!("{}:how={how},mode={mode}", library.display());
        let output = home.train(&run, &["--plugin", &plugin]);
        let (error, _) = output.failed_with(4);
        assert_eq!(error, "checkpoints did not reach careless");
        let (faults, failures) = told(&home, &run);
        let expected =
            format!("the sink wrote to the checkpoint: {did}; the changes were reverted");
        // There are four checkpoints, and none of their deliveries is retried.
        assert_eq!(faults, vec![expected; 4], "{run}");
        assert_eq!(failures, faults);
        // Another run can start from the checkpoint, because the checkpoint matches its manifest again.
        let checkpoint = home.checkpoint(&run, 20).display().to_string();
        let more = [
            "--resume-from-checkpoint",
            &checkpoint,
            "--max-train-steps",
            "21",
        ];
        home.train(&format!("{run}-more"), &more).succeeded();
    }
}

#[test]
fn later_changes_by_a_sink_are_detected_at_the_next_delivery() {
    let home = Home::new();
    let library = Fixture::sink("careless").build(&home.path(""));
    let plugin = format!("{}:how=late,mode=process", library.display());
    home.train("late", &["--plugin", &plugin]).succeeded();
    let (faults, failures) = told(&home, "late");
    let expected = "after the delivery, the sink wrote to the checkpoint: changed tokenizer.json; \
                    the changes were reverted";
    assert_eq!(faults, [expected; 3]);
    assert_eq!(failures, [""; 0]);
    for step in [5, 10, 15] {
        let tokenizer = home.checkpoint("late", step).join("tokenizer.json");
        assert!(
            fs::read_to_string(tokenizer)
                .expect("there")
                .starts_with('{')
        );
    }
}

/// A sink causes no fault if it only reads files or creates links to them.
#[test]
fn hard_links_made_by_a_sink_are_not_changes() {
    let home = Home::new();
    let kept = home.text_path("kept");
    let plugin = format!("local-disk:dir={kept},link=hard");
    home.train("linked", &["--plugin", &plugin]).succeeded();
    let (faults, failures) = told(&home, "linked");
    assert!(faults.is_empty() && failures.is_empty());
}
