use std::fs;
use std::net::TcpListener;
use std::sync::Mutex;

use serde_json::json;
use test_hub::{Fault, READ_TOKEN, TestHub, WRITE_TOKEN};

use crate::support::{Run, forms, hub_publisher, messages, permanent, publisher, temporary, walk};
use hub_git::Error;

fn model_hub() -> (TestHub, String) {
    let hub = TestHub::start();
    let repo = hub.create_repo("user/model", &[(".gitattributes", "")]);
    let repo = repo.to_str().expect("a path").to_owned();
    (hub, repo)
}

/// The command lines of all processes of this machine that hold the text.
fn command_lines(text: &str) -> Vec<String> {
    let processes = fs::read_dir("/proc").expect("/proc");
    processes
        .filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(text))
        .collect()
}

#[test]
fn a_wrong_token_is_tried_once() {
    let (hub, _) = model_hub();
    let publisher = hub_publisher(&hub, "hf_wrong", &[]);
    let run = Run::new("run");
    let words = permanent(run.publish(&publisher, &run.checkpoint(1, 100)));
    assert!(words.contains("the token was not accepted"), "{words}");
    assert_eq!(hub.requests().len(), 1, "{:?}", hub.requests());
}

#[test]
fn a_token_that_may_only_read_is_told_so() {
    for lfs in ["auto", "never"] {
        let (hub, _) = model_hub();
        let publisher = hub_publisher(&hub, READ_TOKEN, &[("lfs", json!(lfs))]);
        let run = Run::new("run");
        let words = permanent(run.publish(&publisher, &run.checkpoint(1, 100)));
        assert!(words.contains("may not"), "{words}");
        assert!(!words.contains("not accepted"), "{words}");
    }
}

#[test]
fn a_repository_that_is_not_there_is_final() {
    let hub = TestHub::start();
    let publisher = hub_publisher(&hub, WRITE_TOKEN, &[]);
    let run = Run::new("run");
    let words = permanent(run.publish(&publisher, &run.checkpoint(1, 100)));
    assert!(words.contains("there is no such repository"), "{words}");
}

#[test]
fn a_hung_server_is_given_up_and_no_child_survives() {
    for (matching, fault_secs) in [("git-upload-pack", 1), ("git-receive-pack", 2), ("PUT", 2)] {
        let (hub, repo) = model_hub();
        hub.fault(matching, Fault::Hang, usize::MAX);
        let publisher = hub_publisher(&hub, WRITE_TOKEN, &[("timeout_secs", json!(fault_secs))]);
        let run = Run::new("run");
        let checkpoint = run.checkpoint(1, 1000);
        let words = temporary(run.publish(&publisher, &checkpoint));
        assert!(words.contains("timeout_secs"), "{matching}: {words}");
        // Without the arguments of this test's own process, which name no port.
        assert_eq!(command_lines(hub.url()), Vec::<String>::new(), "{matching}");
        assert_eq!(messages(&repo, "main").len(), 1);
    }
}

#[test]
fn a_cancelled_delivery_ends_at_once_whatever_it_waits_for() {
    for matching in [
        "git-upload-pack",
        "objects/batch",
        "PUT",
        "git-receive-pack",
    ] {
        let (hub, _) = model_hub();
        hub.fault(matching, Fault::Hang, usize::MAX);
        let publisher = hub_publisher(&hub, WRITE_TOKEN, &[]);
        let run = Run::new("run");
        let hangs = || hub.requests().iter().any(|line| line.contains(matching));
        let result = run.publish_until(&publisher, &run.checkpoint(1, 1000), &hangs);
        assert_eq!(result, Err(Error::Cancelled), "{matching}");
        assert_eq!(command_lines(hub.url()), Vec::<String>::new(), "{matching}");
    }
}

#[test]
fn nobody_at_home_is_temporary() {
    let address = {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.local_addr().expect("an address")
    };
    let url = format!("http://{address}/a/b");
    let publisher = publisher(json!({"repo": url}), &[]).expect("a publisher");
    let run = Run::new("run");
    let words = temporary(run.publish(&publisher, &run.checkpoint(1, 100)));
    assert!(
        words.contains("Failed to connect") || words.contains("Connection refused"),
        "{words}"
    );
}

