use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::json;

use crate::support::{
    Run, bare, commit_by_hand, git, git_bytes, messages, permanent, publisher, room_of, sha256,
};

#[test]
fn three_steps_are_three_commits_with_the_same_bytes() {
    let (_remote, url) = bare();
    let repo = Path::new(&url);
    let publisher = publisher(json!({"repo": url}), &[]).expect("a publisher");
    let run = Run::new("first");
    let checkpoints = [10, 20, 30].map(|step| run.checkpoint(step, 200_000));
    for checkpoint in &checkpoints {
        let receipt = run.publish(&publisher, checkpoint).expect("published");
        assert_eq!(receipt.branch, "first");
        assert_eq!(receipt.remote, url);
        assert_eq!(run.publish(&publisher, checkpoint).expect("again"), receipt);
        assert_eq!(git(repo, &["rev-parse", "first"]).trim(), receipt.commit);
    }
    assert_eq!(messages(&url, "first"), ["step 30", "step 20", "step 10"]);

    for (checkpoint, at) in std::iter::zip(&checkpoints, ["first~2", "first~1", "first"]) {
        let listed = git(repo, &["ls-tree", "-r", "--name-only", at]);
        let expected =
            "README.md config.json generation_config.json model.safetensors tokenizer.json";
        assert_eq!(
            listed.split_whitespace().collect::<Vec<_>>().join(" "),
            expected
        );
        for name in expected.split(' ').filter(|name| *name != "README.md") {
            let blob = git_bytes(repo, &["cat-file", "blob", &format!("{at}:{name}")]);
            assert_eq!(
                sha256(&blob),
                checkpoint.files[name].sha256,
                "{name} of {at}"
            );
        }
        let card = git(repo, &["show", &format!("{at}:README.md")]);
        assert!(card.contains("| loss/eval | 2.5 |") && card.contains("| perplexity | inf |"));
        assert!(
            card.contains(&format!("optimizer step {}.", checkpoint.step)),
            "{card}"
        );
    }

    let other = Run::new("second");
    other
        .publish(&publisher, &other.checkpoint(10, 1000))
        .expect("published");
    assert_eq!(messages(&url, "second"), ["step 10"]);
    assert_eq!(messages(&url, "first").len(), 3);
    git(repo, &["fsck", "--strict"]);
}

#[test]
fn a_delivered_model_needs_no_disk_space_in_the_sinks_folder() {
    let (_remote, url) = bare();
    for lfs in ["never", "always"] {
        let config = json!({"repo": url, "lfs": lfs, "branch": lfs});
        let publisher = publisher(config, &[]).expect("a publisher");
        let run = Run::new("small");
        let publish = |step| {
            let checkpoint = run.checkpoint(step, 300_000);
            run.publish(&publisher, &checkpoint).expect("published");
            fs::remove_dir_all(checkpoint.dir).expect("the checkpoint");
        };
        publish(1);
        let before = room_of(&run.state_dir());
        (2..=41).for_each(publish);
        let each = (room_of(&run.state_dir()) - before) / 40;
        assert!(each < 20_000, "{each} bytes a checkpoint with lfs = {lfs}");
    }
}

#[test]
fn lfs_objects_of_a_local_remote_are_stored_where_git_lfs_reads_them() {
    let (_remote, url) = bare();
    let publisher = publisher(json!({"repo": url, "lfs": "always"}), &[]).expect("a publisher");
    let run = Run::new("run");
    let checkpoint = run.checkpoint(1, 10_000);
    run.publish(&publisher, &checkpoint).expect("published");
    let repo = Path::new(&url);
    let pointer = git_bytes(repo, &["show", "run:model.safetensors"]);
    let (oid, size) = test_hub::parse_pointer(&pointer).expect("a pointer");
    assert_eq!(size, 10_000);
    assert_eq!(oid, checkpoint.files["model.safetensors"].sha256);
    let object = repo
        .join("lfs/objects")
        .join(&oid[..2])
        .join(&oid[2..4])
        .join(&oid);
    assert_eq!(sha256(&fs::read(object).expect("an object")), oid);
    let attributes = git(repo, &["show", "run:.gitattributes"]);
    assert_eq!(
        attributes,
        "*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
    );
}

#[test]
fn other_commits_on_the_branch_are_kept() {
    let (_remote, url) = bare();
    let attributes = "*.h5 filter=lfs diff=lfs merge=lfs -text\n";
    let files = [
        (".gitattributes", attributes),
        ("README.md", "# Mine\n"),
        ("notes", "x"),
    ];
    commit_by_hand(&url, "main", &files);
    let publisher = publisher(json!({"repo": url, "lfs": "always"}), &[]).expect("a publisher");
    let run = Run::new("run");
    run.publish(&publisher, &run.checkpoint(1, 100))
        .expect("published");
    commit_by_hand(&url, "run", &[("notes", "y")]);
    run.publish(&publisher, &run.checkpoint(2, 100))
        .expect("published");

    assert_eq!(
        messages(&url, "run"),
        ["step 2", "by hand", "step 1", "by hand"]
    );
    let repo = Path::new(&url);
    let added = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n";
    assert_eq!(
        git(repo, &["show", "run:.gitattributes"]),
        format!("{attributes}{added}")
    );
    assert_eq!(git(repo, &["show", "run:README.md"]), "# Mine\n");
    assert_eq!(git(repo, &["show", "run:notes"]), "y");
}

