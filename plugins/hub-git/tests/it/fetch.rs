//! Tests downloads of pushed checkpoints. The source is the Hub or a folder. Downloads succeed despite
//! faults, and nothing is downloaded twice.

use std::fs;
use std::path::Path;

use hub_git::{Brought, Error, Publisher, Result, Wanted};
use serde_json::json;
use test_hub::{Fault, READ_TOKEN, TestHub, WRITE_TOKEN};

use crate::support::{
    Checkpoint, Run, bare, commit_by_hand, count, git, hub_publisher, model_hub, publisher, size_of,
};

fn fetch(publisher: &Publisher, revision: Option<&str>, to: &Path) -> Result<Brought> {
    fetch_until(publisher, revision, to, &|| false)
}

fn fetch_until(
    publisher: &Publisher,
    revision: Option<&str>,
    to: &Path,
    cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<Brought> {
    let wanted = Wanted {
        revision,
        for_resume: true,
        state_dir: to,
    };
    publisher.fetch(&wanted, cancelled)
}

/// Returns a hub with a checkpoint on the branch `run-1`, and its publisher.
fn pushed(model_bytes: usize) -> (TestHub, Publisher, Pushed) {
    let (hub, _) = model_hub();
    let run = Run::new("run-1");
    let writer = hub_publisher(&hub, WRITE_TOKEN, &[("trainer", json!(true))]);
    let checkpoint = run.checkpoint(10, model_bytes);
    run.publish(&writer, &checkpoint).expect("published");
    (
        hub,
        writer,
        Pushed {
            checkpoint,
            _run: run,
        },
    )
}

/// A checkpoint, and the run that owns its folder.
struct Pushed {
    checkpoint: Checkpoint,
    _run: Run,
}

impl std::ops::Deref for Pushed {
    type Target = Checkpoint;

    fn deref(&self) -> &Checkpoint {
        &self.checkpoint
    }
}

/// Asserts that every file of the checkpoint was downloaded unchanged.
fn assert_whole(brought: &Brought, checkpoint: &Checkpoint) {
    for name in checkpoint.files.keys() {
        let bytes = |dir: &Path| fs::read(dir.join(name)).expect(name);
        assert!(bytes(&brought.path) == bytes(&checkpoint.dir), "{name}");
    }
}

fn permanent(result: Result<Brought>) -> String {
    match result.expect_err("it fails") {
        Error::Permanent(words) => words,
        other => panic!("not permanent: {other:?}"),
    }
}

#[test]
fn a_checkpoint_is_downloaded_from_the_hub_once() {
    let (hub, _) = model_hub();
    let run = Run::new("run-1");
    let to = tempfile::tempdir().expect("a folder");
    let checkpoint = run.checkpoint(10, 3 << 20);
    let writer = hub_publisher(&hub, WRITE_TOKEN, &[("trainer", json!(true))]);
    let receipt = run.publish(&writer, &checkpoint).expect("published");

    let reader = hub_publisher(&hub, READ_TOKEN, &[]);
    let brought = fetch(&reader, Some("run-1"), to.path()).expect("fetched");
    assert_eq!(brought.commit, receipt.commit);
    assert_whole(&brought, &checkpoint);
    assert!(brought.path.join("manifest.json").is_file());
    // Each object is stored only in the folder. It is not stored a second time in an object store.
    assert!(size_of(to.path()) < (3 << 20) + (64 << 10));

    // If the revision is the commit's id, no request is sent. If it is the branch, only the branch's commit
    // is requested.
    let asked = hub.requests().len();
    let again = fetch(&reader, Some(&receipt.commit), to.path());
    assert_eq!(again, Ok(brought.clone()));
    assert_eq!(hub.requests().len(), asked);
    assert_eq!(fetch(&reader, Some("run-1"), to.path()), Ok(brought));
    let requests = hub.requests();
    let objects = requests.iter().filter(|line| line.contains("signature"));
    let brought = objects.filter(|line| line.starts_with("GET")).count();
    assert_eq!(brought, 2, "the two LFS files");
}

#[test]
fn the_trainer_state_is_downloaded_only_for_a_resume() {
    let (_hub, writer, _checkpoint) = pushed(1 << 20);
    let to = tempfile::tempdir().expect("a folder");
    let wanted = Wanted {
        revision: Some("run-1"),
        for_resume: false,
        state_dir: to.path(),
    };
    let brought = writer.fetch(&wanted, &|| false).expect("fetched");
    let mut names: Vec<_> = fs::read_dir(&brought.path)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json"
        ]
    );
}

#[test]
fn a_public_model_needs_no_token() {
    let (hub, _writer, checkpoint) = pushed(1 << 20);
    let to = tempfile::tempdir().expect("a folder");
    let nobody = publisher(json!({"repo": "user/model"}), &[("HF_ENDPOINT", hub.url())]);
    let nobody = nobody.expect("a publisher");
    let refused = permanent(fetch(&nobody, Some("run-1"), to.path()));
    assert!(refused.contains("token"), "{refused}");
    hub.make_public("user/model");
    let brought = fetch(&nobody, Some("run-1"), to.path()).expect("fetched");
    assert_whole(&brought, &checkpoint);
}

