//! Two runs push to one branch at the same time.

use std::path::Path;

use hub_git::Error;
use serde_json::json;
use test_hub::WRITE_TOKEN;

use crate::support::{Run, git, hub_publisher, messages, model_hub};

/// About as many checkpoints as a run writes in an afternoon.
const CHECKPOINTS: u64 = 50;

#[test]
fn two_runs_push_to_one_branch() {
    let (hub, url) = model_hub();
    std::thread::scope(|scope| {
        for (name, first) in [("left", 1000), ("right", 2000)] {
            let more = [("branch", json!("shared")), ("timeout_secs", json!(3600))];
            let publisher = hub_publisher(&hub, WRITE_TOKEN, &more);
            scope.spawn(move || {
                let run = Run::new(name);
                for step in first..first + CHECKPOINTS {
                    let checkpoint = run.checkpoint(step, 2000);
                    // On a busy machine, a run may lose the race in every attempt of a delivery. The test
                    // then repeats the delivery, as the host would.
                    let mut published = run.publish(&publisher, &checkpoint);
                    while let Err(Error::Temporary(_)) = published {
                        published = run.publish(&publisher, &checkpoint);
                    }
                    published.expect("published");
                }
            });
        }
    });
    let messages = messages(&url, "shared");
    for first in [1000, 2000] {
        let steps = (first..first + CHECKPOINTS).rev();
        let expected: Vec<_> = steps.map(|step| format!("step {step}")).collect();
        let run = format!("step {}", first / 1000);
        let found: Vec<_> = messages.iter().filter(|m| m.starts_with(&run)).collect();
        assert!(found.into_iter().eq(&expected), "{messages:?}");
    }
    assert_eq!(messages.len(), 2 * 50 + 1);
    git(Path::new(&url), &["fsck", "--strict"]);
}
