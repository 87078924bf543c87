//! Tests that a run can be killed at any moment: after a resume, its results have the same bytes as those of
//! a run that was not killed.
//!
//! Each test chooses the exact moment. A preloaded library kills the program in the middle of a file
//! operation. A hook of the remote repository kills it in the middle of a push. A metric kills it in the
//! middle of an evaluation. The tests in `resume.rs` kill a run from outside.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use host_store::Reader;
use serde_json::json;

use crate::support::{
    Fixture, Home, Output, bare_repository, curve, events_of, files_of, git, kill_at,
};

/// The arguments of all runs. They use everything that a resume has to restore.
const FLAGS: [&str; 14] = [
    "--model",
    "dropout.json",
    "--gradient-accumulation-steps",
    "2",
    "--max-train-steps",
    "40",
    "--save-checkpoint-steps",
    "10",
    "--eval-on-start",
    "--ngram-baselines",
    "--plugin",
    "perplexity",
    "--listen",
    "127.0.0.1:0",
];

const DROPOUT: &str = r#"{
    "model_type": "gpt2", "n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 64, "vocab_size": 300,
    "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1
}"#;

/// The results of a run that is not killed.
struct Undisturbed {
    /// Files of the last checkpoint, with their hashes.
    files: BTreeMap<String, String>,
    curves: BTreeMap<String, Vec<(u64, u64)>>,
}

fn undisturbed() -> &'static Undisturbed {
    static UNDISTURBED: OnceLock<Undisturbed> = OnceLock::new();
    UNDISTURBED.get_or_init(|| {
        let scene = Scene::new();
        scene.home.host(&scene.run(&[])).succeeded();
        Undisturbed {
            files: files_of(&scene.home.checkpoint("run", 40)),
            curves: curves(&scene.home),
        }
    })
}

/// Returns all metrics of the run except those that measure time, plugins or the machine.
fn curves(home: &Home) -> BTreeMap<String, Vec<(u64, u64)>> {
    let dir = home.run_dir("run");
    let series = Reader::open(&dir).and_then(|reader| reader.series());
    let names = series
        .expect("metrics")
        .into_iter()
        .map(|series| series.name);
    let measures_time = |name: &str| {
        name.ends_with("_secs")
            || name.ends_with("_per_second")
            || ["mfu", "peak_memory_bytes"].contains(&name)
            || name.starts_with("plugin/")
            || name.starts_with("system/")
    };
    names
        .filter(|name| !measures_time(name))
        .map(|name| (name.to_string(), curve(&dir, &name)))
        .collect()
}

/// A home in which a run is killed and resumed.
struct Scene {
    home: Home,
    preload: String,
}

impl Scene {
    fn new() -> Self {
        let home = Home::new();
        fs::write(home.path("dropout.json"), DROPOUT).expect("written");
        let preload = kill_at(&home.path("")).display().to_string();
        Self { home, preload }
    }

    fn run<'a>(&self, more: &[&'a str]) -> Vec<&'a str> {
        [&["run", "tiny.toml", "--name", "run"], &FLAGS[..], more].concat()
    }

    /// Runs the program and asserts that it is killed at this moment.
    #[track_caller]
    fn killed_at(&self, moment: &str, more_env: &[(&str, &str)], args: &[&str]) {
        let env = [("LD_PRELOAD", &*self.preload), ("KILL_AT", moment)];
        self.killed(&[&env[..], more_env].concat(), args);
    }

    #[track_caller]
    fn killed(&self, env: &[(&str, &str)], args: &[&str]) {
        let output = self.home.host_with(env, args);
        assert_eq!(output.signal(), Some(9), "{output}");
    }

    /// Returns the step of the newest checkpoint.
    fn newest(&self) -> Option<u64> {
        self.home.checkpoints("run").last().copied()
    }

    /// Resumes the run until it ends and asserts that its result equals that of an uninterrupted run.
    #[track_caller]
    fn goes_on_from(&self, step: u64, generation: u32) -> Output {
        assert_eq!(self.newest().unwrap_or(0), step);
        let resumed = self.home.host(&["resume", "run"]).succeeded();
        let said = match step {
            0 => "starting again from step 0: the run ended before its first checkpoint".to_owned(),
            step => format!("resuming from step {step}: "),
        };
        assert!(resumed.stderr.contains(&said), "{resumed}");
        self.is_as_undisturbed(generation);
        resumed
    }

    #[track_caller]
    fn is_as_undisturbed(&self, generation: u32) {
        let (home, dir) = (&self.home, self.home.run_dir("run"));
        let whole = undisturbed();
        assert_eq!(files_of(&home.checkpoint("run", 40)), whole.files);
        let curves = curves(home);
        for (name, curve) in &whole.curves {
            assert_eq!(curves.get(name), Some(curve), "{name}");
        }
        let steps: Vec<u64> = curves["loss/train"].iter().map(|point| point.0).collect();
        assert_eq!(steps, (1..=40).collect::<Vec<_>>());

        let events = events_of(&dir);
        let numbers: Vec<u64> = events.iter().map(|event| event.seq).collect();
        assert_eq!(numbers, (1..=events.len() as u64).collect::<Vec<_>>());
        let shown = home.host(&["runs", "show", "run", "--json"]).succeeded();
        let shown = shown.json();
        assert_eq!(
            (&shown["status"], &shown["generation"]),
            (&json!("completed"), &json!(generation))
        );
        // No partial checkpoint is left.
        let left = fs::read_dir(dir.join("checkpoints")).expect("a folder");
        let left = left.map(|entry| entry.expect("an entry").file_name());
        let odd: Vec<_> = left
            .filter(|name| !name.to_string_lossy().starts_with("step-"))
            .collect();
        assert_eq!(odd, [""; 0]);
    }
}

