use std::collections::BTreeMap;

use host_plugin_sdk::fake::{self, Checkpoint, Scratch};

use super::*;

/// Three chunks.
static MODEL: [u8; 3 << 20] = [7; 3 << 20];

const FILES: [(&str, &[u8]); 3] = [
    ("config.json", b"{}"),
    ("model.safetensors", &MODEL),
    ("trainer/rank-0/rng.bin", b""),
];

/// A place for checkpoints and the runs that publish to it.
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
        let mut config = json!({ "dir": self.out() });
        if let Some(keep) = keep {
            config["keep"] = keep.into();
        }
        let sink = self.plugin.checkpoint_sink(&config.to_string());
        sink.expect("created")
    }

    /// A checkpoint of a run folder that is called `runs`.
    fn checkpoint(&self, runs: &str, step: u64) -> Checkpoint {
        let run = self.scratch.path().join(runs);
        Checkpoint::write(&run.join(format!("step-{step:06}")), step, &FILES)
    }

    /// The checkpoints and whatever else is visible in the folder of a run.
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
    let receipt = bench.sink(None).publish(&checkpoint).expect("published");
    let path = bench.out().join("demo/step-000100");
    assert_eq!(receipt, json!({ "path": path }));
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
    // Unless the copy is no longer whole.
    fs::write(&copy, b"cut").expect("cut");
    bench.sink(None).publish(&checkpoint).expect("published");
    assert_eq!(
        fs::metadata(&copy).expect("there").len(),
        MODEL.len() as u64
    );
    assert_eq!(bench.listed("demo"), ["step-000100"]);
}

#[test]
fn another_checkpoint_of_the_same_step_takes_its_place() {
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
    fs::create_dir(&mine).expect("a folder of the user's");
    fs::create_dir(bench.out().join("demo/step-000000")).expect("no checkpoint");
    for step in [2, 3, 1_000_000] {
        sink.publish(&bench.checkpoint("a", step))
            .expect("published");
    }
    assert_eq!(
        bench.listed("demo"),
        ["step-000000", "step-000003", "step-1000000", "step-notes"]
    );
    // The one just written stays even if it is not among the newest.
    sink.publish(&bench.checkpoint("a", 2)).expect("published");
    assert!(bench.listed("demo").contains(&"step-000002".to_owned()));
    assert_eq!(bench.listed("demo").len(), 5);
}

#[test]
fn two_runs_of_one_name_have_a_folder_each() {
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
    assert_eq!(bench.plugin.log().len(), 1, "it is said once");
    // A folder of the user's is nobody's run.
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
fn what_a_crash_left_goes_at_the_next_publish() {
    let bench = Bench::new();
    let mut sink = bench.sink(None);
    sink.publish(&bench.checkpoint("a", 1)).expect("published");
    for left in ["step-000002.partial", "step-000001.removed.partial"] {
        let half = bench.out().join("demo").join(left);
        fs::create_dir(&half).expect("half a copy");
        fs::write(half.join("model.safetensors"), "half").expect("half a file");
    }
    sink.publish(&bench.checkpoint("a", 2)).expect("published");
    assert_eq!(bench.listed("demo"), ["step-000001", "step-000002"]);
}

#[test]
fn a_checkpoint_that_is_not_what_its_manifest_says_is_refused_whole() {
    let bench = Bench::new();
    let checkpoint = bench.checkpoint("a", 1);
    let file = checkpoint.dir().join("model.safetensors");
    fs::write(&file, vec![8; MODEL.len()]).expect("another content");
    let failure = bench.sink(None).publish(&checkpoint).expect_err("refused");
    assert!(failure.message.contains("manifest says"), "{failure}");
    assert!(failure.message.ends_with(&format!(": {}", file.display())));
    fs::remove_file(&file).expect("removed");
    let failure = bench.sink(None).publish(&checkpoint).expect_err("refused");
    assert!(failure.message.starts_with("cannot read: "), "{failure}");
    let other = checkpoint.claim_manifest(r#"{"files": {}}"#);
    let failure = bench.sink(None).publish(&other).expect_err("refused");
    assert!(failure.message.contains("another manifest"), "{failure}");
    assert!(bench.listed("demo").is_empty());
}

#[test]
fn a_folder_that_is_gone_may_come_back() {
    let bench = Bench::new();
    let mut sink = bench.sink(None);
    fs::remove_dir_all(bench.out()).expect("unmounted");
    let checkpoint = bench.checkpoint("a", 1);
    let failure = sink.publish(&checkpoint).expect_err("gone");
    assert!(failure.is_temporary(), "{failure}");
    fs::create_dir(bench.out()).expect("mounted");
    sink.publish(&checkpoint).expect("published");
}

#[test]
fn settings_that_make_no_sense_are_refused_at_the_start() {
    let bench = Bench::new();
    fs::write(bench.scratch.path().join("file"), "").expect("a file");
    let below_a_file = json!({ "dir": bench.scratch.path().join("file/out") }).to_string();
    for (config, says) in [
        ("{}", "missing field `dir`"),
        (r#"{"dir": ""}"#, "dir is empty"),
        (r#"{"dir": "/tmp", "keep": 0}"#, "nonzero"),
        (r#"{"dir": "/tmp", "keep": "3"}"#, "bad configuration"),
        (
            r#"{"dir": "/tmp", "keep_best": 1}"#,
            "unknown field `keep_best`",
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
