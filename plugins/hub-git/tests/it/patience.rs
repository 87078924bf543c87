//! A server that asks for a wait.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use hub_git::{Error, Publisher};
use serde_json::json;
use test_hub::{Fault, TestHub, WRITE_TOKEN};

use crate::support::{Run, count, hub_publisher, messages, model_hub, temporary};

fn busy(status: u16, after: &str) -> Fault {
    Fault::Status(status, vec![("Retry-After".to_owned(), after.to_owned())])
}

/// A publisher to the hub, and what it says.
fn publisher(hub: &TestHub) -> (Publisher, Arc<Mutex<Vec<String>>>) {
    let said = Arc::new(Mutex::new(Vec::new()));
    let hears = Arc::clone(&said);
    let publisher = hub_publisher(hub, WRITE_TOKEN, &[("create", json!(true))]);
    let publisher = publisher.on_warning(move |words| {
        hears.lock().expect("no panic").push(words.to_owned());
    });
    (publisher, said)
}

#[test]
fn it_gets_the_wait_and_then_the_same_request() {
    let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(2));
    for (request, fault) in [
        ("POST /api/repos/create", busy(429, "1")),
        ("POST /user/model.git/info/lfs", busy(503, "1")),
        ("PUT /user/model", busy(429, "1")),
        ("PUT /user/model", busy(503, &date)),
    ] {
        let (hub, repo) = model_hub();
        hub.fault(request, fault, 1);
        let (publisher, said) = publisher(&hub);
        let run = Run::new("run");
        let begin = Instant::now();
        run.publish(&publisher, &run.checkpoint(1, 1000))
            .expect("published");
        // Not one request before its time; a date may lie less than a second ahead by now.
        assert!(begin.elapsed() >= Duration::from_millis(500), "{request}");
        assert_eq!(count(&hub, request), 2, "{request}");
        assert_eq!(messages(&repo, "run"), ["step 1", "initial commit"]);
        let said = said.lock().expect("no panic");
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(
            said[0].contains("asks for patience (4") || said[0].contains("asks for patience (5")
        );
    }
}

#[test]
fn a_part_of_a_file_waits_too() {
    let (hub, _) = model_hub();
    hub.set_part_bytes(400_000);
    hub.fault("part=00002", busy(503, "1"), 2);
    let (publisher, said) = publisher(&hub);
    let run = Run::new("run");
    run.publish(&publisher, &run.checkpoint(1, 1_000_001))
        .expect("published");
    assert_eq!(count(&hub, "PUT"), 3 + 2);
    assert_eq!(said.lock().expect("no panic").len(), 2);
}

#[test]
fn a_wait_ends_with_the_delivery() {
    let (hub, _) = model_hub();
    hub.fault("objects/batch", busy(429, "50"), usize::MAX);
    let (publisher, said) = publisher(&hub);
    let run = Run::new("run");
    let waits = || !said.lock().expect("no panic").is_empty();
    let result = run.publish_until(&publisher, &run.checkpoint(1, 1000), &waits);
    assert_eq!(result, Err(Error::Cancelled));
    assert_eq!(count(&hub, "POST /user/model.git/info/lfs"), 1);
}

#[test]
fn a_wait_that_takes_too_long_is_left_to_the_host() {
    // Longer than the delivery has; longer than is waited for at all.
    for after in ["120", "4000"] {
        let (hub, _) = model_hub();
        hub.fault("objects/batch", busy(429, after), usize::MAX);
        let (publisher, said) = publisher(&hub);
        let run = Run::new("run");
        let words = temporary(run.publish(&publisher, &run.checkpoint(1, 1000)));
        assert!(
            words.contains(&format!("try again after {after}")),
            "{words}"
        );
        assert_eq!(count(&hub, "POST /user/model.git/info/lfs"), 1);
        assert!(said.lock().expect("no panic").is_empty());
    }
}
