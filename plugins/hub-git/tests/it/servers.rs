//! Differences between real git and LFS servers.

use std::fs;

use serde_json::json;
use test_hub::{Fault, TestHub, WRITE_TOKEN};

use crate::support::{
    Run, count, git, git_bytes, hub_publisher, messages, model_hub, permanent, publisher, sha256,
    temporary,
};

#[test]
fn objects_at_the_git_server_are_sent_with_its_token() {
    let (hub, repo) = model_hub();
    hub.keep_objects_at_home();
    let run = Run::new("run");
    let publisher = hub_publisher(&hub, WRITE_TOKEN, &[("trainer", json!(true))]);
    let checkpoint = run.checkpoint(1, 300_000);
    run.publish(&publisher, &checkpoint).expect("published");
    let oid = &checkpoint.files["model.safetensors"].sha256;
    let object = fs::read(hub.lfs_object("user/model", oid)).expect("an object");
    assert_eq!(&sha256(&object), oid);
    assert_eq!(messages(&repo, "run"), ["step 1", "initial commit"]);
    let folder = tempfile::tempdir().expect("a folder");
    let wanted = hub_git::Wanted {
        revision: Some("run"),
        for_resume: true,
        state_dir: folder.path(),
    };
    let brought = publisher.fetch(&wanted, &|| false).expect("fetched");
    let model = fs::read(brought.path.join("model.safetensors")).expect("a file");
    assert_eq!(&sha256(&model), oid);
    // After the server has asked for the token once, the client sends the token with the first request of
    // each upload.
    assert!(count(&hub, "PUT") <= 3, "{:?}", hub.requests());
}

/// Returns two hubs. The first hub has the repository `user/model`. The `.lfsconfig` of this repository names
/// the second hub as the server for LFS objects.
fn two_hubs(key: &str) -> (TestHub, TestHub) {
    let (hub, store) = (TestHub::start(), TestHub::start());
    store.create_repo("user/store", &[]);
    let url = format!("{}.git/info/lfs", store.repo_url("user/store"));
    let config = format!("[lfs]\n\t{key} = {url}\n\tlocksverify = false\n");
    let attributes = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n";
    hub.create_repo(
        "user/model",
        &[(".gitattributes", attributes), (".lfsconfig", &config)],
    );
    (hub, store)
}

#[test]
fn objects_are_sent_to_the_server_in_lfsconfig() {
    for key in ["url", "pushurl"] {
        let (hub, store) = two_hubs(key);
        let config = json!({
            "repo": hub.repo_url("user/model"), "token_env": "MINE", "lfs_token_env": "STORES",
        });
        let env = [("MINE", WRITE_TOKEN), ("STORES", WRITE_TOKEN)];
        let publisher = publisher(config, &env).expect("a publisher");
        // The hub's hook would refuse the push, because the hook expects the objects in the hub's own store.
        let hook = hub.repo_path("user/model").join("hooks/pre-receive");
        fs::remove_file(hook).expect("removed");
        let run = Run::new("run");
        let checkpoint = run.checkpoint(1, 1000);
        run.publish(&publisher, &checkpoint).expect("published");
        let oid = &checkpoint.files["model.safetensors"].sha256;
        assert!(store.lfs_object("user/store", oid).is_file(), "{key}");
        assert!(!hub.lfs_object("user/model", oid).exists());
    }
}

#[test]
fn no_token_is_sent_to_the_server_in_lfsconfig() {
    let (hub, store) = two_hubs("url");
    let publisher = hub_publisher(&hub, WRITE_TOKEN, &[]);
    let run = Run::new("run");
    let words = permanent(run.publish(&publisher, &run.checkpoint(1, 1000)));
    assert!(
        words.contains(".lfsconfig") && words.contains("lfs_token_env"),
        "{words}"
    );
    assert_eq!(store.requests().len(), 1);
    assert_eq!(store.requests_with_credentials(), Vec::<String>::new());
}

#[test]
fn a_late_verification_is_waited_for() {
    let (hub, repo) = model_hub();
    let run = Run::new("run");
    let checkpoint = run.checkpoint(1, 1000);
    let oid = &checkpoint.files["model.safetensors"].sha256;
    let verify = format!("POST /user/model/{oid}");
    hub.fault(&verify, Fault::Status(404, vec![]), 1);
    let publisher = hub_publisher(&hub, WRITE_TOKEN, &[]);
    run.publish(&publisher, &checkpoint).expect("published");
    assert_eq!(count(&hub, &verify), 2);
    // If the verification keeps failing, it is enough that the object can be downloaded.
    let second = run.checkpoint(2, 1000);
    let oid = &second.files["model.safetensors"].sha256;
    let verify = format!("POST /user/model/{oid}");
    hub.fault(&verify, Fault::Status(404, vec![]), 3);
    run.publish(&publisher, &second).expect("published");
    assert_eq!(messages(&repo, "run")[..2], ["step 2", "step 1"]);
}

