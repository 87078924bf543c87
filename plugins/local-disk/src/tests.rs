use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::process;

use host_plugin_sdk::fake::{self, Checkpoint, Scratch};

use super::*;

/// A file that is copied in three chunks.
static MODEL: [u8; 3 << 20] = [7; 3 << 20];

const FILES: [(&str, &[u8]); 3] = [
    ("config.json", b"{}"),
    ("model.safetensors", &MODEL),
    ("trainer/rank-0/rng.bin", b""),
];

/// A folder for checkpoints, and the runs that publish to it.
struct Bench {
    scratch: Scratch,
    plugin: fake::Plugin,
}

impl Bench {
    fn new() -> Self {
        Self {
            scratch: Scratch::new(),
            plugin: fake::Plugin::load(&PLUGIN),
        }
    }

    fn out(&self) -> PathBuf {
        self.scratch.path().join("out")
    }

    fn sink(&self, keep: Option<u64>) -> fake::CheckpointSink {
        match keep {
            Some(keep) => self.sink_with(json!({ "keep": keep })),
            None => self.sink_with(json!({})),
        }
    }

    fn sink_with(&self, mut config: Value) -> fake::CheckpointSink {
        if config["dir"].is_null() {
            config["dir"] = json!(self.out());
        }
        let sink = self.plugin.checkpoint_sink(&config.to_string());
        sink.expect("created")
    }

    /// Writes a checkpoint with this loss to the run folder `runs`.
    fn rated(&self, step: u64, loss: f64) -> Checkpoint {
        self.checkpoint("runs", step).with_metric("loss/eval", loss)
    }

    /// Writes a checkpoint to the run folder with this name.
    fn checkpoint(&self, runs: &str, step: u64) -> Checkpoint {
        let run = self.scratch.path().join(runs);
        Checkpoint::write(&run.join(format!("step-{step:06}")), step, &FILES)
    }

    /// Returns the names of the visible entries in a run's folder.
    fn listed(&self, run: &str) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.out().join(run))
            .expect("the run's folder")
            .map(|entry| entry.expect("an entry").file_name().display().to_string())
            .filter(|name| !name.starts_with('.'))
            .collect();
        names.sort();
        names
    }
}

fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).expect("inside").to_owned();
                files.insert(name, fs::read(&path).expect("a file"));
            }
        }
    }
    files
}

#[test]
fn a_published_checkpoint_is_a_complete_copy() {
    let bench = Bench::new();
    let checkpoint = bench.checkpoint("a", 100);
    let copies = || bench.sink_with(json!({ "link": "copy" }));
    let receipt = copies().publish(&checkpoint).expect("published");
    let path = bench.out().join("demo/step-000100");
    let manifest = fs::metadata(path.join("manifest.json")).expect("there");
    let sha256 = Dir::open(&path).and_then(|folder| copy::manifest_sha256(&folder));
    let sha256 = sha256.expect("read");
    assert_eq!(
        receipt,
        json!({
            "path": path,
            "link": "copy",
            "written_bytes": MODEL.len() as u64 + 2 + manifest.len(),
            "manifest_sha256": sha256,
        })
    );
    assert_eq!(contents(&path), contents(checkpoint.dir()));
    assert_eq!(contents(&path).len(), FILES.len() + 1);
    assert_eq!(bench.listed("demo"), ["step-000100"]);
}

#[test]
fn publishing_the_same_again_changes_nothing() {
    let bench = Bench::new();
    let checkpoint = bench.checkpoint("a", 100);
    let first = bench.sink(None).publish(&checkpoint).expect("published");
    let copy = bench.out().join("demo/step-000100/model.safetensors");
    let written = fs::metadata(&copy)
        .and_then(|file| file.modified())
        .expect("a time");
    let second = bench.sink(None).publish(&checkpoint).expect("published");
    assert_eq!(first, second);
    let later = fs::metadata(&copy)
        .and_then(|file| file.modified())
        .expect("a time");
    assert_eq!(written, later);
    // An incomplete copy is replaced.
    fs::write(&copy, b"cut").expect("cut");
    bench.sink(None).publish(&checkpoint).expect("published");
    assert_eq!(
        fs::metadata(&copy).expect("there").len(),
        MODEL.len() as u64
    );
    assert_eq!(bench.listed("demo"), ["step-000100"]);
}

#[test]
fn another_checkpoint_of_the_same_step_replaces_it() {
    let bench = Bench::new();
    let mut sink = bench.sink(None);
    sink.publish(&bench.checkpoint("a", 100))
        .expect("published");
    let again = bench.scratch.path().join("a/again");
    let again = Checkpoint::write(&again, 100, &[("config.json", b"{}\n")]);
    sink.publish(&again).expect("published");
    assert_eq!(
        contents(&bench.out().join("demo/step-000100")),
        contents(again.dir())
    );
    assert_eq!(bench.listed("demo"), ["step-000100"]);
}