#[test]
fn an_interrupted_download_is_resumed() {
    let (hub, writer, checkpoint) = pushed(4 << 20);
    let to = tempfile::tempdir().expect("a folder");
    let model = &checkpoint.files["model.safetensors"].sha256;
    let get = format!("GET /user/model/{model}");
    hub.fault(&get, Fault::CutReply(1 << 20), 3);
    hub.fault(&get, Fault::Status(503, Vec::new()), 1);
    hub.fault(&get, Fault::Status(403, Vec::new()), 1);
    let brought = fetch(&writer, Some("run-1"), to.path()).expect("fetched");
    assert_whole(&brought, &checkpoint);
    // Three requests return a quarter each, two are refused, and the last returns the rest.
    assert_eq!(count(&hub, &get), 6);
}

#[test]
fn missing_or_wrong_content_is_an_error_and_leaves_no_folder() {
    let (hub, writer, checkpoint) = pushed(1 << 20);
    let to = tempfile::tempdir().expect("a folder");
    let entry = &checkpoint.files["model.safetensors"];
    let get = format!("GET /user/model/{}", entry.sha256);

    hub.fault(&get, Fault::Close, 4);
    let error = fetch(&writer, Some("run-1"), to.path()).expect_err("it never arrives");
    assert!(matches!(error, Error::Temporary(_)), "{error}");

    hub.fault(&get, Fault::Status(204, Vec::new()), 1);
    let error = permanent(fetch(&writer, Some("run-1"), to.path()));
    assert!(error.ends_with("returned no content (204)"), "{error}");

    let object = hub.lfs_object("user/model", &entry.sha256);
    let mut bytes = fs::read(&object).expect("the object");
    bytes[100] ^= 1;
    fs::write(&object, &bytes).expect("the object");
    let error = permanent(fetch(&writer, Some("run-1"), to.path()));
    assert!(error.contains("the wrong content"), "{error}");

    let left: Vec<_> = fs::read_dir(to.path())
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name())
        .filter(|name| name.to_string_lossy().ends_with("-resume"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    bytes[100] ^= 1;
    fs::write(&object, &bytes).expect("the object");
    let brought = fetch(&writer, Some("run-1"), to.path()).expect("fetched at last");
    assert_whole(&brought, &checkpoint);
}

#[test]
fn a_download_ends_when_it_is_cancelled() {
    let (hub, writer, checkpoint) = pushed(1 << 20);
    let to = tempfile::tempdir().expect("a folder");
    let get = format!(
        "GET /user/model/{}",
        checkpoint.files["model.safetensors"].sha256
    );
    hub.fault(&get, Fault::Hang, 1);
    let hangs = || count(&hub, &get) > 0;
    let ended = fetch_until(&writer, Some("run-1"), to.path(), &hangs);
    assert_eq!(ended, Err(Error::Cancelled));
}

#[test]
fn a_checkpoint_is_downloaded_from_a_folder_with_and_without_lfs() {
    for lfs in ["never", "always"] {
        let (_folder, repo) = bare();
        let run = Run::new("run-1");
        let to = tempfile::tempdir().expect("a folder");
        let config = json!({"repo": repo, "lfs": lfs, "trainer": true});
        let publisher = publisher(config, &[]).expect("a publisher");
        let checkpoint = run.checkpoint(10, 3 << 20);
        run.publish(&publisher, &checkpoint).expect("published");
        let brought = fetch(&publisher, Some("run-1"), to.path()).expect(lfs);
        assert_whole(&brought, &checkpoint);
    }
}

#[test]
fn a_tag_an_older_commit_and_the_default_branch_are_found() {
    let (_folder, repo) = bare();
    let run = Run::new("main");
    let to = tempfile::tempdir().expect("a folder");
    let config = json!({"repo": repo, "trainer": true});
    let publisher = publisher(config, &[]).expect("a publisher");
    let old = run.checkpoint(10, 1000);
    let first = run.publish(&publisher, &old).expect("published");
    git(
        Path::new(&repo),
        &["tag", "-a", "v1", "-m", "the first", &first.commit],
    );
    let new = run.checkpoint(20, 1000);
    run.publish(&publisher, &new).expect("published");
    assert_whole(
        &fetch(&publisher, Some("v1"), to.path()).expect("a tag"),
        &old,
    );
    let commit = fetch(&publisher, Some(&first.commit), to.path()).expect("a commit");
    assert_whole(&commit, &old);
    assert_whole(&fetch(&publisher, None, to.path()).expect("HEAD"), &new);
}

#[test]
fn errors_name_the_missing_branch_and_the_existing_ones() {
    let (_folder, repo) = bare();
    let run = Run::new("run-1");
    let to = tempfile::tempdir().expect("a folder");
    let publisher = publisher(json!({"repo": repo}), &[]).expect("a publisher");
    commit_by_hand(&repo, "main", &[("README.md", "nothing yet")]);
    run.publish(&publisher, &run.checkpoint(10, 1000))
        .expect("published");
    let said = permanent(fetch(&publisher, Some("run-2"), to.path()));
    assert!(
        said.starts_with("no branch or tag run-2 (branches: main, run-1): "),
        "{said}"
    );
    let said = permanent(fetch(&publisher, None, to.path()));
    assert!(
        said.contains("has no config.json, so it does not contain a model (branches: main, run-1)"),
        "{said}"
    );
    let said = permanent(fetch(&publisher, Some("run-1"), to.path()));
    assert!(
        said.contains("has no state to resume from; only checkpoints that were pushed with trainer = true contain it"),
        "{said}"
    );
}