#[test]
fn a_busy_server_is_temporary_and_the_next_try_goes_through() {
    let (hub, repo) = model_hub();
    let publisher = hub_publisher(&hub, WRITE_TOKEN, &[]);
    let run = Run::new("run");
    let checkpoint = run.checkpoint(1, 1000);
    let busy = Fault::Status(429, vec![("Retry-After".to_owned(), "17".to_owned())]);
    hub.fault("objects/batch", busy, 1);
    let words = temporary(run.publish(&publisher, &checkpoint));
    assert!(words.contains("try again after 17"), "{words}");
    for (matching, fault) in [
        ("PUT", Fault::Status(503, vec![])),
        ("PUT", Fault::Status(403, vec![])),
        ("PUT", Fault::Close),
        ("git-receive-pack", Fault::Status(502, vec![])),
        ("git-upload-pack", Fault::Status(429, vec![])),
    ] {
        hub.fault(matching, fault.clone(), 1);
        let words = temporary(run.publish(&publisher, &checkpoint));
        assert!(
            !words.contains("signature"),
            "{matching} {fault:?}: {words}"
        );
    }
    run.publish(&publisher, &checkpoint).expect("published");
    assert_eq!(messages(&repo, "run"), ["step 1", "initial commit"]);
}

#[test]
fn a_push_whose_answer_was_lost_is_delivered_once() {
    let (hub, repo) = model_hub();
    let publisher = hub_publisher(&hub, WRITE_TOKEN, &[]);
    let run = Run::new("run");
    hub.fault("POST /user/model/git-receive-pack", Fault::LoseReply, 1);
    let receipt = run
        .publish(&publisher, &run.checkpoint(1, 1000))
        .expect("published");
    assert_eq!(messages(&repo, "run"), ["step 1", "initial commit"]);

    // And if nothing can be asked afterwards, the next try finds it.
    hub.fault("POST /user/model/git-receive-pack", Fault::LoseReply, 1);
    let second = run.checkpoint(2, 1000);
    let pushed = Mutex::new(false);
    let after_push = || {
        let line = "POST /user/model/git-receive-pack";
        let posts = hub
            .requests()
            .iter()
            .filter(|there| there.starts_with(line))
            .count();
        let mut pushed = pushed.lock().expect("no panic");
        *pushed |= posts == 2 && messages(&repo, "run").len() == 3;
        *pushed
    };
    let result = run.publish_until(&publisher, &second, &after_push);
    if result.is_err() {
        run.publish(&publisher, &second).expect("published");
    }
    assert_eq!(
        messages(&repo, "run"),
        ["step 2", "step 1", "initial commit"]
    );
    assert_ne!(
        receipt.commit,
        run.publish(&publisher, &second).expect("again").commit
    );
}

#[test]
fn the_token_is_nowhere_to_be_found() {
    let (hub, _) = model_hub();
    let publisher = hub_publisher(&hub, WRITE_TOKEN, &[]);
    let run = Run::new("run");
    let checkpoint = run.checkpoint(1, 1000);
    let mut said = vec![format!("{publisher:?}")];

    let seen = Mutex::new(Vec::new());
    for matching in ["git-upload-pack", "PUT", "git-receive-pack"] {
        // While a child hangs, its command line is there to be read.
        hub.fault(matching, Fault::Hang, 1);
        let hangs = || {
            let hangs = hub
                .requests()
                .last()
                .is_some_and(|line| line.contains(matching));
            if hangs {
                seen.lock().expect("no panic").extend(command_lines(""));
            }
            hangs
        };
        said.push(format!(
            "{:?}",
            run.publish_until(&publisher, &checkpoint, &hangs)
        ));
    }
    hub.fault("git-receive-pack", Fault::Status(400, vec![]), 1);
    said.push(format!("{:?}", run.publish(&publisher, &checkpoint)));
    said.push(format!(
        "{:?}",
        run.publish(&publisher, &checkpoint).expect("published")
    ));
    let seen = seen.into_inner().expect("no panic");
    assert!(
        seen.iter().any(|line| line.contains("ls-remote")),
        "{seen:?}"
    );
    said.extend(seen);

    for form in forms(WRITE_TOKEN) {
        for text in &said {
            assert!(!text.contains(&form), "{text}");
        }
        for path in walk(&run.state_dir()) {
            let bytes = fs::read(&path).expect("a file");
            let found = bytes
                .windows(form.len())
                .any(|window| window == form.as_bytes());
            assert!(!found, "{}", path.display());
        }
    }
}
