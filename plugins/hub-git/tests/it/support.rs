use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use host_plugin_sdk::FileEntry;
use hub_git::{Error, Publisher, PushedCheckpoint, Receipt, Result};
use serde_json::Value;
use sha2::{Digest, Sha256};
use test_hub::TestHub;

/// A run folder. It contains checkpoints, and the sink's private folder.
pub(crate) struct Run {
    name: String,
    folder: tempfile::TempDir,
}

/// A checkpoint on disk.
pub(crate) struct Checkpoint {
    pub(crate) step: u64,
    pub(crate) dir: PathBuf,
    pub(crate) files: BTreeMap<String, FileEntry>,
    metrics: BTreeMap<String, f64>,
}

impl Run {
    pub(crate) fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("sink")).expect("the sink's folder");
        let name = name.to_owned();
        Self { name, folder }
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.folder.path().join("sink")
    }

    /// Writes a checkpoint. Its model consists of `model_bytes` pseudorandom bytes, which depend on the step.
    pub(crate) fn checkpoint(&self, step: u64, model_bytes: usize) -> Checkpoint {
        let model = noise(step, model_bytes);
        self.checkpoint_of(
            step,
            &[
                (
                    "config.json",
                    format!("{{\"run\": {:?}}}", self.name).as_bytes(),
                ),
                ("generation_config.json", b"{}"),
                ("model.safetensors", &model),
                ("tokenizer.json", b"{\"model\": {}}"),
                ("trainer/optimizer.safetensors", &noise(step + 1, 64)),
            ],
        )
    }

    pub(crate) fn checkpoint_of(&self, step: u64, files: &[(&str, &[u8])]) -> Checkpoint {
        let dir = self.folder.path().join(format!("step-{step:06}"));
        let mut manifest = BTreeMap::new();
        for (name, bytes) in files {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(&path, bytes).expect("a file");
            let entry = FileEntry {
                sha256: sha256(bytes),
                size: bytes.len() as u64,
            };
            manifest.insert((*name).to_owned(), entry);
        }
        fs::write(dir.join("manifest.json"), "{}").expect("a file");
        let metrics = [("loss/eval", 2.5), ("perplexity", f64::INFINITY)];
        Checkpoint {
            step,
            dir,
            files: manifest,
            metrics: metrics.map(|(name, value)| (name.to_owned(), value)).into(),
        }
    }

    pub(crate) fn publish(
        &self,
        publisher: &Publisher,
        checkpoint: &Checkpoint,
    ) -> Result<Receipt> {
        self.publish_until(publisher, checkpoint, &|| false)
    }

    pub(crate) fn publish_until(
        &self,
        publisher: &Publisher,
        checkpoint: &Checkpoint,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<Receipt> {
        let state_dir = self.state_dir();
        let snapshot = PushedCheckpoint {
            step: checkpoint.step,
            run: &self.name,
            dir: &checkpoint.dir,
            files: &checkpoint.files,
            metrics: &checkpoint.metrics,
            state_dir: &state_dir,
        };
        publisher.publish(&snapshot, cancelled)
    }
}

/// Creates a publisher with this configuration and these environment variables.
pub(crate) fn publisher(config: Value, env: &[(&str, &str)]) -> Result<Publisher> {
    let config = serde_json::from_value(config).expect("a configuration");
    let env = |name: &str| {
        let (_, value) = env.iter().find(|(key, _)| *key == name)?;
        Some((*value).to_owned())
    };
    Publisher::new(config, &env, "git")
}

/// Creates a publisher that uses this token to push to `user/model` on the test hub.
pub(crate) fn hub_publisher(hub: &TestHub, token: &str, more: &[(&str, Value)]) -> Publisher {
    let mut config = serde_json::json!({"repo": "user/model", "timeout_secs": 60});
    for (key, value) in more {
        config[*key] = value.clone();
    }
    publisher(config, &[("HF_ENDPOINT", hub.url()), ("HF_TOKEN", token)]).expect("a publisher")
}

