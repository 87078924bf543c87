//! A sink that writes to the checkpoint that it was given.

use std::fs;

use host_core::{DeliveryState, EventBody};

use crate::support::{Fixture, Home, events_of};

/// The reasons of the sink's faults, and of deliveries that failed.
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
fn what_a_sink_changes_is_found_when_it_returns_and_put_back() {
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
        let expected = format!(
            "it wrote to the checkpoint that it was given: {did}; what was changed is put back"
        );
        // Four checkpoints, and none of them is tried again.
        assert_eq!(faults, vec![expected; 4], "{run}");
        assert_eq!(failures, faults);
        // It is what its manifest says: another run can begin there.
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
fn what_a_sink_changes_later_is_found_at_the_next_delivery() {
    let home = Home::new();
    let library = Fixture::sink("careless").build(&home.path(""));
    let plugin = format!("{}:how=late,mode=process", library.display());
    home.train("late", &["--plugin", &plugin]).succeeded();
    let (faults, failures) = told(&home, "late");
    let expected = "after its delivery it wrote to the checkpoint that it was given: changed \
                    tokenizer.json; what was changed is put back";
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

/// A sink that only reads and links is not suspected.
#[test]
fn what_a_sink_links_is_no_change() {
    let home = Home::new();
    let kept = home.text_path("kept");
    let plugin = format!("local-disk:dir={kept},link=hard");
    home.train("linked", &["--plugin", &plugin]).succeeded();
    let (faults, failures) = told(&home, "linked");
    assert!(faults.is_empty() && failures.is_empty());
}
