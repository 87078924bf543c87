//! Failures between the sink and a server, with the real `git http-backend`.
//!
//! Common failures of git and git-lfs, and their tests:
//!
//! | failure | expected result | test |
//! |---|---|---|
//! | wrong token, git | one request, permanent error | `a_wrong_token_is_tried_once` |
//! | wrong token, LFS | one request, permanent error | `a_wrong_token_at_the_lfs_server_is_tried_once` |
//! | read-only token | permanent error with its own message | `a_read_only_token_is_reported` |
//! | non-fast-forward, stale lease | commit on top of the new tip | `a_branch_that_moves_during_the_upload_is_built_upon` |
//! | two runs on one branch | all commits arrive, fsck succeeds | `race::two_runs_push_to_one_branch` |
//! | plain file above 10 MiB | permanent error with the remote's message | `hub::a_large_plain_file_is_refused_with_the_hubs_message` |
//! | protected branch, other hooks | permanent error with the remote's message | `local::a_hooks_refusal_is_permanent_and_contains_its_message` |
//! | connection refused | temporary error: the host retries later | `a_refused_connection_is_temporary` |
//! | hung server, git and LFS | stopped at the time limit, no child process left | `a_hung_server_is_given_up_and_no_child_survives` |
//! | connection cut once while a part is sent | only that part is sent again | `parts::only_the_part_that_was_cut_is_sent_again` |
//! | connection always cut | temporary error, no partial object | `a_connection_that_always_breaks_loses_nothing`, `parts::a_part_that_never_arrives_is_given_up` |
//! | SIGKILL of all processes during an upload | the next process delivers once | `hub_git::a_run_killed_during_an_upload_is_delivered_once` in the host's tests |
//! | SIGKILL of git only | its children end too, the next attempt succeeds | `killing_git_during_a_push_ends_its_children` |
//! | response lost after a success | the success is detected, nothing is sent again | `a_push_whose_response_was_lost_is_delivered_once`, `an_object_whose_confirmation_was_lost_is_not_sent_again` |
//! | truncated object on the server | sent again | `a_truncated_object_of_the_server_is_sent_again` |
//! | disk full | temporary error, training continues, delivered later | `full_disk::a_push_that_failed_on_a_full_disk_is_retried_when_there_is_room` in the host's tests |
//! | stale lock of a branch | the sink's: removed; the remote's: temporary error | `stale_locks_in_the_sinks_own_repository_are_removed`, `a_stale_lock_of_the_remotes_branch_is_temporary` |
//! | git's exit status and its line about the branch differ | the line decides | `refusal::the_line_of_the_branch_decides` |
//! | 429 and 503 with `Retry-After` | a wait with a warning, then the same request | `patience` |
//! | expired link | a new link is requested | `a_new_link_is_requested_when_one_expired` |
//! | redirect of git, LFS or an upload | followed; no token is sent to another server | `redirects` |
//! | differences between LFS servers | handled as by git-lfs | `servers` |
//! | a company's certificate authorities and proxies | the same settings for git and LFS | `network` |

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use test_hub::{Fault, READ_TOKEN, TestHub, WRITE_TOKEN};

use crate::support::{
    Run, bare, commit_by_hand, count, forms, git, hub_publisher, messages, model_hub, permanent,
    publisher, temporary, walk,
};
use hub_git::Error;

/// Returns the processes of this machine whose command lines contain the text.
fn processes(text: &str) -> Vec<(i32, String)> {
    let processes = fs::read_dir("/proc").expect("/proc");
    processes
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let pid = path.file_name()?.to_str()?.parse().ok()?;
            let line = fs::read(path.join("cmdline")).ok()?;
            Some((pid, String::from_utf8_lossy(&line).replace('\0', " ")))
        })
        .filter(|(_, line)| line.contains(text))
        .collect()
}