#[test]
fn an_object_that_the_server_only_claims_to_have_is_an_error() {
    let (hub, repo) = model_hub();
    let run = Run::new("run");
    let checkpoint = run.checkpoint(1, 1000);
    let entry = &checkpoint.files["model.safetensors"];
    // The server claims to have the object, but with the wrong size.
    for size in [json!(-1), json!(0), json!(400)] {
        let object = json!({"oid": entry.sha256, "size": size});
        hub.fault(
            "objects/batch",
            Fault::Json(json!({"objects": [object]})),
            1,
        );
        let publisher = hub_publisher(&hub, WRITE_TOKEN, &[]);
        let words = temporary(run.publish(&publisher, &checkpoint));
        assert!(words.contains("does not return it"), "{words}");
    }
    assert_eq!(git(repo.as_ref(), &["for-each-ref", "refs/heads/run"]), "");
    run.publish(&hub_publisher(&hub, WRITE_TOKEN, &[]), &checkpoint)
        .expect("published");
    // If the server really has the object, the wrong size is ignored.
    let other = Run::new("other");
    let same = other.checkpoint(1, 1000);
    let object = json!({"oid": entry.sha256, "size": -1});
    hub.fault(
        "objects/batch",
        Fault::Json(json!({"objects": [object]})),
        1,
    );
    other
        .publish(&hub_publisher(&hub, WRITE_TOKEN, &[]), &same)
        .expect("published");
    assert_eq!(count(&hub, "PUT"), 1);
}

#[test]
fn a_server_that_requires_a_length_receives_one() {
    let hub = TestHub::start();
    let repo = hub.create_repo("ann/plain", &[]);
    hub.fault("git-receive-pack", Fault::WantLength, usize::MAX);
    let config = json!({"repo": hub.repo_url("ann/plain"), "token_env": "MINE"});
    let publisher = publisher(config, &[("MINE", WRITE_TOKEN)]).expect("a publisher");
    let run = Run::new("run");
    let checkpoint = run.checkpoint(1, 3_000_000);
    run.publish(&publisher, &checkpoint).expect("published");
    let blob = git_bytes(&repo, &["show", "run:model.safetensors"]);
    assert_eq!(sha256(&blob), checkpoint.files["model.safetensors"].sha256);
}

#[test]
fn a_push_that_is_too_large_is_permanent_and_suggests_lfs() {
    let hub = TestHub::start();
    hub.create_repo("ann/plain", &[]);
    hub.fault(
        "POST /ann/plain/git-receive-pack",
        Fault::Status(413, vec![]),
        usize::MAX,
    );
    let config = json!({"repo": hub.repo_url("ann/plain"), "token_env": "MINE"});
    let publisher = publisher(config, &[("MINE", WRITE_TOKEN)]).expect("a publisher");
    let run = Run::new("run");
    let words = permanent(run.publish(&publisher, &run.checkpoint(1, 1000)));
    assert!(
        words.contains("too large") && words.contains("lfs = \"always\""),
        "{words}"
    );
}

#[test]
fn an_unsupported_filter_is_refused() {
    let hub = TestHub::start();
    let attributes = "*.safetensors filter=git-crypt diff=git-crypt\n";
    hub.create_repo("user/model", &[(".gitattributes", attributes)]);
    let run = Run::new("run");
    let publisher = hub_publisher(&hub, WRITE_TOKEN, &[]);
    let words = permanent(run.publish(&publisher, &run.checkpoint(1, 1000)));
    assert!(
        words.contains("\"git-crypt\" for model.safetensors"),
        "{words}"
    );
}

#[test]
fn a_read_only_server_is_temporary() {
    use std::os::unix::fs::PermissionsExt;
    let (_remote, url) = crate::support::bare();
    let hook = std::path::Path::new(&url).join("hooks/pre-receive");
    fs::create_dir_all(hook.parent().expect("a folder")).expect("a folder");
    let text =
        "#!/bin/sh\necho 'The repository is in read-only mode for maintenance' >&2\nexit 1\n";
    fs::write(&hook, text).expect("a hook");
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).expect("a hook");
    let publisher = publisher(json!({"repo": url}), &[]).expect("a publisher");
    let run = Run::new("run");
    let checkpoint = run.checkpoint(1, 100);
    let words = temporary(run.publish(&publisher, &checkpoint));
    assert!(words.contains("read-only mode"), "{words}");
    fs::remove_file(&hook).expect("removed");
    run.publish(&publisher, &checkpoint).expect("published");
}