#[test]
fn while_the_run_is_created() {
    let scene = Scene::new();
    scene.killed_at("renamed /run.toml", &[], &scene.run(&[]));
    fs::create_dir_all(scene.home.run_dir("run").join("checkpoints")).expect("made");
    scene.goes_on_from(0, 1);
}

#[test]
fn in_the_first_checkpoint() {
    let scene = Scene::new();
    let moment = "open /.step-000010.partial/trainer/state.json";
    scene.killed_at(moment, &[], &scene.run(&[]));
    scene.goes_on_from(0, 1);
}

#[test]
fn in_the_weights_of_a_checkpoint() {
    let scene = Scene::new();
    // The weights are written under another name first.
    let moment = "write /.step-000020.partial/.tmp*";
    scene.killed_at(moment, &[], &scene.run(&[]));
    let partial = scene
        .home
        .run_dir("run")
        .join("checkpoints/.step-000020.partial");
    let weights = fs::metadata(partial.join("model.safetensors")).expect("made");
    assert_eq!(weights.len(), 0);
    scene.goes_on_from(10, 1);
}

#[test]
fn before_a_checkpoint_has_its_manifest() {
    let scene = Scene::new();
    let moment = "open /.step-000020.partial/manifest.json";
    scene.killed_at(moment, &[], &scene.run(&[]));
    scene.goes_on_from(10, 1);
}

#[test]
fn before_a_checkpoint_gets_its_name() {
    let scene = Scene::new();
    scene.killed_at("rename /step-000030", &[], &scene.run(&[]));
    scene.goes_on_from(20, 1);
}

/// The store is slow: a checkpoint that did not wait for the store would appear before its events.
#[test]
fn after_a_checkpoint_gets_its_name() {
    let scene = Scene::new();
    let slow = [("DELAY_AT", "write /events.db-wal"), ("DELAY_MS", "5")];
    scene.killed_at("renamed /step-000020", &slow, &scene.run(&[]));
    scene.goes_on_from(20, 1);
}

#[test]
fn while_an_old_checkpoint_is_removed() {
    let scene = Scene::new();
    let run = scene.run(&["--keep-checkpoints", "2"]);
    scene.killed_at("renamed /.step-000010.pruned", &[], &run);
    scene.goes_on_from(30, 1);
    assert_eq!(scene.home.checkpoints("run"), [30, 40]);
}

#[test]
fn in_a_commit_of_the_store() {
    let scene = Scene::new();
    let moment = "write /events.db-wal";
    scene.killed_at(moment, &[("KILL_NTH", "150")], &scene.run(&[]));
    scene.goes_on_from(scene.newest().unwrap_or(0), 1);
}

#[test]
fn in_an_evaluation() {
    let scene = Scene::new();
    let metric = Fixture::metric("killing").flag("-DTOKENS=\"tokens/mean\"");
    let metric = metric.build(&scene.home.path(""));
    let metric = metric.display().to_string();
    scene.killed(
        &[("KILL_AT_EVALUATION", "30")],
        &scene.run(&["--plugin", &metric]),
    );
    // When the run was killed, the checkpoint of step 20 may not have been complete.
    scene.goes_on_from(scene.newest().expect("a checkpoint"), 1);
}

#[test]
fn while_a_sink_copies() {
    let scene = Scene::new();
    let kept = scene.home.text_path("kept");
    let sink = format!("local-disk:dir={kept},keep=2,link=copy,mode=in_process");
    let moment = "write /step-000020.partial/model.safetensors";
    scene.killed_at(moment, &[], &scene.run(&["--plugin", &sink]));
    scene.goes_on_from(scene.newest().unwrap_or(0), 1);
    assert_kept(&scene);
}

/// The sink runs in its own process. If that process survived, it could write during the resumed run.
#[test]
fn while_the_process_of_a_sink_copies() {
    let scene = Scene::new();
    let kept = scene.home.text_path("kept");
    let sink = format!("local-disk:dir={kept},keep=2,link=copy");
    let moment = "write /step-000020.partial/model.safetensors";
    let parent = [("KILL_PARENT", "1")];
    scene.killed_at(moment, &parent, &scene.run(&["--plugin", &sink]));
    scene.home.wait_for_no_child();
    scene.goes_on_from(scene.newest().unwrap_or(0), 1);
    assert_kept(&scene);
}