#[test]
fn user_text_in_the_card_is_kept() {
    let (_remote, url) = bare();
    let publisher = publisher(json!({"repo": url}), &[]).expect("a publisher");
    let run = Run::new("run");
    run.publish(&publisher, &run.checkpoint(1, 100))
        .expect("published");
    let repo = Path::new(&url);
    let card = git(repo, &["show", "run:README.md"]);
    let edited = card.replacen("---\n", "---\nlicense: mit\n", 1) + "\n## Limits\n\nNone known.\n";
    commit_by_hand(&url, "run", &[("README.md", &edited)]);
    run.publish(&publisher, &run.checkpoint(2, 100))
        .expect("published");
    let next = git(repo, &["show", "run:README.md"]);
    assert_eq!(
        next,
        edited.replace("optimizer step 1.", "optimizer step 2.")
    );
}

#[test]
fn the_branchs_attributes_select_lfs() {
    let (_remote, url) = bare();
    let attributes = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n";
    commit_by_hand(&url, "main", &[(".gitattributes", attributes)]);
    let publisher = publisher(json!({"repo": url}), &[]).expect("a publisher");
    let run = Run::new("run");
    run.publish(&publisher, &run.checkpoint(1, 5000))
        .expect("published");
    let pointer = git_bytes(Path::new(&url), &["show", "run:model.safetensors"]);
    assert!(test_hub::parse_pointer(&pointer).is_some());
    let plain = git_bytes(Path::new(&url), &["show", "run:config.json"]);
    assert!(test_hub::parse_pointer(&plain).is_none());
}

#[test]
fn the_trainer_state_is_pushed_if_configured() {
    let (_remote, url) = bare();
    let publisher = publisher(json!({"repo": url, "trainer": true}), &[]).expect("a publisher");
    let run = Run::new("run");
    run.publish(&publisher, &run.checkpoint(1, 100))
        .expect("published");
    let listed = git(Path::new(&url), &["ls-tree", "-r", "--name-only", "run"]);
    assert!(listed.contains("trainer/optimizer.safetensors"), "{listed}");
}

#[test]
fn a_lost_folder_of_the_sink_causes_no_second_commit() {
    let (_remote, url) = bare();
    let publisher = publisher(json!({"repo": url}), &[]).expect("a publisher");
    let run = Run::new("run");
    let checkpoint = run.checkpoint(1, 100);
    let receipt = run.publish(&publisher, &checkpoint).expect("published");
    fs::remove_dir_all(run.state_dir()).expect("removed");
    fs::create_dir(run.state_dir()).expect("created");
    assert_eq!(
        run.publish(&publisher, &checkpoint).expect("again"),
        receipt
    );
    assert_eq!(messages(&url, "run"), ["step 1"]);
}

#[test]
fn a_commit_that_arrived_unnoticed_is_found_under_later_ones() {
    let (_remote, url) = bare();
    let publisher = publisher(json!({"repo": url}), &[]).expect("a publisher");
    let run = Run::new("run");
    let checkpoint = run.checkpoint(1, 100);
    let receipt = run.publish(&publisher, &checkpoint).expect("published");
    // Simulates a process that died after the push but before it received the result.
    let journal = run.state_dir().join("journal.json");
    let text = fs::read_to_string(&journal).expect("a journal");
    fs::write(&journal, text.replace("\"commit\":", "\"pending\":")).expect("a journal");
    commit_by_hand(&url, "run", &[("notes", "another commit")]);
    assert_eq!(
        run.publish(&publisher, &checkpoint).expect("again"),
        receipt
    );
    assert_eq!(messages(&url, "run"), ["by hand", "step 1"]);
}

#[test]
fn a_commit_that_did_not_arrive_is_created_again_on_the_new_tip() {
    let (_remote, url) = bare();
    let publisher = publisher(json!({"repo": url}), &[]).expect("a publisher");
    let run = Run::new("run");
    let checkpoint = run.checkpoint(1, 100);
    let receipt = run.publish(&publisher, &checkpoint).expect("published");
    let journal = run.state_dir().join("journal.json");
    let text = fs::read_to_string(&journal).expect("a journal");
    fs::write(&journal, text.replace("\"commit\":", "\"pending\":")).expect("a journal");
    git(Path::new(&url), &["update-ref", "-d", "refs/heads/run"]);
    // The same date and parent give the same commit.
    assert_eq!(
        run.publish(&publisher, &checkpoint).expect("again"),
        receipt
    );
    assert_eq!(messages(&url, "run"), ["step 1"]);
}