#[test]
fn the_newest_are_kept_and_nothing_else_is_touched() {
    let bench = Bench::new();
    let mut sink = bench.sink(Some(2));
    sink.publish(&bench.checkpoint("a", 1)).expect("published");
    let mine = bench.out().join("demo/step-notes");
    fs::create_dir(&mine).expect("a user's folder");
    fs::create_dir(bench.out().join("demo/step-000000")).expect("an empty folder");
    for step in [2, 3, 1_000_000] {
        sink.publish(&bench.checkpoint("a", step))
            .expect("published");
    }
    assert_eq!(
        bench.listed("demo"),
        ["step-000000", "step-000003", "step-1000000", "step-notes"]
    );
    // The checkpoint that was just published is kept even if it is not among the newest.
    sink.publish(&bench.checkpoint("a", 2)).expect("published");
    assert!(bench.listed("demo").contains(&"step-000002".to_owned()));
    assert_eq!(bench.listed("demo").len(), 5);
}

#[test]
fn two_runs_with_the_same_name_have_separate_folders() {
    let bench = Bench::new();
    let mut first = bench.sink(Some(1));
    let mut second = bench.sink(Some(1));
    first
        .publish(&bench.checkpoint("a", 900))
        .expect("published");
    let receipt = second
        .publish(&bench.checkpoint("b", 100))
        .expect("published");
    assert_eq!(
        receipt["path"],
        json!(bench.out().join("demo-2/step-000100"))
    );
    assert!(bench.plugin.log()[0].ends_with("/demo-2"));
    first
        .publish(&bench.checkpoint("a", 901))
        .expect("published");
    second
        .publish(&bench.checkpoint("b", 101))
        .expect("published");
    assert_eq!(bench.listed("demo"), ["step-000901"]);
    assert_eq!(bench.listed("demo-2"), ["step-000101"]);
    assert_eq!(bench.plugin.log().len(), 1, "logged once");
    // A user's folder is not used for a run, even if it has the run's name.
    fs::create_dir(bench.out().join("mine")).expect("a folder");
    fs::write(bench.out().join("mine/notes"), "").expect("a file");
    let other = bench.checkpoint("c", 5).of_run("mine");
    let receipt = bench.sink(None).publish(&other).expect("published");
    assert_eq!(
        receipt["path"],
        json!(bench.out().join("mine-2/step-000005"))
    );
}

#[test]
fn the_next_publish_removes_what_a_crash_left() {
    let bench = Bench::new();
    let mut sink = bench.sink(None);
    sink.publish(&bench.checkpoint("a", 1)).expect("published");
    let folder = bench.out().join("demo");
    let half = folder.join("step-000002.partial");
    fs::create_dir(&half).expect("half a copy");
    fs::write(half.join("model.safetensors"), "half").expect("half a file");
    // In this order: a partially removed checkpoint, a complete checkpoint before its rename, a replaced
    // checkpoint.
    for left in [
        "step-000003.removed.partial",
        "step-000004.partial",
        "step-000001.replaced.partial",
    ] {
        Checkpoint::write(&folder.join(left), 1, &FILES);
    }
    fs::remove_file(folder.join("step-000003.removed.partial/model.safetensors"))
        .expect("half removed");
    fs::remove_dir_all(folder.join("state")).expect("the fake's state folder");
    sink.publish(&bench.checkpoint("a", 2)).expect("published");
    assert_eq!(bench.listed("demo"), ["step-000001", "step-000002"]);
}

#[test]
fn a_crash_during_a_replacement_loses_nothing() {
    let bench = Bench::new();
    let mut sink = bench.sink(None);
    sink.publish(&bench.checkpoint("a", 1)).expect("published");
    let folder = bench.out().join("demo");
    let before = contents(&folder.join("step-000001"));
    // On a file system that cannot exchange two names, a replacement consists of two renames. Here, the crash
    // happened between them.
    fs::rename(
        folder.join("step-000001"),
        folder.join("step-000001.replaced.partial"),
    )
    .expect("moved");
    Checkpoint::write(
        &folder.join("step-000001.partial"),
        1,
        &[("config.json", b"[]")],
    );
    fs::remove_dir_all(folder.join("state")).expect("the fake's state folder");
    sink.publish(&bench.checkpoint("a", 2)).expect("published");
    assert_eq!(bench.listed("demo"), ["step-000001", "step-000002"]);
    assert_eq!(contents(&folder.join("step-000001")), before);
}

