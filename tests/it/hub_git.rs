//! Checkpoints on their way to a server as strict as the Hub.

use std::fs;
use std::time::{Duration, Instant};

use test_hub::{Fault, TestHub, WRITE_TOKEN};

use crate::support::{Home, git, sha256};

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

/// All files of an object store, half sent ones among them.
fn objects(store: &std::path::Path) -> Vec<String> {
    crate::support::files_of(store).into_keys().collect()
}
