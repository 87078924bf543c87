use std::fs;
use std::path::Path;

use serde_json::json;
use test_hub::{TestHub, WRITE_TOKEN};

use crate::support::{
    ATTRIBUTES, Run, count, git, git_bytes, hub_publisher, messages, model_hub, permanent,
    publisher, sha256, size_of,
};

#[test]
fn checkpoints_are_stored_with_lfs_and_can_be_cloned() {
    let (hub, repo) = model_hub();
    let publisher = hub_publisher(&hub, WRITE_TOKEN, &[]);
    let run = Run::new("run");
    let checkpoints = [1, 2, 3].map(|step| run.checkpoint(step, 2_000_000));
    for checkpoint in &checkpoints {
        let receipt = run.publish(&publisher, checkpoint).expect("published");
        assert_eq!(receipt.remote, hub.repo_url("user/model"));
        let requests = hub.requests().len();
        assert_eq!(run.publish(&publisher, checkpoint).expect("again"), receipt);
        assert_eq!(
            hub.requests().len(),
            requests,
            "a delivered checkpoint needs no network"
        );
    }
    assert_eq!(messages(&repo, "run")[..3], ["step 3", "step 2", "step 1"]);
    assert_eq!(count(&hub, "PUT"), 3);

    let clone = tempfile::tempdir().expect("a folder");
    let header = format!("http.extraHeader=Authorization: Basic {}", {
        let [_, _, basic] = crate::support::forms(WRITE_TOKEN);
        basic
    });
    let url = hub.repo_url("user/model");
    let args = [
        "-c", &header, "clone", "--quiet", "--branch", "run", &url, ".",
    ];
    git(clone.path(), &args);
    let pointer = fs::read(clone.path().join("model.safetensors")).expect("a pointer");
    let (oid, _) = test_hub::parse_pointer(&pointer).expect("a pointer");
    assert_eq!(oid, checkpoints[2].files["model.safetensors"].sha256);
    let object = fs::read(hub.lfs_object("user/model", &oid)).expect("an object");
    assert_eq!(sha256(&object), oid);
    let config = fs::read(clone.path().join("config.json")).expect("a file");
    assert_eq!(sha256(&config), checkpoints[2].files["config.json"].sha256);

    let attributes = fs::read_to_string(clone.path().join(".gitattributes")).expect("a file");
    let added = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n";
    assert_eq!(attributes, format!("{ATTRIBUTES}{added}"));
    assert_eq!(messages(&repo, "main"), ["initial commit"]);
    assert!(size_of(&run.state_dir()) < 3 * 50_000);
}

#[test]
fn objects_that_the_hub_has_are_not_sent_again() {
    let (hub, _) = model_hub();
    let publisher = hub_publisher(&hub, WRITE_TOKEN, &[]);
    let run = Run::new("run");
    for step in [1, 2] {
        let checkpoint = run.checkpoint_of(step, &[("model.safetensors", &[9; 5000])]);
        run.publish(&publisher, &checkpoint).expect("published");
    }
    assert_eq!(count(&hub, "PUT"), 1);
}

#[test]
fn large_files_are_sent_in_parts() {
    let (hub, repo) = model_hub();
    hub.set_part_bytes(400_000);
    let publisher = hub_publisher(&hub, WRITE_TOKEN, &[("trainer", json!(true))]);
    let run = Run::new("run");
    let checkpoint = run.checkpoint(1, 1_000_001);
    run.publish(&publisher, &checkpoint).expect("published");
    assert_eq!(
        count(&hub, "PUT"),
        3 + 1,
        "three parts, and the small file as a whole"
    );
    let oid = &checkpoint.files["model.safetensors"].sha256;
    let object = fs::read(hub.lfs_object("user/model", oid)).expect("an object");
    assert_eq!(&sha256(&object), oid);
    let pointer = git_bytes(Path::new(&repo), &["show", "run:model.safetensors"]);
    assert!(test_hub::parse_pointer(&pointer).is_some());
}

#[test]
fn a_large_plain_file_is_refused_with_the_hubs_message() {
    let (hub, _) = model_hub();
    let publisher = hub_publisher(&hub, WRITE_TOKEN, &[("lfs", json!("never"))]);
    let run = Run::new("run");
    let words = permanent(run.publish(&publisher, &run.checkpoint(1, 11 << 20)));
    assert!(words.contains("larger than 10 MiB"), "{words}");
    assert!(
        words.contains("Offending file: model.safetensors"),
        "{words}"
    );
    // The push is not retried, because it would be refused again.
    let push = "GET /user/model/info/refs?service=git-receive-pack";
    assert_eq!(count(&hub, push), 1);
}

#[test]
fn a_plain_git_server_gets_plain_files() {
    let hub = TestHub::start();
    let repo = hub.create_repo("ann/plain", &[]);
    let config = json!({"repo": hub.repo_url("ann/plain"), "token_env": "MINE", "branch": "b"});
    let publisher = publisher(config, &[("MINE", WRITE_TOKEN)]).expect("a publisher");
    let run = Run::new("run");
    let checkpoint = run.checkpoint(7, 3_000_000);
    run.publish(&publisher, &checkpoint).expect("published");
    let blob = git_bytes(&repo, &["show", "b:model.safetensors"]);
    assert_eq!(sha256(&blob), checkpoint.files["model.safetensors"].sha256);
    assert_eq!(count(&hub, "PUT"), 0);
}