#[test]
fn a_hooks_refusal_is_permanent_and_contains_its_message() {
    let (_remote, url) = bare();
    let hook = Path::new(&url).join("hooks/pre-receive");
    fs::create_dir_all(hook.parent().expect("a folder")).expect("a folder");
    fs::write(
        &hook,
        "#!/bin/sh\necho 'the quota is used up' >&2\nexit 1\n",
    )
    .expect("a hook");
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).expect("a hook");
    let publisher = publisher(json!({"repo": url}), &[]).expect("a publisher");
    let run = Run::new("run");
    let words = permanent(run.publish(&publisher, &run.checkpoint(1, 100)));
    assert!(words.contains("the quota is used up"), "{words}");
    assert!(words.contains("pre-receive hook declined"), "{words}");
}

#[test]
fn a_missing_remote_is_a_permanent_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let publisher = publisher(json!({"repo": folder.path()}), &[]).expect("a publisher");
    let run = Run::new("run");
    let words = permanent(run.publish(&publisher, &run.checkpoint(1, 100)));
    assert!(
        words.contains("does not appear to be a git repository"),
        "{words}"
    );
}

#[test]
fn a_file_that_does_not_match_the_manifest_is_not_delivered() {
    let (_remote, url) = bare();
    for lfs in ["never", "always"] {
        let publisher = publisher(json!({"repo": url, "lfs": lfs}), &[]).expect("a publisher");
        let run = Run::new("run");
        let checkpoint = run.checkpoint(1, 100);
        fs::write(checkpoint.dir.join("model.safetensors"), [7; 100]).expect("written");
        let words = permanent(run.publish(&publisher, &checkpoint));
        assert!(words.contains("does not match the manifest"), "{words}");
    }
    assert_eq!(git(Path::new(&url), &["for-each-ref"]), "");
}

#[test]
fn only_one_process_uses_the_sinks_folder() {
    let (_remote, url) = bare();
    let publisher = publisher(json!({"repo": url}), &[]).expect("a publisher");
    let run = Run::new("run");
    let lock = fs::File::create(run.state_dir().join("lock")).expect("a lock");
    lock.lock().expect("locked");
    let words = crate::support::temporary(run.publish(&publisher, &run.checkpoint(1, 100)));
    assert!(words.contains("another process"), "{words}");
}

#[test]
fn a_broken_cache_is_deleted() {
    let (_remote, url) = bare();
    let publisher = publisher(json!({"repo": url}), &[]).expect("a publisher");
    let run = Run::new("run");
    run.publish(&publisher, &run.checkpoint(1, 100))
        .expect("published");
    let config = run.state_dir().join("repo.git/config");
    fs::write(&config, "[core\n").expect("broken");
    crate::support::temporary(run.publish(&publisher, &run.checkpoint(2, 100)));
    run.publish(&publisher, &run.checkpoint(2, 100))
        .expect("published");
    assert_eq!(messages(&url, "run"), ["step 2", "step 1"]);
}

#[test]
fn an_invalid_branch_name_is_refused() {
    let (_remote, url) = bare();
    let error = publisher(json!({"repo": url, "branch": "a..b"}), &[]).expect_err("refused");
    assert!(error.to_string().contains("invalid branch name"), "{error}");
}

#[test]
fn the_author_is_configurable() {
    let (_remote, url) = bare();
    let config = json!({"repo": url, "author_name": "Ann Lee", "author_email": "ann@example.org"});
    let publisher = publisher(config, &[]).expect("a publisher");
    let run = Run::new("run");
    run.publish(&publisher, &run.checkpoint(1, 100))
        .expect("published");
    let format = "--format=%an <%ae>, %cn <%ce>";
    let log = git(Path::new(&url), &["log", format, "run"]);
    let ann = "Ann Lee <ann@example.org>";
    assert_eq!(log.trim(), format!("{ann}, {ann}"));
}

#[test]
fn large_files_of_the_branch_are_not_fetched_to_build_on_it() {
    for over_http in [false, true] {
        let hub = test_hub::TestHub::start();
        let repo = hub.create_repo("user/model", &[]);
        git(&repo, &["config", "uploadpack.allowFilter", "true"]);
        let url = repo.to_str().expect("a path");
        let large = (0..300_000u32).map(|n| format!("{:08x}", n.wrapping_mul(2_654_435_761)));
        let large: String = large.collect();
        let files = [
            ("README.md", "# Mine\n"),
            ("large.txt", &*large),
            ("sub/.gitattributes", "*.x text\n"),
        ];
        commit_by_hand(url, "main", &files);
        let publisher = match over_http {
            true => crate::support::hub_publisher(&hub, test_hub::WRITE_TOKEN, &[]),
            false => publisher(json!({"repo": url}), &[]).expect("a publisher"),
        };
        let run = Run::new("run");
        for step in [1, 2] {
            run.publish(&publisher, &run.checkpoint(step, 1000))
                .expect("published");
        }
        assert_eq!(git(&repo, &["show", "run:README.md"]), "# Mine\n");
        assert_eq!(git(&repo, &["show", "run:large.txt"]), large);
        assert!(crate::support::size_of(&run.state_dir()) < 500_000);
        git(&repo, &["fsck", "--strict"]);
    }
}