#[test]
fn user_files_in_a_removed_checkpoint_are_kept() {
    let bench = Bench::new();
    let mut sink = bench.sink(Some(1));
    sink.publish(&bench.checkpoint("a", 1)).expect("published");
    let old = bench.out().join("demo/step-000001");
    fs::write(old.join("my-eval.json"), "mine").expect("written");
    fs::write(old.join("config.json"), "[]").expect("changed");
    fs::create_dir(old.join("trainer/mine")).expect("made");
    fs::write(old.join("trainer/mine/notes"), "mine").expect("written");
    sink.publish(&bench.checkpoint("a", 2)).expect("published");
    let kept = contents(&old);
    let names: Vec<String> = kept.keys().map(|name| name.display().to_string()).collect();
    assert_eq!(names, ["config.json", "my-eval.json", "trainer/mine/notes"]);
    assert_eq!(kept[Path::new("config.json")], b"[]");
    let log = bench.plugin.log();
    let said = format!(
        "step-000001 was removed, but its folder remains because it contains other files (config.json, my-eval.json, trainer): {}",
        old.display()
    );
    assert_eq!(log.len(), 1, "{log:?}");
    assert!(log[0].ends_with(&said), "{log:?}");
    // The folder no longer counts as a checkpoint, and the warning is not repeated.
    sink.publish(&bench.checkpoint("a", 3)).expect("published");
    assert_eq!(bench.listed("demo"), ["step-000001", "step-000003"]);
    assert_eq!(bench.plugin.log().len(), 1);
}

#[test]
fn user_files_in_a_replaced_checkpoint_are_kept() {
    let bench = Bench::new();
    let mut sink = bench.sink(None);
    sink.publish(&bench.checkpoint("a", 1)).expect("published");
    let folder = bench.out().join("demo");
    fs::write(folder.join("step-000001/my-eval.json"), "mine").expect("written");
    let again = bench.scratch.path().join("a/again");
    let again = Checkpoint::write(&again, 1, &[("config.json", b"[]")]);
    sink.publish(&again).expect("published");
    assert_eq!(contents(&folder.join("step-000001")), contents(again.dir()));
    assert_eq!(
        bench.listed("demo"),
        ["step-000001", "step-000001.replaced"]
    );
    let kept = contents(&folder.join("step-000001.replaced"));
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[Path::new("my-eval.json")], b"mine");
}

#[test]
fn nothing_is_written_to_another_folder_at_the_path() {
    let bench = Bench::new();
    let (out, away) = (bench.out(), bench.scratch.path().join("away"));
    let other = bench.scratch.path().join("other");
    fs::create_dir(&other).expect("made");
    let places: [(&str, &dyn Fn()); 4] = [
        ("nothing", &|| ()),
        ("an empty folder", &|| fs::create_dir(&out).expect("made")),
        ("a link", &|| {
            std::os::unix::fs::symlink(&other, &out).expect("linked");
        }),
        ("a file", &|| fs::write(&out, "").expect("written")),
    ];
    let clear = || {
        let _ = fs::remove_dir(&out);
        let _ = fs::remove_file(&out);
    };
    for claimed_by_preflight in [true, false] {
        let state = bench
            .scratch
            .path()
            .join(format!("state-{claimed_by_preflight}"));
        for (step, (what, put)) in (1..).zip(places) {
            let mut sink = bench.sink(None);
            if claimed_by_preflight {
                fs::create_dir_all(&state).expect("made");
                sink.preflight(&state, 1 << 20).expect("ready");
            }
            fs::rename(&out, &away).expect("unmounted");
            put();
            let checkpoint = bench.checkpoint("a", step).with_state_dir(&state);
            let failure = sink.publish(&checkpoint).expect_err(what);
            assert!(failure.is_temporary(), "{what}: {failure}");
            if claimed_by_preflight {
                sink.preflight(&state, 1 << 20).expect_err(what);
            }
            assert_eq!(fs::read_dir(&other).expect("a folder").count(), 0, "{what}");
            clear();
            fs::rename(&away, &out).expect("mounted");
            sink.publish(&checkpoint).expect(what);
        }
    }
}

#[test]
fn nothing_is_written_to_another_folder_with_the_runs_name() {
    let bench = Bench::new();
    let mut sink = bench.sink(None);
    sink.publish(&bench.checkpoint("a", 1)).expect("published");
    let (folder, away) = (bench.out().join("demo"), bench.out().join("away"));
    let other = bench.scratch.path().join("other");
    fs::create_dir(&other).expect("made");
    let put: [&dyn Fn(); 3] = [&|| (), &|| fs::create_dir(&folder).expect("made"), &|| {
        std::os::unix::fs::symlink(&other, &folder).expect("linked");
    }];
    for (step, put) in (2..).zip(put) {
        fs::rename(&folder, &away).expect("moved");
        put();
        let checkpoint = bench.checkpoint("a", step);
        // A sink in a later process fails in the same way.
        for sink in [&mut sink, &mut bench.sink(None)] {
            let failure = sink.publish(&checkpoint).expect_err("another");
            assert!(failure.is_temporary(), "{failure}");
        }
        assert_eq!(fs::read_dir(&other).expect("a folder").count(), 0);
        let _ = fs::remove_dir(&folder);
        let _ = fs::remove_file(&folder);
        fs::rename(&away, &folder).expect("moved back");
        sink.publish(&checkpoint).expect("published");
    }
    // The solution in the error message works.
    fs::remove_dir_all(&folder).expect("removed");
    let checkpoint = bench.checkpoint("a", 9);
    let failure = sink.publish(&checkpoint).expect_err("gone");
    let claim = checkpoint.state_dir().join("claim.json");
    let way = format!("remove {}", claim.display());
    assert!(failure.message.contains(&way), "{failure}");
    fs::remove_file(claim).expect("removed");
    sink.publish(&checkpoint).expect("published");
    assert_eq!(bench.listed("demo"), ["step-000009"]);
}

