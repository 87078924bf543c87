//! Servers that tell the client when to retry.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use hub_git::{Error, Publisher};
use serde_json::json;
use test_hub::{Fault, TestHub, WRITE_TOKEN};

use crate::support::{Run, count, hub_publisher, messages, model_hub, temporary};

fn busy(status: u16, after: &str) -> Fault {
    Fault::Status(status, vec![("Retry-After".to_owned(), after.to_owned())])
}

/// Returns a publisher that pushes to the hub, and the publisher's warnings.
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
fn the_request_is_repeated_after_the_wait() {
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
        // No request is sent too early. The wait until `date` can be shorter than one second, because the
        // date has whole seconds and was computed before the loop.
        assert!(begin.elapsed() >= Duration::from_millis(500), "{request}");
        assert_eq!(count(&hub, request), 2, "{request}");
        assert_eq!(messages(&repo, "run"), ["step 1", "initial commit"]);
        let said = said.lock().expect("no panic");
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].contains("is busy (4") || said[0].contains("is busy (5"));
    }
}

#[test]
fn an_upload_of_a_part_waits_too() {
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
fn cancelling_the_delivery_ends_the_wait() {
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
fn too_long_a_wait_is_a_temporary_error() {
    // The first wait is longer than the delivery's time limit. The second is longer than the maximum wait.
    for after in ["120", "4000"] {
        let (hub, _) = model_hub();
        hub.fault("objects/batch", busy(429, after), usize::MAX);
        let (publisher, said) = publisher(&hub);
        let run = Run::new("run");
        let words = temporary(run.publish(&publisher, &run.checkpoint(1, 1000)));
        assert!(words.contains(&format!("retry after {after}")), "{words}");
        assert_eq!(count(&hub, "POST /user/model.git/info/lfs"), 1);
        assert!(said.lock().expect("no panic").is_empty());
    }
}
