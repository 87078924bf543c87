//! A run that is killed at any moment of its work goes on to the same bytes.
//!
//! The moments are not waited for but made: a preloaded library kills the program in the middle of an
//! operation on a file, a hook of the remote repository in the middle of a push, a metric in the
//! middle of an evaluation. `kill -9` does the same from outside, at a moment of its own choice.

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

/// What is trained everywhere: all that a resume has to remember takes part.
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

/// What a run comes to that nobody kills.
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

/// All metrics of the run but those that measure time.
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

/// A home in which a run is killed and goes on.
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

    /// Runs the program, and it is killed at this moment.
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

    /// The step of the newest checkpoint.
    fn newest(&self) -> Option<u64> {
        self.home.checkpoints("run").last().copied()
    }

    /// Resumes the run to its end, and finds it equal to the undisturbed one.
    #[track_caller]
    fn goes_on_from(&self, step: u64, generation: u32) -> Output {
        assert_eq!(self.newest().unwrap_or(0), step);
        let resumed = self.home.host(&["resume", "run"]).succeeded();
        let said = match step {
            0 => "beginning again: the run was ended before its first checkpoint".to_owned(),
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
        // Nothing half made is left.
        let left = fs::read_dir(dir.join("checkpoints")).expect("a folder");
        let left = left.map(|entry| entry.expect("an entry").file_name());
        let odd: Vec<_> = left
            .filter(|name| !name.to_string_lossy().starts_with("step-"))
            .collect();
        assert_eq!(odd, [""; 0]);
    }
}

#[test]
fn while_the_run_is_made() {
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
    // They are written under another name first.
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
fn before_a_checkpoint_has_its_name() {
    let scene = Scene::new();
    scene.killed_at("rename /step-000030", &[], &scene.run(&[]));
    scene.goes_on_from(20, 1);
}

/// The store is slow, so that a checkpoint that did not wait for it would stand before its events.
#[test]
fn when_a_checkpoint_has_its_name() {
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
    // The checkpoint before may still have been under way.
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

/// The sink has its own process, which would go on writing beside the resumed run.
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

/// The sink's folder has the last checkpoint, whole, and nothing half made.
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

/// A run that a hook of the repository it pushes to kills, when `condition` (in sh) holds; then the
/// hook goes `on`.
fn killed_by_hook(scene: &Scene, condition: &str, on: &str) -> PathBuf {
    let remote = bare_repository(&scene.home);
    let (pid, run) = (scene.home.text_path("pid"), scene.home.run_dir("run"));
    // The first push only; and it waits for a test that is slow to say whom to kill.
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
    // Checkpoints take longer than a push, so that the run is not over when the first is killed.
    let slow = [
        ("LD_PRELOAD", &*scene.preload),
        ("DELAY_AT", "open /trainer/state.json"),
        ("DELAY_MS", "300"),
    ];
    let process = scene
        .home
        // The hook is for a checkpoint, and not for the push that is tried before the first step.
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

/// The run goes on, and every checkpoint is pushed, those that the killed process left included, each
/// once and in order.
#[track_caller]
fn goes_on_pushing(scene: &Scene, remote: &Path) {
    let newest = scene.newest().unwrap_or(0);
    scene.goes_on_from(newest, 1);
    assert_eq!(pushed(remote), ["step 10", "step 20", "step 30", "step 40"]);
}

/// The subjects of the run's commits, oldest first.
fn pushed(remote: &Path) -> Vec<String> {
    let log = git(remote, &["log", "--reverse", "--format=%s", "run"]);
    log.lines().map(str::to_owned).collect()
}

/// The run does not go on, but its checkpoints are delivered, each once.
#[test]
fn in_a_push_that_is_made_up_for() {
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
fn in_a_push_that_arrives_all_the_same() {
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
