//! Checkpoints on their way to a server as strict as the Hub.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;
use test_hub::{Fault, TestHub, WRITE_TOKEN};

use crate::support::{Home, files_of, git, sha256};

#[test]
fn a_run_that_is_killed_in_mid_upload_is_delivered_once() {
    let home = Home::new();
    let hub = TestHub::start();
    let repo = hub.create_repo("user/model", &[(".gitattributes", "")]);
    let env = [("HF_ENDPOINT", hub.url()), ("HF_TOKEN", WRITE_TOKEN)];
    // The first arrives, the second is still on its way when all ends.
    hub.fault("PUT", Fault::Slow(1 << 30), 1);
    hub.fault("PUT", Fault::Hang, 1);
    let plugin = ["--plugin", "hub-git:repo=user/model"];
    let run = ["run", "tiny.toml", "--name", "killed"];
    let process = home.start_with(&env, &[&run[..], &plugin].concat());
    let sent = || {
        let requests = hub.requests().into_iter();
        requests.filter(|line| line.starts_with("PUT")).count()
    };
    let ends = Instant::now() + Duration::from_secs(120);
    while sent() < 2 {
        assert!(Instant::now() < ends, "{:?}", hub.requests());
        std::thread::sleep(Duration::from_millis(5));
    }
    process.kill();
    assert_eq!(process.output().signal(), Some(9));
    home.wait_for_no_child();
    let pushed = || {
        let log = git(&repo, &["log", "--reverse", "--format=%s", "killed"]);
        log.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(pushed(), ["initial commit", "step 5"]);
    assert_eq!(objects(&repo.join("lfs")).len(), 1);

    let standing = home.checkpoints("killed");
    assert!(standing.len() >= 2, "{standing:?}");
    home.host_with(&env, &["deliver", "killed"]).succeeded();
    let mut expected = vec!["initial commit".to_owned()];
    expected.extend(standing.iter().map(|step| format!("step {step}")));
    assert_eq!(pushed(), expected);
    assert_eq!(sent(), standing.len() + 1);
    for step in standing {
        let model = home.checkpoint("killed", step).join("model.safetensors");
        let oid = sha256(&fs::read(model).expect("a file"));
        let object = hub.lfs_object("user/model", &oid);
        assert_eq!(sha256(&fs::read(object).expect("an object")), oid);
    }
    git(&repo, &["fsck", "--strict"]);
}

/// An ssh that finds the other side on this machine: it runs there what it is given, and answers
/// `git-lfs-authenticate` with a file. It writes down what it was asked.
fn fake_ssh(home: &Home) -> PathBuf {
    let path = home.path("ssh");
    let script = r#"#!/bin/sh
while :; do
    case $1 in
    -o) shift 2 ;;
    -*) shift ;;
    *) break ;;
    esac
done
echo "$*" >>"$HOME/asked"
[ "$1" = git@example.org ] || exit 255
shift
case $* in
git-lfs-authenticate*) cat "$HOME/answer" ;;
*) eval "$*" ;;
esac
"#;
    fs::write(&path, script).expect("a script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a script");
    path
}

#[test]
fn large_files_go_by_lfs_over_ssh_too() {
    let home = Home::new();
    let hub = TestHub::start();
    let repo = hub.create_repo("user/model", &[(".gitattributes", "")]);
    let basic = BASE64_STANDARD.encode(format!("user:{WRITE_TOKEN}"));
    let answer = json!({
        "href": format!("{}.git/info/lfs", hub.repo_url("user/model")),
        "header": {"Authorization": format!("Basic {basic}")},
        "expires_in": 900,
    });
    fs::write(home.path("answer"), answer.to_string()).expect("a file");
    let ssh = fake_ssh(&home);
    let command = format!("{} -oBatchMode=yes", ssh.display());
    let sink = format!("hub-git:repo=git@example.org:{},lfs=always", repo.display());
    let args = ["run", "tiny.toml", "--name", "run", "--plugin", &sink];
    // Both of git's variables, the one for the shell and the one for a program.
    let by_program = ["--max-train-steps", "10", "--name", "program"];
    let by_program = [&args[..2], &args[4..], &by_program].concat();
    home.host_with(&[("GIT_SSH_COMMAND", &command)], &args)
        .succeeded();
    let program = ssh.to_str().expect("a path");
    home.host_with(&[("GIT_SSH", program)], &by_program)
        .succeeded();

    for (run, steps) in [("run", &[5, 10, 15, 20][..]), ("program", &[5, 10])] {
        for step in steps {
            let model = home.checkpoint(run, *step).join("model.safetensors");
            let oid = sha256(&fs::read(model).expect("a file"));
            let object = hub.lfs_object("user/model", &oid);
            assert_eq!(sha256(&fs::read(object).expect("an object")), oid);
        }
        let log = git(&repo, &["log", "--format=%s", run]);
        assert_eq!(log.lines().count(), steps.len() + 1, "{log}");
    }
    let asked = fs::read_to_string(home.path("asked")).expect("a file");
    let expected = format!(
        "git@example.org git-lfs-authenticate {} upload\n",
        repo.display()
    );
    // For each checkpoint, and once before the first step of each run.
    assert_eq!(asked.matches(&expected).count(), 4 + 2 + 2, "{asked}");
    // What the server gave is a secret as well.
    for file in files_of(&home.path("runs")).into_keys() {
        let bytes = fs::read(home.path("runs").join(&file)).expect("a file");
        let found = bytes
            .windows(basic.len())
            .any(|part| part == basic.as_bytes());
        assert!(!found, "{file}");
    }
}

#[test]
fn a_server_without_lfs_over_ssh_is_told() {
    let home = Home::new();
    let hub = TestHub::start();
    let repo = hub.create_repo("user/model", &[(".gitattributes", "")]);
    let ssh = fake_ssh(&home);
    let script = fs::read_to_string(&ssh).expect("a script");
    let script = script.replace("cat \"$HOME/answer\"", "eval \"$*\"");
    fs::write(&ssh, script).expect("a script");
    let sink = format!("hub-git:repo=git@example.org:{},lfs=always", repo.display());
    let args = ["run", "tiny.toml", "--name", "run", "--plugin", &sink];
    let command = ssh.to_str().expect("a path");
    let output = home.host_with(&[("GIT_SSH_COMMAND", command)], &args);
    let (error, _) = output.failed_with(3);
    assert!(error.contains("gives no Git LFS over ssh"), "{error}");
}

/// All files of an object store, half sent ones among them.
fn objects(store: &std::path::Path) -> Vec<String> {
    files_of(store).into_keys().collect()
}
