//! Measures the time to push a checkpoint of 300 MB, from the call of `publish` until the branch is updated.
//! Compares this time with the sum of two times. One is the time that `sha256sum` needs for the weights file.
//! The other is the time that `curl` needs to upload this file to the same server.
//!
//! The server is the test hub, which runs in this process. It consists of git's http-backend and an LFS
//! server that checks every digest. Each push is the first one to a new repository. The push and the two
//! programs take turns, so that changes of the machine's speed affect all three equally. The times of
//! `sha256sum` and `curl` include the start of the process.
//!
//! One more push runs in a separate process, whose peak memory is reported.
//!
//! `cargo bench -p hub-git --bench push -- [--json FILE] [--rounds N] [--megabytes N]`

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use host_plugin_sdk::FileEntry;
use hub_git::{Publisher, PushedCheckpoint};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use test_hub::{TestHub, WRITE_TOKEN};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let value_of = |flag: &str| {
        let at = arguments.iter().position(|argument| argument == flag)?;
        arguments.get(at + 1).cloned()
    };
    let number = |flag: &str, default: usize| {
        value_of(flag).map_or(default, |n| n.parse().expect("a number"))
    };
    if let Some(hub) = value_of(PUSH) {
        let dir = PathBuf::from(value_of("--dir").expect("a folder"));
        return push_alone(&hub, &dir);
    }
    let rounds = number("--rounds", 5);
    let size = number("--megabytes", 300) * 1_000_000;
    let scene = Scene::new(size);
    // Reads the file into the page cache, so that no measured time includes reading from the disk.
    let _ = scene.sha256sum();
    let mut times: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for round in 0..rounds {
        let mut note = |name, secs| times.entry(name).or_default().push(secs);
        note("hub-git", scene.push(round));
        note("sha256sum", scene.sha256sum());
        note("curl", scene.curl(round));
    }
    let ratios: Vec<f64> = (0..rounds)
        .map(|n| times["hub-git"][n] / (times["sha256sum"][n] + times["curl"][n]))
        .collect();
    println!("{} MB, {rounds} rounds", size / 1_000_000);
    for (name, secs) in &times {
        println!("{name:10} {:.2} s {}", median(secs), spread(secs));
    }
    println!(
        "hub-git takes {:.2}x the time of sha256sum and curl {}",
        median(&ratios),
        spread(&ratios)
    );
    let memory = scene.memory();
    println!("peak memory of a process that pushes it: {memory:.1} MB");
    if let Some(file) = value_of("--json") {
        let report = json!({ "bytes": size, "secs": times, "ratios": ratios, "memory_mb": memory });
        fs::write(file, report.to_string()).expect("written");
    }
}

/// The flag with which this program starts itself as a separate process that pushes once.
const PUSH: &str = "--push";

/// Pushes the checkpoint in a folder, and prints the peak memory of this process in KiB.
fn push_alone(hub: &str, dir: &Path) {
    let state_dir = dir.with_extension("sink");
    fs::create_dir(&state_dir).expect("a folder");
    publish(hub, "user/alone", dir, &files_of(dir), &state_dir);
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    println!("{}", peak.expect("a peak").trim().trim_end_matches(" kB"));
}

/// Returns the files of a checkpoint, with their digests.
fn files_of(dir: &Path) -> BTreeMap<String, FileEntry> {
    let entry = |name: &str| {
        let path = dir.join(name);
        let mut file = fs::File::open(&path).expect("a file");
        let (mut hash, mut piece) = (Sha256::new(), [0; 1 << 16]);
        let mut size = 0;
        // The file is read in pieces, because holding all of it in memory would raise the reported peak
        // memory.
        while let read @ 1.. = file.read(&mut piece).expect("a file") {
            hash.update(&piece[..read]);
            size += read as u64;
        }
        let digest = hash.finalize();
        let sha256 = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        (name.to_owned(), FileEntry { sha256, size })
    };
    ["model.safetensors", "config.json"].map(entry).into()
}

/// Pushes a checkpoint. Returns the time in seconds.
fn publish(
    hub: &str,
    name: &str,
    dir: &Path,
    files: &BTreeMap<String, FileEntry>,
    state_dir: &Path,
) -> f64 {
    let env = |name: &str| match name {
        "HF_ENDPOINT" => Some(hub.to_owned()),
        "HF_TOKEN" => Some(WRITE_TOKEN.to_owned()),
        _ => None,
    };
    let config = serde_json::from_value(json!({ "repo": name })).expect("a configuration");
    let publisher = Publisher::new(config, &env, "git").expect("a publisher");
    let snapshot = PushedCheckpoint {
        step: 1,
        run: "bench",
        dir,
        files,
        metrics: &BTreeMap::new(),
        state_dir,
    };
    let begun = Instant::now();
    publisher.publish(&snapshot, &|| false).expect("pushed");
    begun.elapsed().as_secs_f64()
}