/// Asserts that the sink's folder has the complete last checkpoint and no partial copy.
fn assert_kept(scene: &Scene) {
    let kept = files_of(&scene.home.path("kept/run"));
    let last: BTreeMap<_, _> = kept
        .iter()
        .filter_map(|(name, hash)| Some((name.strip_prefix("step-000040/")?, hash)))
        .collect();
    let whole = undisturbed().files.iter();
    assert_eq!(last, whole.map(|(name, hash)| (&**name, hash)).collect());
    assert!(
        !kept.keys().any(|name| name.contains(".partial")),
        "{kept:?}"
    );
}

/// Starts a run that is killed by a hook of its remote repository when `condition` (in sh) holds. The hook
/// then runs the command `on`. Returns the repository.
fn killed_by_hook(scene: &Scene, condition: &str, on: &str) -> PathBuf {
    let remote = bare_repository(&scene.home);
    let (pid, run) = (scene.home.text_path("pid"), scene.home.run_dir("run"));
    // The hook acts on the first push only, and waits until the test has written the id of the process.
    let hook = format!(
        "#!/bin/sh\ncd {}\nwhile ! {{ [ -e {pid} ] && {condition}; }}; do sleep 0.01; done\n\
         [ -e {pid}.done ] && exit 0\ntouch {pid}.done\nkill -9 $(cat {pid})\n{on}\n",
        run.display()
    );
    let file = remote.join("hooks/pre-receive");
    fs::create_dir_all(remote.join("hooks")).expect("made");
    fs::write(&file, hook).expect("written");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("executable");
    let sink = format!("hub-git:repo=file://{}", remote.display());
    // Checkpoints take longer than a push, so that the run has not ended when the first push kills it.
    let slow = [
        ("LD_PRELOAD", &*scene.preload),
        ("DELAY_AT", "open /trainer/state.json"),
        ("DELAY_MS", "300"),
    ];
    let process = scene
        .home
        // The hook must not act on the trial push of the preflight.
        .start_with(
            &slow,
            &scene.run(&["--plugin", &sink, "--preflight", "off"]),
        );
    let partial = scene.home.path("pid.partial");
    fs::write(&partial, process.id().to_string()).expect("written");
    fs::rename(partial, scene.home.path("pid")).expect("moved");
    let output = process.output();
    assert_eq!(output.signal(), Some(9), "{output}");
    remote
}

/// Resumes the run and asserts that every checkpoint is pushed once and in order. This includes checkpoints
/// that the killed process left behind.
#[track_caller]
fn goes_on_pushing(scene: &Scene, remote: &Path) {
    let newest = scene.newest().unwrap_or(0);
    scene.goes_on_from(newest, 1);
    assert_eq!(pushed(remote), ["step 10", "step 20", "step 30", "step 40"]);
}

/// Returns the subjects of the run's commits, oldest first.
fn pushed(remote: &Path) -> Vec<String> {
    let log = git(remote, &["log", "--reverse", "--format=%s", "run"]);
    log.lines().map(str::to_owned).collect()
}

/// The run is not resumed. Instead, `host deliver` delivers each of its checkpoints once.
#[test]
fn in_a_push_that_host_deliver_completes() {
    for on in ["exit 0", "exit 1"] {
        let scene = Scene::new();
        let remote = killed_by_hook(&scene, "true", on);
        let standing = scene.home.checkpoints("run");
        let expected: Vec<String> = standing.iter().map(|step| format!("step {step}")).collect();
        for _ in 0..2 {
            scene.home.host(&["deliver", "run"]).succeeded();
            assert_eq!(pushed(&remote), expected);
        }
    }
}

#[test]
fn in_a_push_that_still_arrives() {
    let scene = Scene::new();
    let remote = killed_by_hook(&scene, "true", "exit 0");
    goes_on_pushing(&scene, &remote);
}

#[test]
fn in_a_push_that_does_not_arrive() {
    let scene = Scene::new();
    let remote = killed_by_hook(&scene, "true", "exit 1");
    goes_on_pushing(&scene, &remote);
}

#[test]
fn in_the_deliveries_after_the_last_step() {
    let scene = Scene::new();
    killed_by_hook(&scene, "[ -d checkpoints/step-000040 ]", "exit 1");
    scene.goes_on_from(40, 1);
}

#[test]
fn in_a_resume_before_its_first_step() {
    let scene = Scene::new();
    scene.killed_at("rename /step-000020", &[], &scene.run(&[]));
    scene.killed_at("renamed /run.toml", &[], &["resume", "run"]);
    scene.goes_on_from(10, 1);
}

#[test]
fn in_a_checkpoint_of_a_run_that_was_resumed() {
    let scene = Scene::new();
    scene.killed_at(
        "write /.step-000020.partial/trainer/.tmp*",
        &[],
        &scene.run(&[]),
    );
    scene.killed_at("rename /step-000030", &[], &["resume", "run"]);
    scene.goes_on_from(20, 2);
}
