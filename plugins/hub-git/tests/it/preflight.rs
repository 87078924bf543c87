use hub_git::{Error, Publisher, Question, Result};
use serde_json::json;
use test_hub::{Fault, READ_TOKEN, TestHub, WRITE_TOKEN};

use crate::support::{Run, bare, commit_by_hand, git, hub_publisher, publisher};

fn ask(publisher: &Publisher, bytes: u64) -> Result<String> {
    ask_until(publisher, bytes, &|| false)
}

fn ask_until(
    publisher: &Publisher,
    bytes: u64,
    cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<String> {
    let run = Run::new("run");
    let state_dir = run.state_dir();
    let question = Question {
        run: "run",
        state_dir: &state_dir,
        checkpoint_bytes: 3 * bytes,
        model_bytes: bytes,
    };
    publisher.preflight(&question, cancelled)
}

fn permanent(result: Result<String>) -> String {
    match result.expect_err("it fails") {
        Error::Permanent(words) => words,
        other => panic!("not permanent: {other:?}"),
    }
}

#[test]
fn a_hub_that_takes_checkpoints_is_left_as_it_was() {
    let hub = TestHub::start();
    let repo = hub.create_repo("user/model", &[(".gitattributes", "")]);
    let before = git(&repo, &["for-each-ref"]);
    let publisher = hub_publisher(&hub, WRITE_TOKEN, &[]);
    let found = ask(&publisher, 1000).expect("ready");
    assert_eq!(
        found,
        format!("branch run will be new: {}", hub.repo_url("user/model"))
    );
    assert_eq!(git(&repo, &["for-each-ref"]), before);
    let requests = hub.requests();
    assert!(!requests.iter().any(|line| line.starts_with("PUT")));
    assert!(
        requests.iter().any(|line| line.contains("objects/batch")),
        "{requests:?}"
    );
}

#[test]
fn a_token_that_may_only_read_is_told_in_the_hubs_words() {
    let hub = TestHub::start();
    hub.create_repo("user/model", &[(".gitattributes", "")]);
    let words = permanent(ask(&hub_publisher(&hub, READ_TOKEN, &[]), 1000));
    assert!(words.contains("You have read access only"), "{words}");
    assert!(!words.contains(READ_TOKEN), "{words}");
    // Without LFS it is git that is refused.
    let plain = hub_publisher(&hub, READ_TOKEN, &[("lfs", json!("never"))]);
    let words = permanent(ask(&plain, 1000));
    assert!(words.contains("may not"), "{words}");
}

#[test]
fn a_repository_that_is_not_there_is_named() {
    let hub = TestHub::start();
    let words = permanent(ask(&hub_publisher(&hub, WRITE_TOKEN, &[]), 1000));
    assert!(words.contains(&hub.repo_url("user/model")), "{words}");
    let (folder, _) = bare();
    let gone = folder.path().join("gone.git").display().to_string();
    let words = permanent(ask(
        &publisher(json!({"repo": gone}), &[]).expect("a publisher"),
        1000,
    ));
    assert!(words.contains(&gone), "{words}");
}

#[test]
fn a_repository_that_shall_be_made_is_made_before_the_first_step() {
    let hub = TestHub::start();
    let publisher = hub_publisher(&hub, WRITE_TOKEN, &[("create", json!(true))]);
    ask(&publisher, 1000).expect("ready");
    assert!(hub.repo_path("user/model").is_dir());
}

#[test]
fn a_server_that_hangs_is_left_when_asked() {
    let hub = TestHub::start();
    hub.create_repo("user/model", &[(".gitattributes", "")]);
    hub.fault("info/refs", Fault::Hang, 1);
    let publisher = hub_publisher(&hub, WRITE_TOKEN, &[]);
    let has_asked = || !hub.requests().is_empty();
    let outcome = ask_until(&publisher, 1000, &has_asked);
    assert_eq!(outcome, Err(Error::Cancelled));
}

#[test]
fn a_folder_says_where_its_branch_stands_and_what_does_not_fit() {
    let (_folder, repo) = bare();
    commit_by_hand(&repo, "run", &[("README.md", "mine")]);
    let publisher = publisher(json!({"repo": repo}), &[]).expect("a publisher");
    let commit = git(repo.as_ref(), &["rev-parse", "run"]);
    let found = ask(&publisher, 1000).expect("ready");
    let short = &commit[..7];
    assert_eq!(found, format!("branch run continues from {short}: {repo}"));
    match ask(&publisher, 1 << 60) {
        Err(Error::Temporary(words)) => assert!(words.contains("are needed"), "{words}"),
        other => panic!("{other:?}"),
    }
}