/// A checkpoint and a server.
struct Scene {
    folder: tempfile::TempDir,
    hub: TestHub,
    weights: PathBuf,
    files: BTreeMap<String, FileEntry>,
}

impl Scene {
    fn new(size: usize) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = folder.path().join("step-000001");
        fs::create_dir(&dir).expect("a folder");
        let weights = dir.join("model.safetensors");
        fs::write(&weights, noise(size)).expect("written");
        fs::write(dir.join("config.json"), "{}").expect("written");
        fs::write(dir.join("manifest.json"), "{}").expect("written");
        let files = files_of(&dir);
        let hub = TestHub::start();
        Self {
            folder,
            hub,
            weights,
            files,
        }
    }

    /// Pushes the checkpoint to a new repository. Returns the time in seconds.
    fn push(&self, round: usize) -> f64 {
        let name = format!("user/pushed-{round}");
        self.hub.create_repo(&name, &[("README.md", "# A model\n")]);
        let state_dir = self.folder.path().join(format!("sink-{round}"));
        fs::create_dir(&state_dir).expect("a folder");
        let dir = self.weights.parent().expect("a folder");
        let secs = publish(self.hub.url(), &name, dir, &self.files, &state_dir);
        self.forget(&name);
        secs
    }

    /// Starts a process that pushes. Returns its peak memory in MB.
    fn memory(&self) -> f64 {
        self.hub
            .create_repo("user/alone", &[("README.md", "# A model\n")]);
        let said = Command::new(std::env::current_exe().expect("this program"))
            .args([PUSH, self.hub.url(), "--dir"])
            .arg(self.weights.parent().expect("a folder"))
            .output()
            .expect("it starts");
        let said = String::from_utf8(said.stdout).expect("a number");
        let kibibytes: f64 = said.trim().parse().expect("a number");
        kibibytes * 1024.0 / 1e6
    }

    fn sha256sum(&self) -> f64 {
        let mut command = Command::new("sha256sum");
        timed(command.arg(&self.weights).stdout(Stdio::null()))
    }

    /// Uploads the file with curl. Returns the time of the upload in seconds. This time does not include the
    /// earlier request for the upload link.
    fn curl(&self, round: usize) -> f64 {
        let name = format!("user/curled-{round}");
        self.hub.create_repo(&name, &[("README.md", "# A model\n")]);
        let FileEntry { sha256, size } = &self.files["model.safetensors"];
        let body = json!({
            "operation": "upload",
            "transfers": ["basic"],
            "objects": [{"oid": sha256, "size": size}],
        });
        let batch = format!("{}.git/info/lfs/objects/batch", self.hub.repo_url(&name));
        let answer = Command::new("curl")
            .args(["--silent", "--show-error", "--fail", "--user"])
            .arg(format!("user:{WRITE_TOKEN}"))
            .args(["--header", "Content-Type: application/vnd.git-lfs+json"])
            .args(["--data", &body.to_string(), &batch])
            .output()
            .expect("curl");
        let answer: Value = serde_json::from_slice(&answer.stdout).expect("an answer");
        let upload = &answer["objects"][0]["actions"]["upload"];
        let mut command = Command::new("curl");
        command.args([
            "--silent",
            "--show-error",
            "--fail",
            "--output",
            "/dev/null",
        ]);
        for (header, value) in upload["header"].as_object().into_iter().flatten() {
            let value = value.as_str().expect("text");
            command.args(["--header", &format!("{header}: {value}")]);
        }
        command.arg("--upload-file").arg(&self.weights);
        let secs = timed(command.arg(upload["href"].as_str().expect("an address")));
        self.forget(&name);
        secs
    }

    /// Removes the repository, to free disk space.
    fn forget(&self, name: &str) {
        fs::remove_dir_all(self.hub.repo_path(name)).expect("removed");
    }
}

/// Runs a program. Returns the time in seconds, including the start of the process.
fn timed(command: &mut Command) -> f64 {
    let begun = Instant::now();
    let status = command.status().expect("it starts");
    assert!(status.success(), "{command:?}");
    begun.elapsed().as_secs_f64()
}

/// Returns incompressible bytes, generated with xorshift (Marsaglia 2003).
fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.write_all(&state.to_le_bytes()).expect("memory");
    }
    bytes.truncate(size);
    bytes
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn spread(values: &[f64]) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    format!("({least:.2}-{most:.2})")
}
