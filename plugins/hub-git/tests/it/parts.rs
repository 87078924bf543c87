//! Uploads of large files in parts.

use std::fs;
use std::sync::{Arc, Mutex};

use test_hub::{Fault, TestHub, WRITE_TOKEN};

use crate::support::{Run, count, hub_publisher, messages, model_hub, sha256, temporary};

/// Returns a hub that accepts parts of 400,000 bytes. Also returns the path of its repository.
fn hub_of_parts() -> (TestHub, String) {
    let (hub, repo) = model_hub();
    hub.set_part_bytes(400_000);
    (hub, repo)
}

fn sent_parts(hub: &TestHub) -> Vec<String> {
    let requests = hub.requests();
    let puts = requests.iter().filter(|line| line.starts_with("PUT"));
    puts.map(|line| line.rsplit_once("&part=").expect("a part").1.to_owned())
        .collect()
}

#[test]
fn only_the_part_that_was_cut_is_sent_again() {
    for fault in [
        Fault::Cut(100_000),
        Fault::Close,
        Fault::LoseReply,
        Fault::Status(503, vec![]),
    ] {
        let (hub, repo) = hub_of_parts();
        hub.fault("part=00002", fault, 1);
        let said = Arc::new(Mutex::new(Vec::new()));
        let hears = Arc::clone(&said);
        let publisher = hub_publisher(&hub, WRITE_TOKEN, &[]).on_warning(move |words| {
            hears.lock().expect("no panic").push(words.to_owned());
        });
        let run = Run::new("run");
        let checkpoint = run.checkpoint(1, 1_000_001);
        run.publish(&publisher, &checkpoint).expect("published");
        assert_eq!(sent_parts(&hub), ["00001", "00002", "00002", "00003"]);
        let said = said.lock().expect("no panic");
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].contains("failed, retrying"), "{said:?}");
        assert!(!said[0].contains("signature"), "{said:?}");
        let oid = &checkpoint.files["model.safetensors"].sha256;
        let object = fs::read(hub.lfs_object("user/model", oid)).expect("an object");
        assert_eq!(&sha256(&object), oid);
        assert_eq!(messages(&repo, "run"), ["step 1", "initial commit"]);
    }
}

#[test]
fn a_part_that_never_arrives_is_given_up() {
    let (hub, repo) = hub_of_parts();
    hub.fault("part=00003", Fault::Cut(1000), 4);
    let publisher = hub_publisher(&hub, WRITE_TOKEN, &[]);
    let run = Run::new("run");
    let checkpoint = run.checkpoint(1, 1_000_001);
    let words = temporary(run.publish(&publisher, &checkpoint));
    assert!(words.contains("cannot reach"), "{words}");
    assert_eq!(count(&hub, "PUT"), 2 + 4);
    // The next delivery receives links for a new upload, which has no parts yet.
    run.publish(&publisher, &checkpoint).expect("published");
    assert_eq!(count(&hub, "PUT"), 2 + 4 + 3);
    assert_eq!(messages(&repo, "run"), ["step 1", "initial commit"]);
}

#[test]
fn an_expired_link_of_a_part_starts_a_new_upload() {
    let (hub, repo) = hub_of_parts();
    hub.fault("part=00002", Fault::Status(403, vec![]), 1);
    let publisher = hub_publisher(&hub, WRITE_TOKEN, &[]);
    let run = Run::new("run");
    run.publish(&publisher, &run.checkpoint(1, 1_000_001))
        .expect("published");
    let expected = ["00001", "00002", "00001", "00002", "00003"];
    assert_eq!(sent_parts(&hub), expected);
    assert_eq!(messages(&repo, "run"), ["step 1", "initial commit"]);
}
