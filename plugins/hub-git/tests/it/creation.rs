//! Tests that the sink creates the repository if `create` is set.

use std::fs;
use std::path::Path;

use serde_json::json;
use test_hub::{Fault, READ_TOKEN, TestHub, WRITE_TOKEN};

use crate::support::{
    Run, count, git, hub_publisher, messages, model_hub, permanent, publisher, temporary,
};

#[test]
fn a_repository_is_created_on_the_hub_once() {
    for private in [None, Some(false), Some(true)] {
        let hub = TestHub::start();
        let mut more = vec![("create", json!(true))];
        more.extend(private.map(|private| ("private", json!(private))));
        let publisher = hub_publisher(&hub, WRITE_TOKEN, &more);
        let run = Run::new("run");
        for step in [1, 2] {
            run.publish(&publisher, &run.checkpoint(step, 1000))
                .expect("published");
        }
        let repo = hub.repo_path("user/model");
        let repo = repo.to_str().expect("a path");
        let expected = ["step 2", "step 1", "initial commit"];
        assert_eq!(messages(repo, "run"), expected);
        assert_eq!(hub.is_private("user/model"), private == Some(true));
        assert_eq!(count(&hub, "POST /api/repos/create"), 1);
    }
}

#[test]
fn an_existing_repository_is_not_changed() {
    let (hub, repo) = model_hub();
    let more = [("create", json!(true)), ("private", json!(true))];
    let publisher = hub_publisher(&hub, WRITE_TOKEN, &more);
    let run = Run::new("run");
    run.publish(&publisher, &run.checkpoint(1, 1000))
        .expect("published");
    assert_eq!(messages(&repo, "run"), ["step 1", "initial commit"]);
    assert!(!hub.is_private("user/model"));
}

#[test]
fn a_token_without_permission_to_create_works_for_an_existing_repository() {
    let (hub, repo) = model_hub();
    hub.fault("/api/repos/create", Fault::Status(403, vec![]), usize::MAX);
    let publisher = hub_publisher(&hub, WRITE_TOKEN, &[("create", json!(true))]);
    let run = Run::new("run");
    run.publish(&publisher, &run.checkpoint(1, 1000))
        .expect("published");
    assert_eq!(messages(&repo, "run"), ["step 1", "initial commit"]);
}

#[test]
fn a_refusal_is_permanent_and_contains_the_hubs_message() {
    let hub = TestHub::start();
    for (token, said) in [
        (READ_TOKEN, "You don't have the rights to create a model"),
        ("hf_wrong", "Invalid credentials"),
    ] {
        let publisher = hub_publisher(&hub, token, &[("create", json!(true))]);
        let run = Run::new("run");
        let words = permanent(run.publish(&publisher, &run.checkpoint(1, 100)));
        assert!(words.contains("cannot create user/model"), "{words}");
        assert!(words.contains(said), "{words}");
    }
    assert!(!hub.repo_path("user/model").exists());
}

#[test]
fn temporary_errors_are_retried() {
    let hub = TestHub::start();
    let publisher = hub_publisher(&hub, WRITE_TOKEN, &[("create", json!(true))]);
    let run = Run::new("run");
    let checkpoint = run.checkpoint(1, 1000);
    hub.fault("/api/repos/create", Fault::Status(500, vec![]), 1);
    temporary(run.publish(&publisher, &checkpoint));
    // The repository is created, but the response is lost.
    hub.fault("/api/repos/create", Fault::LoseReply, 1);
    temporary(run.publish(&publisher, &checkpoint));
    run.publish(&publisher, &checkpoint).expect("published");
    assert_eq!(count(&hub, "POST /api/repos/create"), 3);
}

#[test]
fn a_folder_becomes_a_repository() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("models/gpt.git");
    let config = json!({"repo": path, "create": true});
    let publisher = publisher(config, &[]).expect("a publisher");
    let run = Run::new("run");
    run.publish(&publisher, &run.checkpoint(1, 1000))
        .expect("published");
    let url = path.to_str().expect("a path");
    assert_eq!(messages(url, "run"), ["step 1"]);
    assert_eq!(git(&path, &["rev-parse", "--is-bare-repository"]), "true\n");
    git(&path, &["fsck", "--strict"]);
}

#[test]
fn a_folder_with_something_else_in_it_is_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("notes"), "mine").expect("a file");
    let config = json!({"repo": folder.path(), "create": true});
    let publisher = publisher(config, &[]).expect("a publisher");
    let run = Run::new("run");
    let words = permanent(run.publish(&publisher, &run.checkpoint(1, 100)));
    assert!(words.contains("no such repository"), "{words}");
    let names: Vec<_> = fs::read_dir(folder.path()).expect("a folder").collect();
    assert_eq!(names.len(), 1);
}

#[test]
fn unsupported_settings_are_refused_at_the_start() {
    let token = [("HF_TOKEN", WRITE_TOKEN)];
    for (config, words) in [
        (
            json!({"repo": "https://example.org/a/b", "create": true}),
            "create the repository on its server first",
        ),
        (
            json!({"repo": "git@example.org:a/b", "create": true}),
            "create the repository on its server first",
        ),
        (
            json!({"repo": "https://huggingface.co/datasets/a/b", "create": true}),
            "USER/NAME",
        ),
        (json!({"repo": "a/b", "private": true}), "create = true"),
        (
            json!({"repo": "/srv/a", "create": true, "private": true}),
            "private works only on the Hub",
        ),
    ] {
        let error = publisher(config.clone(), &token).expect_err("refused");
        assert!(error.to_string().contains(words), "{config}: {error}");
    }
    assert!(!Path::new("/srv/a").exists());
}
