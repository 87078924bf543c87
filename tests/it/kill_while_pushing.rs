//! A run pushes its checkpoints, and is killed repeatedly at random moments. Nevertheless, each checkpoint
//! must be on the branch exactly once, and in order.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use test_hub::{TestHub, WRITE_TOKEN};

use crate::support::{Home, git};

const KILLS: usize = 20;
const STEPS: usize = 60;

/// Random moments for the kills, from xorshift (Marsaglia 2003). A failed test shows the seed.
struct Moments(u64);

impl Moments {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let seed = u64::from(now.expect("a time").subsec_nanos()) | 1;
        println!("moments of seed {seed}");
        Self(seed)
    }

    /// Returns how long the next process lives.
    fn next(&mut self) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        // The first checkpoints are written after about half a second.
        Duration::from_millis(200 + self.0 % 1000)
    }
}

#[test]
fn after_twenty_kills_each_checkpoint_is_pushed_once() {
    let hub = TestHub::start();
    let remote = hub.create_repo("ann/model", &[("README.md", "# A model\n")]);
    // Each update of a branch is logged.
    git(&remote, &["config", "core.logAllRefUpdates", "always"]);
    let home = Home::new();
    let url = hub.url().to_owned();
    let env = [("HF_ENDPOINT", &*url), ("HF_TOKEN", WRITE_TOKEN)];

    let mut moments = Moments::new();
    let mut runs = vec!["run-0".to_owned()];
    let mut kills = 0;
    while kills < KILLS {
        let run = runs.last().expect("a run").clone();
        let process = home.start_with(&env, &command(&home, &run));
        let file = home.run_dir(&run).join("run.toml");
        while !file.exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(moments.next());
        process.kill();
        let output = process.output();
        home.wait_for_no_child();
        match output.signal() {
            Some(9) => kills += 1,
            // The run completed before the kill, so the next run starts.
            _ => {
                output.succeeded();
                runs.push(format!("run-{}", runs.len()));
            }
        }
    }
    let last = runs.last().expect("a run");
    let begun = home.run_dir(last).join("run.toml").exists();
    if begun {
        home.host_with(&env, &command(&home, last)).succeeded();
    } else {
        runs.pop();
    }
    for run in &runs {
        check(&home, &hub, &remote, run);
    }
    git(&remote, &["fsck", "--strict"]);
}

/// Returns the arguments that start or resume the run.
fn command<'a>(home: &Home, run: &'a str) -> Vec<&'a str> {
    if home.run_dir(run).join("run.toml").exists() {
        return vec!["resume", run];
    }
    let begin = ["run", "tiny.toml", "--name", run];
    let long = ["--max-train-steps", "60", "--save-checkpoint-steps", "1"];
    // In this test, a process is killed after about a second. A preflight alone would take that long.
    let unasked = ["--preflight", "off"];
    let sink = [
        "--max-eval-steps",
        "1",
        "--plugin",
        "hub-git:repo=ann/model",
    ];
    [&begin[..], &long, &unasked, &sink].concat()
}

/// Asserts that each step has one commit on the branch, in order. Asserts that the branch was updated once
/// per commit. Asserts that the run's deliveries name the commits. Asserts that the LFS objects of the
/// commits exist.
fn check(home: &Home, hub: &TestHub, remote: &Path, run: &str) {
    let log = git(remote, &["log", "--reverse", "--format=%H %s", run]);
    let commits: Vec<(&str, &str)> = log
        .lines()
        .map(|line| line.split_once(' ').expect("a subject"))
        .filter(|(_, subject)| *subject != "initial commit")
        .collect();
    let subjects: Vec<&str> = commits.iter().map(|(_, subject)| *subject).collect();
    let expected: Vec<String> = (1..=STEPS).map(|step| format!("step {step}")).collect();
    assert_eq!(subjects, expected);

    let moves = git(remote, &["reflog", "show", "--format=%H", run]);
    let mut moves: Vec<&str> = moves.lines().collect();
    moves.reverse();
    let ids: Vec<&str> = commits.iter().map(|(id, _)| *id).collect();
    assert_eq!(moves, ids);

    let shown = home.host(&["runs", "show", run, "--json"]).succeeded();
    let shown = shown.json();
    let ledger: Vec<(&Value, &Value)> = shown["deliveries"]
        .as_array()
        .expect("a ledger")
        .iter()
        .map(|entry| (&entry["state"], &entry["location"]))
        .collect();
    let delivered = json!("delivered");
    let ids: Vec<Value> = ids.iter().map(|id| json!(id)).collect();
    let expected: Vec<(&Value, &Value)> = ids.iter().map(|id| (&delivered, id)).collect();
    assert_eq!(ledger, expected);

    for (id, _) in commits {
        let weights = git(remote, &["show", &format!("{id}:model.safetensors")]);
        let (oid, size) = test_hub::parse_pointer(weights.as_bytes()).expect("a pointer");
        let object = std::fs::metadata(hub.lfs_object("ann/model", &oid));
        assert_eq!(object.expect("an object").len(), size);
    }
}