/// Returns only the command lines of [`processes`].
fn command_lines(text: &str) -> Vec<String> {
    processes(text).into_iter().map(|(_, line)| line).collect()
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
fn a_read_only_token_is_reported() {
    for lfs in ["auto", "never"] {
        let (hub, _) = model_hub();
        let publisher = hub_publisher(&hub, READ_TOKEN, &[("lfs", json!(lfs))]);
        let run = Run::new("run");
        let words = permanent(run.publish(&publisher, &run.checkpoint(1, 100)));
        assert!(words.contains("lacks permission"), "{words}");
        assert!(!words.contains("not accepted"), "{words}");
    }
}

#[test]
fn a_missing_repository_is_a_permanent_error() {
    let hub = TestHub::start();
    let publisher = hub_publisher(&hub, WRITE_TOKEN, &[]);
    let run = Run::new("run");
    let words = permanent(run.publish(&publisher, &run.checkpoint(1, 100)));
    assert!(words.contains("no such repository"), "{words}");
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
        // The command line of the test process itself does not contain the hub's URL.
        assert_eq!(command_lines(hub.url()), Vec::<String>::new(), "{matching}");
        assert_eq!(messages(&repo, "main").len(), 1);
    }
}

#[test]
fn a_cancelled_delivery_ends_at_once_in_every_wait() {
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
fn a_refused_connection_is_temporary() {
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
fn a_busy_server_is_temporary_and_the_next_attempt_succeeds() {
    let (hub, repo) = model_hub();
    let publisher = hub_publisher(&hub, WRITE_TOKEN, &[]);
    let run = Run::new("run");
    let checkpoint = run.checkpoint(1, 1000);
    for (matching, fault) in [
        ("objects/batch", Fault::Status(429, vec![])),
        ("PUT", Fault::Status(503, vec![])),
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
fn a_push_whose_response_was_lost_is_delivered_once() {
    let (hub, repo) = model_hub();
    let publisher = hub_publisher(&hub, WRITE_TOKEN, &[]);
    let run = Run::new("run");
    hub.fault("POST /user/model/git-receive-pack", Fault::LoseReply, 1);
    let receipt = run
        .publish(&publisher, &run.checkpoint(1, 1000))
        .expect("published");
    assert_eq!(messages(&repo, "run"), ["step 1", "initial commit"]);

    // This delivery is cancelled before it can check whether its push succeeded. The next attempt finds the
    // commit.
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
fn a_wrong_token_at_the_lfs_server_is_tried_once() {
    let (hub, _) = model_hub();
    hub.fault("objects/batch", Fault::Status(401, vec![]), usize::MAX);
    let publisher = hub_publisher(&hub, WRITE_TOKEN, &[]);
    let run = Run::new("run");
    let words = permanent(run.publish(&publisher, &run.checkpoint(1, 100)));
    assert!(words.contains("the token was not accepted"), "{words}");
    assert_eq!(count(&hub, "POST /user/model.git/info/lfs"), 1);
}

#[test]
fn a_branch_that_moves_during_the_upload_is_built_upon() {
    // During the upload of step 1, another client creates the branch. During the upload of step 2, that
    // client adds a commit to it.
    let (hub, repo) = model_hub();
    let publisher = hub_publisher(&hub, WRITE_TOKEN, &[]);
    let run = Run::new("run");
    for step in [1, 2] {
        let asked = count(&hub, "POST /user/model.git/info/lfs");
        let moved = Mutex::new(false);
        let moves = || {
            // The delivery calls this closure between its requests and waits for the result.
            let mut moved = moved.lock().expect("no panic");
            if !*moved && count(&hub, "POST /user/model.git/info/lfs") > asked {
                commit_by_hand(&repo, "run", &[("notes", &format!("before {step}"))]);
                *moved = true;
            }
            false
        };
        run.publish_until(&publisher, &run.checkpoint(step, 1000), &moves)
            .expect("published");
        let notes = git(Path::new(&repo), &["show", "run:notes"]);
        assert_eq!(notes, format!("before {step}"));
    }
    let expected = ["step 2", "by hand", "step 1", "by hand"];
    assert_eq!(messages(&repo, "run")[..4], expected);
    // No object was sent again.
    assert_eq!(count(&hub, "PUT"), 2);
}

#[test]
fn killing_git_during_a_push_ends_its_children() {
    let (hub, repo) = model_hub();
    let publisher = hub_publisher(&hub, WRITE_TOKEN, &[]);
    let run = Run::new("run");
    let checkpoint = run.checkpoint(1, 1000);
    hub.fault("POST /user/model/git-receive-pack", Fault::Hang, 1);
    let killed = Mutex::new(Vec::new());
    let kills = || {
        let mut killed = killed.lock().expect("no panic");
        if killed.is_empty() && count(&hub, "POST /user/model/git-receive-pack") == 1 {
            *killed = processes(hub.url());
            let push = killed
                .iter()
                .find(|(_, line)| line.starts_with("git push "));
            let (push, _) = push.expect("git push is running");
            let push = Pid::from_raw(*push).expect("a process");
            kill_process(push, Signal::KILL).expect("killed");
        }
        false
    };
    let words = temporary(run.publish_until(&publisher, &checkpoint, &kills));
    assert!(words.contains("git was killed by signal 9"), "{words}");
    let killed = killed.into_inner().expect("no panic");
    assert!(killed.len() > 1, "it had children: {killed:?}");
    // Orphaned processes are reaped a moment later.
    let ends = Instant::now() + Duration::from_secs(60);
    while !command_lines(hub.url()).is_empty() {
        assert!(Instant::now() < ends, "{:?}", processes(hub.url()));
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(
        git(Path::new(&repo), &["for-each-ref", "refs/heads/run"]),
        ""
    );
    run.publish(&publisher, &checkpoint).expect("published");
    assert_eq!(messages(&repo, "run"), ["step 1", "initial commit"]);
    assert_eq!(count(&hub, "PUT"), 1);
}

#[test]
fn an_object_whose_confirmation_was_lost_is_not_sent_again() {
    let (hub, repo) = model_hub();
    let publisher = hub_publisher(&hub, WRITE_TOKEN, &[]);
    let run = Run::new("run");
    let checkpoint = run.checkpoint(1, 1000);
    hub.fault("PUT", Fault::LoseReply, 1);
    temporary(run.publish(&publisher, &checkpoint));
    run.publish(&publisher, &checkpoint).expect("published");
    assert_eq!(count(&hub, "PUT"), 1);
    assert_eq!(messages(&repo, "run"), ["step 1", "initial commit"]);
}

#[test]
fn a_connection_that_always_breaks_loses_nothing() {
    let (hub, repo) = model_hub();
    let publisher = hub_publisher(&hub, WRITE_TOKEN, &[]);
    let run = Run::new("run");
    let checkpoint = run.checkpoint(1, 3_000_000);
    hub.fault("PUT", Fault::Cut(1_000_000), 2);
    for _ in 0..2 {
        let words = temporary(run.publish(&publisher, &checkpoint));
        assert!(words.contains("cannot reach"), "{words}");
    }
    let oid = &checkpoint.files["model.safetensors"].sha256;
    assert!(!hub.lfs_object("user/model", oid).exists());
    run.publish(&publisher, &checkpoint).expect("published");
    let object = fs::read(hub.lfs_object("user/model", oid)).expect("an object");
    assert_eq!(object.len(), 3_000_000);
    assert_eq!(messages(&repo, "run"), ["step 1", "initial commit"]);
}

#[test]
fn a_slow_server_is_waited_for_while_data_flows() {
    let (hub, repo) = model_hub();
    hub.fault("PUT", Fault::Slow(500_000), 1);
    let publisher = hub_publisher(&hub, WRITE_TOKEN, &[]);
    let run = Run::new("run");
    run.publish(&publisher, &run.checkpoint(1, 500_000))
        .expect("published");
    assert_eq!(messages(&repo, "run"), ["step 1", "initial commit"]);
}

#[test]
fn a_truncated_object_of_the_server_is_sent_again() {
    let (hub, _) = model_hub();
    let publisher = hub_publisher(&hub, WRITE_TOKEN, &[]);
    let run = Run::new("run");
    let checkpoint = run.checkpoint(1, 1000);
    let object = hub.lfs_object("user/model", &checkpoint.files["model.safetensors"].sha256);
    fs::create_dir_all(object.parent().expect("a folder")).expect("a folder");
    fs::write(&object, [1; 400]).expect("half an object");
    run.publish(&publisher, &checkpoint).expect("published");
    let whole = fs::read(checkpoint.dir.join("model.safetensors")).expect("a file");
    assert!(fs::read(&object).expect("an object") == whole);
}

#[test]
fn a_new_link_is_requested_when_one_expired() {
    let (hub, repo) = model_hub();
    let publisher = hub_publisher(&hub, WRITE_TOKEN, &[]);
    let run = Run::new("run");
    hub.fault("PUT", Fault::Status(403, vec![]), 1);
    run.publish(&publisher, &run.checkpoint(1, 1000))
        .expect("published");
    assert_eq!(count(&hub, "POST /user/model.git/info/lfs"), 2);
    assert_eq!(messages(&repo, "run"), ["step 1", "initial commit"]);

    // If the server refuses every link, the sink stops after a few requests for new links.
    hub.fault("PUT", Fault::Status(403, vec![]), usize::MAX);
    let words = temporary(run.publish(&publisher, &run.checkpoint(2, 1000)));
    assert!(
        words.contains("rejected the link for this transfer (403)"),
        "{words}"
    );
    assert!(!words.contains("signature"), "{words}");
    assert_eq!(count(&hub, "POST /user/model.git/info/lfs"), 2 + 3);
}

#[test]
fn stale_locks_in_the_sinks_own_repository_are_removed() {
    let (hub, repo) = model_hub();
    let publisher = hub_publisher(&hub, WRITE_TOKEN, &[]);
    let run = Run::new("run");
    run.publish(&publisher, &run.checkpoint(1, 1000))
        .expect("published");
    let own = run.state_dir().join("repo.git");
    fs::create_dir_all(own.join("refs/heads")).expect("a folder");
    for lock in [
        "refs/heads/run.lock",
        "HEAD.lock",
        "shallow.lock",
        "packed-refs.lock",
        "publish.index.lock",
    ] {
        fs::write(own.join(lock), "").expect("a lock");
    }
    run.publish(&publisher, &run.checkpoint(2, 1000))
        .expect("published");
    assert_eq!(messages(&repo, "run")[..2], ["step 2", "step 1"]);
}

#[test]
fn a_stale_lock_of_the_remotes_branch_is_temporary() {
    let (_remote, url) = bare();
    let publisher = publisher(json!({"repo": url}), &[]).expect("a publisher");
    let run = Run::new("run");
    let lock = Path::new(&url).join("refs/heads/run.lock");
    fs::write(&lock, "").expect("a lock");
    let checkpoint = run.checkpoint(1, 1000);
    let words = temporary(run.publish(&publisher, &checkpoint));
    assert!(words.contains("cannot update the branch"), "{words}");
    assert!(words.contains("remote rejected"), "{words}");
    fs::remove_file(&lock).expect("removed");
    run.publish(&publisher, &checkpoint).expect("published");
    assert_eq!(messages(&url, "run"), ["step 1"]);
}

#[test]
fn the_token_appears_in_no_message_file_or_command_line() {
    let (hub, _) = model_hub();
    let publisher = hub_publisher(&hub, WRITE_TOKEN, &[]);
    let run = Run::new("run");
    let checkpoint = run.checkpoint(1, 1000);
    let mut said = vec![format!("{publisher:?}")];

    let seen = Mutex::new(Vec::new());
    for matching in ["git-upload-pack", "PUT", "git-receive-pack"] {
        // While a child process hangs, the test can read its command line.
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