#[test]
fn a_copied_run_leaves_the_originals_folder_alone() {
    let bench = Bench::new();
    let state = |run: &str| bench.scratch.path().join(run).join("sinks");
    let publish = |run: &str, text: &[u8]| {
        let dir = bench.scratch.path().join(run).join("step");
        let _ = fs::remove_dir_all(&dir);
        let checkpoint = Checkpoint::write(&dir, 1, &[("config.json", text)]);
        let checkpoint = checkpoint.with_state_dir(&state(run));
        let receipt = bench.sink(None).publish(&checkpoint).expect("published");
        receipt["path"].as_str().expect("a path").to_owned()
    };
    let original = publish("original", b"1");
    let before = contents(Path::new(&original));
    let copied = state("copy");
    fs::create_dir_all(&copied).expect("made");
    for entry in fs::read_dir(state("original")).expect("a folder") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), copied.join(entry.file_name())).expect("copied");
    }
    let copy = publish("copy", b"2");
    assert!(copy.ends_with("/demo-2/step-000001"), "{copy}");
    assert_eq!(contents(Path::new(&original)), before);
    assert_eq!(publish("copy", b"2"), copy);
    assert_eq!(publish("original", b"1"), original);
    // A run that was moved, not copied, still uses the folder of its earlier checkpoints.
    fs::rename(
        bench.scratch.path().join("original"),
        bench.scratch.path().join("moved"),
    )
    .expect("moved");
    assert_eq!(publish("moved", b"1"), original);
    assert_eq!(publish("copy", b"2"), copy);
}

#[test]
fn prepared_links_and_pipes_are_not_followed() {
    use std::os::unix::fs::symlink;
    let bench = Bench::new();
    let victim = bench.scratch.path().join("victim");
    fs::create_dir(&victim).expect("made");
    fs::create_dir(bench.out()).expect("made");
    let fifo = |path: &Path| {
        let status = process::Command::new("mkfifo").arg(path).status();
        assert!(status.expect("mkfifo").success());
    };
    // A link already has the name that the run's folder would get. A file and a pipe have the next two names.
    symlink(&victim, bench.out().join("demo")).expect("linked");
    fs::write(bench.out().join("demo-2"), "").expect("written");
    fifo(&bench.out().join("demo-3"));
    let name = format!(".preflight-{}", process::id());
    let plain = victim.join("written");
    symlink(&plain, bench.out().join(name)).expect("linked");
    let mut sink = bench.sink(Some(1));
    sink.preflight(bench.scratch.path(), 1 << 20)
        .expect("ready");
    sink.publish(&bench.checkpoint("a", 1)).expect("published");
    assert_eq!(bench.listed("demo-4"), ["step-000001"]);

    // In the sink's own folder, links and a pipe now get the names of files that the sink creates and reads
    // there.
    let own = bench.out().join("demo-4");
    symlink(&plain, own.join(".kept.json.new")).expect("linked");
    symlink(&victim, own.join("step-000002.partial")).expect("linked");
    sink.publish(&bench.checkpoint("a", 2)).expect("published");
    symlink(&victim, own.join("step-000003")).expect("linked");
    let failure = sink.publish(&bench.checkpoint("a", 3)).expect_err("taken");
    assert!(
        failure.message.contains("not created by this sink"),
        "{failure}"
    );
    fs::remove_file(own.join("step-000003")).expect("removed");
    // A link to the same checkpoint does not count as a delivery.
    let third = bench.checkpoint("a", 3);
    symlink(third.dir(), own.join("step-000003")).expect("linked");
    sink.publish(&third).expect_err("a link");
    fs::remove_file(own.join("step-000003")).expect("removed");
    fs::remove_file(own.join(".kept.json")).expect("removed");
    fifo(&own.join(".kept.json"));
    let failure = sink.publish(&bench.checkpoint("a", 4)).expect_err("a pipe");
    assert!(failure.message.contains(".kept.json"), "{failure}");
    assert_eq!(fs::read_dir(&victim).expect("a folder").count(), 0);
}