/// The initial `.gitattributes` of `user/model` on the test hub.
pub(crate) const ATTRIBUTES: &str = "*.7z filter=lfs diff=lfs merge=lfs -text\n";

/// Starts a test hub with `user/model`. Returns it with the repository's path.
pub(crate) fn model_hub() -> (TestHub, String) {
    let hub = TestHub::start();
    let repo = hub.create_repo("user/model", &[(".gitattributes", ATTRIBUTES)]);
    let repo = repo.to_str().expect("a path").to_owned();
    (hub, repo)
}

/// Counts the requests that begin with `beginning`.
pub(crate) fn count(hub: &TestHub, beginning: &str) -> usize {
    let requests = hub.requests();
    let fits = |line: &&String| line.starts_with(beginning);
    requests.iter().filter(fits).count()
}

/// Creates an empty bare repository. Returns its temporary folder and its path.
pub(crate) fn bare() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("remote.git");
    let text = path.to_str().expect("a path").to_owned();
    git(
        folder.path(),
        &["init", "--quiet", "--bare", "-b", "main", &text],
    );
    (folder, text)
}

/// Runs git, which must succeed. Returns its stdout.
pub(crate) fn git(dir: &Path, args: &[&str]) -> String {
    String::from_utf8(git_bytes(dir, args)).expect("text")
}

pub(crate) fn git_bytes(dir: &Path, args: &[&str]) -> Vec<u8> {
    let output = Command::new("git")
        .args(args)
        .current_dir(dir)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0")
        .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_NAME"), "test")))
        .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_EMAIL"), "test@localhost")))
        .output()
        .expect("git runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git {args:?}: {stderr}");
    output.stdout
}

/// Returns the commit messages of a branch, newest first.
pub(crate) fn messages(repo: &str, branch: &str) -> Vec<String> {
    let log = git(Path::new(repo), &["log", "--format=%s", branch]);
    log.lines().map(str::to_owned).collect()
}

/// Pushes a commit with these files to a branch, as another user would.
pub(crate) fn commit_by_hand(repo: &str, branch: &str, files: &[(&str, &str)]) {
    let work = tempfile::tempdir().expect("a folder");
    let at = work.path();
    git(at, &["clone", "--quiet", repo, "."]);
    if !git(at, &["ls-remote", repo, &format!("refs/heads/{branch}")]).is_empty() {
        git(at, &["checkout", "--quiet", branch]);
    } else {
        git(at, &["checkout", "--quiet", "--orphan", branch]);
    }
    for (name, text) in files {
        let path = at.join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
    }
    git(at, &["add", "."]);
    git(at, &["commit", "--quiet", "-m", "by hand"]);
    git(
        at,
        &[
            "push",
            "--quiet",
            "origin",
            &format!("HEAD:refs/heads/{branch}"),
        ],
    );
}

/// Returns the total size of all files under a folder.
pub(crate) fn size_of(dir: &Path) -> u64 {
    walk(dir)
        .iter()
        .map(|path| fs::metadata(path).map_or(0, |file| file.len()))
        .sum()
}

/// Returns the disk space of all files under a folder, in whole blocks.
pub(crate) fn room_of(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let room = |path: &PathBuf| fs::metadata(path).map_or(0, |file| file.blocks() * 512);
    walk(dir).iter().map(room).sum()
}

/// Returns all files under a folder.
pub(crate) fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(walk(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// Returns the forms of a token that must not appear in any output.
pub(crate) fn forms(token: &str) -> [String; 3] {
    [
        token.to_owned(),
        BASE64_STANDARD.encode(token),
        BASE64_STANDARD.encode(format!("user:{token}")),
    ]
}

pub(crate) fn temporary(result: Result<Receipt>) -> String {
    match result.expect_err("it fails") {
        Error::Temporary(words) => words,
        other => panic!("not temporary: {other:?}"),
    }
}

pub(crate) fn permanent(result: Result<Receipt>) -> String {
    match result.expect_err("it fails") {
        Error::Permanent(words) => words,
        other => panic!("not permanent: {other:?}"),
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Returns bytes that do not compress.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(len.div_ceil(8)).flatten().take(len).collect()
}
