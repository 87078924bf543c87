use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

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
fn a_successful_check_changes_nothing_on_the_hub() {
    let hub = TestHub::start();
    let repo = hub.create_repo("user/model", &[(".gitattributes", "")]);
    let before = git(&repo, &["for-each-ref"]);
    let publisher = hub_publisher(&hub, WRITE_TOKEN, &[]);
    let found = ask(&publisher, 1000).expect("ready");
    assert_eq!(
        found,
        format!("branch run will be created: {}", hub.repo_url("user/model"))
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
fn a_read_only_token_is_reported_with_the_hubs_message() {
    let hub = TestHub::start();
    hub.create_repo("user/model", &[(".gitattributes", "")]);
    let words = permanent(ask(&hub_publisher(&hub, READ_TOKEN, &[]), 1000));
    assert!(words.contains("You have read access only"), "{words}");
    assert!(!words.contains(READ_TOKEN), "{words}");
    // With `lfs` set to `never`, no LFS request is sent, so the first refused request is git's test push.
    let plain = hub_publisher(&hub, READ_TOKEN, &[("lfs", json!("never"))]);
    let words = permanent(ask(&plain, 1000));
    assert!(words.contains("lacks permission"), "{words}");
}

#[test]
fn a_missing_repository_is_named() {
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
fn with_create_the_repository_is_created_before_the_first_step() {
    let hub = TestHub::start();
    let publisher = hub_publisher(&hub, WRITE_TOKEN, &[("create", json!(true))]);
    ask(&publisher, 1000).expect("ready");
    assert!(hub.repo_path("user/model").is_dir());
}

#[test]
fn a_hanging_check_can_be_cancelled() {
    let hub = TestHub::start();
    hub.create_repo("user/model", &[(".gitattributes", "")]);
    hub.fault("info/refs", Fault::Hang, 1);
    let publisher = hub_publisher(&hub, WRITE_TOKEN, &[]);
    let has_asked = || !hub.requests().is_empty();
    let outcome = ask_until(&publisher, 1000, &has_asked);
    assert_eq!(outcome, Err(Error::Cancelled));
}

#[test]
fn the_commit_of_a_local_branch_and_missing_disk_space_are_reported() {
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

/// Adds a hook to a bare repository. The hook refuses every push.
fn refuse(repo: &str, words: &str) {
    let hook = Path::new(repo).join("hooks/pre-receive");
    fs::create_dir_all(hook.parent().expect("a folder")).expect("a folder");
    fs::write(&hook, format!("#!/bin/sh\necho '{words}' >&2\nexit 1\n")).expect("a hook");
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).expect("a hook");
}

fn to(repo: &str, branch: &str) -> Publisher {
    publisher(json!({"repo": repo, "branch": branch}), &[]).expect("a publisher")
}

#[test]
fn conflicting_branch_names_are_refused() {
    let (_folder, repo) = bare();
    commit_by_hand(&repo, "exp", &[("README.md", "mine")]);
    commit_by_hand(&repo, "feature/a/b", &[("README.md", "mine")]);
    for (branch, other) in [
        ("exp/run-1", "exp"),
        ("exp/a/b/c", "exp"),
        ("feature", "feature/a/b"),
        ("feature/a", "feature/a/b"),
    ] {
        let words = permanent(ask(&to(&repo, branch), 1000));
        let expected = format!("the branch {branch} conflicts with the existing branch {other}");
        assert!(words.contains(&expected), "{words}");
        let run = Run::new("run");
        let published = run.publish(&to(&repo, branch), &run.checkpoint(1, 100));
        assert!(
            matches!(published, Err(Error::Permanent(_))),
            "{published:?}"
        );
    }
    for branch in ["experiment", "feature/b", "ex"] {
        ask(&to(&repo, branch), 1000).expect(branch);
    }
}

#[test]
fn a_push_to_a_checked_out_branch_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    git(folder.path(), &["init", "--quiet", "-b", "main"]);
    git(
        folder.path(),
        &["commit", "--quiet", "--allow-empty", "-m", "x"],
    );
    let repo = folder.path().to_str().expect("a path");
    let words = permanent(ask(&to(repo, "main"), 1000));
    assert!(words.contains("checked out"), "{words}");
    ask(&to(repo, "other"), 1000).expect("ready");
    assert_eq!(
        git(folder.path(), &["for-each-ref", "--format=%(refname)"]),
        "refs/heads/main\n"
    );
    git(
        folder.path(),
        &["config", "receive.denyCurrentBranch", "ignore"],
    );
    ask(&to(repo, "main"), 1000).expect("ready");
}

#[test]
fn a_hooks_refusal_is_found_before_the_first_step() {
    let (_folder, repo) = bare();
    refuse(&repo, "GL-HOOK-ERR: main is protected");
    for begins in [false, true] {
        let words = permanent(ask(&to(&repo, "main"), 1000));
        assert!(words.contains("main is protected"), "{words}");
        if !begins {
            fs::remove_file(Path::new(&repo).join("hooks/pre-receive")).expect("removed");
            commit_by_hand(&repo, "main", &[("a", "b")]);
            refuse(&repo, "GL-HOOK-ERR: main is protected");
        }
    }
    let hub = TestHub::start();
    let at = hub.create_repo("user/model", &[("a", "b")]);
    refuse(at.to_str().expect("a path"), "this repository was archived");
    let words = permanent(ask(&hub_publisher(&hub, WRITE_TOKEN, &[]), 1000));
    assert!(words.contains("this repository was archived"), "{words}");
}

#[test]
fn the_check_leaves_no_refs_behind() {
    for files in [&[][..], &[("a", "b")]] {
        let hub = TestHub::start();
        let repo = hub.create_repo("user/model", files);
        let before = git(&repo, &["for-each-ref"]);
        let publisher = hub_publisher(&hub, WRITE_TOKEN, &[("branch", json!("main"))]);
        for _ in 0..2 {
            ask(&publisher, 1000).expect("ready");
            assert_eq!(git(&repo, &["for-each-ref"]), before);
        }
        // On a server without atomic pushes, the check is a dry run: hooks run only at the first real push.
        git(&repo, &["config", "receive.advertiseAtomic", "false"]);
        ask(&publisher, 1000).expect("ready");
        assert_eq!(git(&repo, &["for-each-ref"]), before);
    }
}

#[test]
fn checkpoints_are_pushed_to_a_sha_256_repository() {
    let folder = tempfile::tempdir().expect("a folder");
    let repo = folder.path().join("r.git");
    let repo = repo.to_str().expect("a path");
    let format = "--object-format=sha256";
    git(
        folder.path(),
        &["init", "--quiet", "--bare", "-b", "main", format, repo],
    );
    let hub = TestHub::start();
    let served = hub.repo_path("user/model");
    fs::create_dir_all(&served).expect("a folder");
    git(
        &served,
        &["init", "--quiet", "--bare", "-b", "main", format],
    );
    for publisher in [to(repo, "run"), hub_publisher(&hub, WRITE_TOKEN, &[])] {
        ask(&publisher, 1000).expect("ready");
        let run = Run::new("run");
        for step in [1, 2] {
            let receipt = run.publish(&publisher, &run.checkpoint(step, 1000));
            assert_eq!(receipt.expect("published").commit.len(), 64);
        }
        ask(&publisher, 1000).expect("ready");
        let to = tempfile::tempdir().expect("a folder");
        let wanted = hub_git::Wanted {
            revision: Some("run"),
            for_resume: false,
            state_dir: to.path(),
        };
        let brought = publisher.fetch(&wanted, &|| false).expect("fetched");
        assert!(brought.path.join("model.safetensors").is_file());
    }
}

#[test]
fn a_stale_lock_is_found_before_the_first_step() {
    let (_folder, repo) = bare();
    fs::write(Path::new(&repo).join("refs/heads/run.lock"), "").expect("a lock");
    match ask(&to(&repo, "run"), 1000) {
        Err(Error::Temporary(words)) => assert!(words.contains("run.lock"), "{words}"),
        other => panic!("{other:?}"),
    }
}