#[test]
fn a_manifest_with_paths_outside_the_checkpoint_is_refused() {
    let bench = Bench::new();
    for name in ["../escaped", "/tmp/escaped", "a/../../escaped", ""] {
        let dir = bench.scratch.path().join("a/step-000001");
        let _ = fs::remove_dir_all(&dir);
        let checkpoint = Checkpoint::write(&dir, 1, &[("config.json", b"{}")]);
        let text = fs::read_to_string(dir.join("manifest.json")).expect("text");
        let manifest: Value = serde_json::from_str(&text).expect("JSON");
        let files = json!({ "files": { name: manifest["files"]["config.json"] } }).to_string();
        fs::write(dir.join("manifest.json"), &files).expect("written");
        let checkpoint = checkpoint.claim_manifest(&files);
        let failure = bench.sink(None).publish(&checkpoint).expect_err(name);
        let said = ["outside the folder", "outside the checkpoint"];
        assert!(
            said.iter().any(|said| failure.message.contains(said)),
            "{failure}"
        );
        assert!(!bench.out().join("escaped").exists());
    }
    // The sink does not wait for pipes and does not read endless devices.
    let checkpoint = bench.checkpoint("b", 1);
    let file = checkpoint.dir().join("model.safetensors");
    fs::remove_file(&file).expect("removed");
    let status = process::Command::new("mkfifo").arg(&file).status();
    assert!(status.expect("mkfifo").success());
    let failure = bench.sink(None).publish(&checkpoint).expect_err("a pipe");
    assert!(
        failure.message.contains("it is not a regular file"),
        "{failure}"
    );
    fs::remove_file(&file).expect("removed");
    std::os::unix::fs::symlink("/dev/zero", &file).expect("linked");
    bench.sink(None).publish(&checkpoint).expect_err("endless");
}

#[test]
fn a_checkpoint_that_does_not_match_its_manifest_is_refused() {
    let bench = Bench::new();
    let checkpoint = bench.checkpoint("a", 1);
    let file = checkpoint.dir().join("model.safetensors");
    fs::write(&file, vec![8; MODEL.len()]).expect("another content");
    let failure = bench.sink(None).publish(&checkpoint).expect_err("refused");
    assert!(failure.message.contains("does not match"), "{failure}");
    assert!(failure.message.ends_with(&format!(": {}", file.display())));
    fs::remove_file(&file).expect("removed");
    let failure = bench.sink(None).publish(&checkpoint).expect_err("refused");
    assert!(failure.message.starts_with("cannot read: "), "{failure}");
    let other = checkpoint.claim_manifest(r#"{"files": {}}"#);
    let failure = bench.sink(None).publish(&other).expect_err("refused");
    assert!(failure.message.contains("manifest differs"), "{failure}");
    assert!(bench.listed("demo").is_empty());
}

#[test]
fn a_missing_folder_is_a_temporary_error() {
    let bench = Bench::new();
    let mut sink = bench.sink(None);
    let away = bench.scratch.path().join("away");
    fs::rename(bench.out(), &away).expect("unmounted");
    let checkpoint = bench.checkpoint("a", 1);
    let failure = sink.publish(&checkpoint).expect_err("gone");
    assert!(failure.is_temporary(), "{failure}");
    fs::rename(&away, bench.out()).expect("mounted");
    sink.publish(&checkpoint).expect("published");
}

#[test]
fn a_hard_link_is_the_same_file_and_costs_nothing() {
    let bench = Bench::new();
    let checkpoint = bench.checkpoint("a", 1);
    let before = contents(checkpoint.dir());
    let mut sink = bench.sink_with(json!({ "link": "hard" }));
    let receipt = sink.publish(&checkpoint).expect("published");
    assert_eq!(receipt["link"], "hard");
    let path = bench.out().join("demo/step-000001");
    let size = |file| fs::metadata(path.join(file)).expect("there").len();
    assert_eq!(receipt["written_bytes"], size("manifest.json"));
    let inode = |folder: &Path, file| fs::metadata(folder.join(file)).expect("there").ino();
    for (file, _) in FILES {
        assert_eq!(inode(&path, file), inode(checkpoint.dir(), file), "{file}");
    }
    let manifests = [&path, checkpoint.dir()].map(|folder| inode(folder, "manifest.json"));
    assert_ne!(manifests[0], manifests[1]);
    assert_eq!(contents(checkpoint.dir()), before);
    // After the run folder is pruned, the kept copy is unchanged.
    fs::remove_dir_all(checkpoint.dir()).expect("pruned");
    assert_eq!(contents(&path), before);
    // With hard links, too, a file that does not match the manifest is refused.
    let damaged = bench.checkpoint("a", 2);
    fs::write(
        damaged.dir().join("model.safetensors"),
        vec![8; MODEL.len()],
    )
    .expect("written");
    let failure = sink.publish(&damaged).expect_err("refused");
    assert!(failure.message.contains("does not match"), "{failure}");
    assert_eq!(bench.listed("demo"), ["step-000001"]);
}

#[test]
fn by_default_only_a_large_file_is_hard_linked() {
    static LARGE: [u8; link::HARD_LINK_BYTES as usize] = [1; link::HARD_LINK_BYTES as usize];
    let bench = Bench::new();
    let dir = bench.scratch.path().join("a/step-000001");
    let files = [("config.json", &b"{}"[..]), ("model.safetensors", &LARGE)];
    let checkpoint = Checkpoint::write(&dir, 1, &files);
    let receipt = bench.sink(None).publish(&checkpoint).expect("published");
    let path = bench.out().join("demo/step-000001");
    assert_eq!(contents(&path), contents(&dir));
    assert!(receipt["written_bytes"].as_u64() < Some(1000), "{receipt}");
    let is_same = |file| {
        let inode = |folder: &Path| fs::metadata(folder.join(file)).expect("there").ino();
        inode(&path) == inode(&dir)
    };
    assert!(!is_same("config.json"));
    let can_reflink = can_reflink(bench.scratch.path());
    assert_eq!(is_same("model.safetensors"), !can_reflink);
    let way = if can_reflink { "reflink" } else { "hard" };
    assert_eq!(receipt["link"], way);
}

fn can_reflink(folder: &Path) -> bool {
    let file = |name| folder.join(name);
    fs::write(file("from"), [1; 10_000]).expect("written");
    let from = File::open(file("from")).expect("opened");
    let to = File::create(file("to")).expect("made");
    rustix::fs::ioctl_ficlone(to, from).is_ok()
}

#[test]
fn a_reflink_shares_the_data_but_not_changes() {
    let bench = Bench::new();
    let checkpoint = bench.checkpoint("a", 1);
    let before = contents(checkpoint.dir());
    let mut sink = bench.sink_with(json!({ "link": "reflink" }));
    let receipt = sink.publish(&checkpoint).expect("published");
    let path = bench.out().join("demo/step-000001");
    assert_eq!(contents(&path), before);
    if can_reflink(bench.scratch.path()) {
        assert_eq!(receipt["link"], "reflink");
        let manifest = fs::metadata(path.join("manifest.json")).expect("there");
        assert_eq!(receipt["written_bytes"], manifest.len());
        assert!(bench.plugin.log().is_empty());
    } else {
        skipped("no reflinks in the temporary folder; only the fallback to a copy is tested");
        assert_eq!(receipt["link"], "copy");
        sink.publish(&bench.checkpoint("a", 2)).expect("published");
        let log = bench.plugin.log();
        assert_eq!(log.len(), 1, "logged once: {log:?}");
        assert!(log[0].contains("files are copied"), "{log:?}");
    }
    fs::write(path.join("model.safetensors"), "edited").expect("edited");
    assert_eq!(contents(checkpoint.dir()), before);
}

/// Prints directly to stderr. The test runner does not capture this output.
fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

#[test]
fn every_link_setting_copies_to_another_file_system() {
    let bench = Bench::new();
    let device = |path: &Path| fs::metadata(path).map(|path| path.dev()).ok();
    let other = Path::new("/dev/shm");
    if [None, device(bench.scratch.path())].contains(&device(other)) {
        skipped("/dev/shm is missing or on the same file system as the temporary folder");
        return;
    }
    /// A folder that is removed after the test.
    struct Folder(PathBuf);
    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
    for (step, link) in (1..).zip(["auto", "reflink", "hard", "copy"]) {
        let folder = Folder(other.join(format!("local-disk-{}-{link}", process::id())));
        let checkpoint = bench.checkpoint(link, step);
        let mut sink = bench.sink_with(json!({ "dir": folder.0, "link": link }));
        let receipt = sink.publish(&checkpoint).expect("published");
        assert_eq!(receipt["link"], "copy");
        assert!(receipt["written_bytes"].as_u64() > Some(MODEL.len() as u64));
        let path = folder.0.join(format!("demo/step-{step:06}"));
        assert_eq!(contents(&path), contents(checkpoint.dir()));
        let again = sink.publish(&checkpoint).expect("published");
        assert_eq!(again, receipt);
    }
}

#[test]
fn the_best_is_kept_at_any_age_and_across_restarts() {
    let bench = Bench::new();
    let sink = || bench.sink_with(json!({ "keep": 2, "keep_best": 1 }));
    for (step, loss) in [(1, 3.0), (2, 1.0), (3, 2.0), (4, f64::NAN), (5, 4.0)] {
        // Each checkpoint is published by a new sink. The sink can use only the data on the disk.
        sink().publish(&bench.rated(step, loss)).expect("published");
    }
    assert_eq!(
        bench.listed("demo"),
        ["step-000002", "step-000004", "step-000005"]
    );
    // Step 6 has the same loss as the best checkpoint but is later, so step 6 becomes the best.
    sink().publish(&bench.rated(6, 1.0)).expect("published");
    sink().publish(&bench.rated(7, 9.0)).expect("published");
    assert_eq!(bench.listed("demo"), ["step-000006", "step-000007"]);
    // After a roll-back, step 6 is published again, with a worse loss.
    let again = bench.rated(6, 8.0);
    sink().publish(&again).expect("published");
    for (step, loss) in [(7, 2.5), (8, 7.0), (9, 6.0)] {
        sink().publish(&bench.rated(step, loss)).expect("published");
    }
    assert_eq!(
        bench.listed("demo"),
        ["step-000007", "step-000008", "step-000009"]
    );
}

#[test]
fn without_keep_the_best_and_the_newest_are_kept() {
    let bench = Bench::new();
    let config = json!({ "keep_best": 2, "metric": "accuracy", "greater_is_better": true });
    let mut sink = bench.sink_with(config);
    for (step, accuracy) in [(1, 0.5), (2, 0.7), (3, 0.6), (4, 0.1)] {
        let checkpoint = bench.checkpoint("a", step);
        let checkpoint = checkpoint.with_metric("accuracy", accuracy);
        sink.publish(&checkpoint).expect("published");
    }
    assert!(bench.plugin.log().is_empty());
    // Checkpoints without the metric are not among the best. A warning is logged once.
    for step in [5, 6] {
        let checkpoint = bench.checkpoint("a", step);
        let checkpoint = checkpoint.with_metric("loss/eval", 0.0);
        sink.publish(&checkpoint).expect("published");
    }
    assert_eq!(
        bench.listed("demo"),
        ["step-000002", "step-000003", "step-000006"]
    );
    let log = bench.plugin.log();
    assert_eq!(log.len(), 1, "{log:?}");
    let words =
        "step 5 has no accuracy, so keep_best does not count it; set metric to one of: loss/eval";
    assert!(log[0].ends_with(words), "{log:?}");
}

#[test]
fn two_sinks_of_a_run_in_one_folder_do_not_interfere() {
    let bench = Bench::new();
    let state = |name| bench.scratch.path().join("sinks").join(name);
    let mut all = bench.sink(None);
    let mut last = bench.sink(Some(1));
    for step in [1, 2, 3] {
        let checkpoint = bench.checkpoint("a", step);
        let to = |name| checkpoint.clone().with_state_dir(&state(name));
        all.publish(&to("all")).expect("published");
        last.publish(&to("last")).expect("published");
    }
    assert_eq!(
        bench.listed("demo"),
        ["step-000001", "step-000002", "step-000003"]
    );
    assert_eq!(bench.listed("demo-2"), ["step-000003"]);
}

#[test]
fn checkpoints_of_others_are_neither_removed_nor_replaced() {
    let bench = Bench::new();
    let mut sink = bench.sink(Some(1));
    sink.publish(&bench.checkpoint("a", 5)).expect("published");
    let folder = bench.out().join("demo");
    // A user has moved checkpoints to the folder. The folder `notes.partial` has a name like a partial
    // checkpoint, but is not one.
    let theirs = |step, text: &[u8]| {
        let dir = folder.join(format!("step-{step:06}"));
        Checkpoint::write(&dir, step, &[("config.json", text)]);
        contents(&dir)
    };
    let (third, sixth) = (theirs(3, b"third"), theirs(6, b"sixth"));
    fs::create_dir(folder.join("notes.partial")).expect("made");
    sink.publish(&bench.checkpoint("a", 7)).expect("published");
    let failure = sink.publish(&bench.checkpoint("a", 6)).expect_err("taken");
    assert!(!failure.is_temporary());
    assert!(failure.message.contains("not created by this sink"));
    assert_eq!(contents(&folder.join("step-000003")), third);
    assert_eq!(contents(&folder.join("step-000006")), sixth);
    fs::remove_dir_all(folder.join("state")).expect("the fake's state folder");
    assert_eq!(
        bench.listed("demo"),
        ["notes.partial", "step-000003", "step-000006", "step-000007"]
    );
    // A user has replaced one of the sink's checkpoints.
    fs::remove_dir_all(folder.join("step-000007")).expect("removed");
    let seventh = theirs(7, b"seventh");
    sink.publish(&bench.checkpoint("a", 8)).expect("published");
    assert_eq!(contents(&folder.join("step-000007")), seventh);
}

#[test]
fn a_crash_before_the_rename_loses_nothing() {
    let bench = Bench::new();
    let mut sink = bench.sink(Some(1));
    sink.publish(&bench.checkpoint("a", 1)).expect("published");
    // The machine crashed after another checkpoint of step 1 was recorded, but before that checkpoint's
    // folder was renamed.
    let folder = bench.out().join("demo");
    let folder_dir = Dir::open(&folder).expect("a folder");
    let mut kept = Kept::read(&folder_dir).expect("read");
    let placed = Placed {
        manifest_sha256: "0".repeat(64),
        ..kept.find(1).expect("noted").placed.clone()
    };
    let entry = Entry::new(1, placed, &BTreeMap::new());
    kept.note(entry).expect("noted");
    let again = bench.scratch.path().join("a/again");
    let again = Checkpoint::write(&again, 1, &[("config.json", b"[]")]);
    sink.publish(&again).expect("published");
    assert_eq!(contents(&folder.join("step-000001")), contents(again.dir()));
    sink.publish(&bench.checkpoint("a", 2)).expect("published");
    assert_eq!(bench.listed("demo"), ["step-000002"]);
    let kept = Kept::read(&folder_dir).expect("read");
    assert_eq!(kept.standing().len(), 1);
}

#[test]
fn latest_and_best_point_to_checkpoints() {
    let bench = Bench::new();
    let config = json!({ "keep": 1, "keep_best": 1, "pointers": true });
    let mut sink = bench.sink_with(config);
    let folder = bench.out().join("demo");
    for (step, loss, best) in [(1, 3.0, 1), (2, 1.0, 2), (3, 2.0, 2)] {
        sink.publish(&bench.rated(step, loss)).expect("published");
        let leads = |link| fs::read_link(folder.join(link)).expect("a link");
        assert_eq!(leads("latest"), Path::new(&format!("step-{step:06}")));
        assert_eq!(leads("best"), Path::new(&format!("step-{best:06}")));
    }
    // A user's file with the link's name is kept, and a warning is logged once.
    fs::remove_file(folder.join("latest")).expect("removed");
    fs::write(folder.join("latest"), "mine").expect("written");
    for step in [4, 5] {
        sink.publish(&bench.rated(step, 5.0)).expect("published");
    }
    assert_eq!(fs::read(folder.join("latest")).expect("there"), b"mine");
    assert_eq!(bench.plugin.log().len(), 1);
}

#[test]
fn invalid_settings_are_refused_at_the_start() {
    let bench = Bench::new();
    fs::write(bench.scratch.path().join("file"), "").expect("a file");
    let below_a_file = json!({ "dir": bench.scratch.path().join("file/out") }).to_string();
    for (config, says) in [
        ("{}", "missing field `dir`"),
        (r#"{"dir": ""}"#, "dir is empty"),
        (r#"{"dir": "/tmp", "keep": 0}"#, "nonzero"),
        (r#"{"dir": "/tmp", "keep": "3"}"#, "bad configuration"),
        (
            r#"{"dir": "/tmp", "keepbest": 1}"#,
            "unknown field `keepbest`",
        ),
        (r#"{"dir": "/tmp", "keep_best": 0}"#, "nonzero"),
        (
            r#"{"dir": "/tmp", "link": "soft"}"#,
            "unknown variant `soft`",
        ),
        (r#"{"dir": "/tmp", "metric": "x"}"#, "require keep_best"),
        (
            r#"{"dir": "/tmp", "keep": 3, "greater_is_better": true}"#,
            "require keep_best",
        ),
        (&below_a_file, "cannot create folder: "),
    ] {
        let failure = bench.plugin.checkpoint_sink(config).expect_err(config);
        assert!(failure.message.contains(says), "{failure}");
    }
}

#[test]
fn a_relative_folder_is_made_absolute_and_home_is_found() {
    let home = || Some(PathBuf::from("/home/ada"));
    let found = |dir: &str| absolute(dir, home()).expect("a folder");
    assert_eq!(found("/x/y"), Path::new("/x/y"));
    assert_eq!(found("~"), Path::new("/home/ada"));
    assert_eq!(found("~/ckpt"), Path::new("/home/ada/ckpt"));
    assert!(found("ckpt").is_absolute());
    assert!(found("~ada/ckpt").ends_with("~ada/ckpt"));
    assert!(
        absolute("~/ckpt", None)
            .expect("a folder")
            .ends_with("~/ckpt")
    );
}

#[test]
fn a_preflight_checks_the_disk_space_and_leaves_nothing() {
    let bench = Bench::new();
    let mut sink = bench.sink_with(json!({ "link": "copy", "keep": 2 }));
    let found = sink.preflight(bench.scratch.path(), 1 << 20);
    let found = found.expect("ready").expect("words");
    assert!(found.starts_with("room for "), "{found}");
    // Only the folder's marker file remains.
    let left = fs::read_dir(bench.out()).expect("the folder");
    let left: Vec<_> = left
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    assert_eq!(left, [".local-disk"]);
    let full = sink.preflight(bench.scratch.path(), 1 << 60);
    assert!(full.expect_err("no room").is_temporary());
    // Links need almost no disk space.
    let mut sink = bench.sink(None);
    assert!(sink.preflight(bench.scratch.path(), 1 << 60).is_ok());
}

#[test]
fn a_preflight_warns_if_there_is_no_space_for_all_kept_checkpoints() {
    let bench = Bench::new();
    let mut sink = bench.sink_with(json!({ "link": "copy", "keep": 1_000_000_000 }));
    sink.preflight(bench.scratch.path(), 1 << 30)
        .expect("ready");
    let log = bench.plugin.log();
    assert!(
        log.iter().any(|line| line.contains("checkpoints to keep")),
        "{log:?}"
    );
}

#[test]
fn a_preflight_fails_if_the_folder_became_a_file() {
    let bench = Bench::new();
    let mut sink = bench.sink(None);
    fs::remove_dir(bench.out()).expect("removed");
    fs::write(bench.out(), "a file").expect("written");
    let error = sink.preflight(bench.scratch.path(), 1 << 20);
    let error = error.expect_err("no folder").to_string();
    assert!(error.contains("create folder"), "{error}");
}
