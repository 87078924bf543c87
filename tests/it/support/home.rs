use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::built::built;
use super::process::{Output, Process};

/// The configuration of a run that takes a tenth of a second: 20 steps with a checkpoint every 5 steps.
/// `Home::new` adds the device.
const TINY: &str = r#"
data = "data"
model = "tiny"
vocab_size = 300
threads = 1
train_batch_size = 4
valid_batch_size = 4
shuffle_buffer = 64
learning_rate = 3e-3
num_warmup_steps = 2
gradient_accumulation_steps = 1
gradient_checkpointing = false
max_train_steps = 20
max_eval_steps = 4
seq_length = 32
save_checkpoint_steps = 5
system_metrics_secs = 0
runs_dir = "runs"
"#;

/// A temporary home folder in which the program runs, so that it neither reads the user's files nor leaves
/// files behind. It contains a corpus (`data`) and a configuration (`tiny.toml`).
pub(crate) struct Home(TempDir);

impl Home {
    pub(crate) fn new() -> Self {
        let home = Self(tempfile::tempdir().expect("a folder"));
        write_corpus(&home.path("data"));
        let device = Self::device();
        let deterministic = device != "cpu";
        let place = format!("device = {device:?}\ndeterministic = {deterministic}\n");
        fs::write(home.path("tiny.toml"), place + TINY).expect("written");
        home
    }

    /// Returns the device that the tests train on: the value of `TEST_DEVICE`, or else the CPU.
    pub(crate) fn device() -> String {
        std::env::var("TEST_DEVICE").unwrap_or_else(|_| "cpu".to_owned())
    }

    /// Returns a path in the home.
    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.0.path().join(below)
    }

    /// Like `path`, but returns text.
    pub(crate) fn text_path(&self, below: &str) -> String {
        let path = self.path(below);
        path.to_str().expect("a path in UTF-8").to_owned()
    }

    /// Returns a run's folder.
    pub(crate) fn run_dir(&self, run: &str) -> PathBuf {
        self.path("runs").join(run)
    }

    /// Returns a checkpoint's folder.
    pub(crate) fn checkpoint(&self, run: &str, step: u64) -> PathBuf {
        let checkpoints = self.run_dir(run).join("checkpoints");
        checkpoints.join(format!("step-{step:06}"))
    }

    /// Returns the steps of the checkpoints in a run's folder, in order.
    pub(crate) fn checkpoints(&self, run: &str) -> Vec<u64> {
        let entries = fs::read_dir(self.run_dir(run).join("checkpoints")).expect("checkpoints");
        let mut steps: Vec<u64> = entries
            .filter_map(|entry| {
                let name = entry.expect("an entry").file_name();
                name.to_str()?.strip_prefix("step-")?.parse().ok()
            })
            .collect();
        steps.sort_unstable();
        steps
    }

    /// Returns a command for `host` in this home. Of the caller's environment variables, the command receives
    /// only `PATH`.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(built("host"));
        command
            .args(args)
            .current_dir(self.0.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.0.path())
            .env("XDG_CACHE_HOME", self.path(".cache"))
            .env("XDG_CONFIG_HOME", self.path(".config"))
            .env("XDG_DATA_HOME", self.path(".local/share"))
            .env("TMPDIR", self.0.path())
            .env("GIT_CONFIG_NOSYSTEM", "1");
        command
    }

    /// Starts `host`.
    pub(crate) fn start(&self, args: &[&str]) -> Process {
        Process::start(&mut self.command(args))
    }

    /// Runs `host` to completion.
    pub(crate) fn host(&self, args: &[&str]) -> Output {
        self.start(args).output()
    }

    /// Starts `host` with these environment variables.
    pub(crate) fn start_with(&self, env: &[(&str, &str)], args: &[&str]) -> Process {
        Process::start(self.command(args).envs(env.iter().copied()))
    }

    /// Runs `host` with these environment variables to completion.
    pub(crate) fn host_with(&self, env: &[(&str, &str)], args: &[&str]) -> Output {
        self.start_with(env, args).output()
    }

    /// Returns the processes that run a plugin for a `host` process in this home.
    pub(crate) fn children(&self) -> Vec<u32> {
        let here = fs::canonicalize(self.0.path()).expect("a folder");
        let is_child = |pid: &u32| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            command.starts_with(b"host\0plugin\0serve\0")
                && fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == here)
        };
        fs::read_dir("/proc")
            .expect("processes")
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(is_child)
            .collect()
    }

    /// Waits until the children of a killed host have ended.
    #[track_caller]
    pub(crate) fn wait_for_no_child(&self) {
        let ends = Instant::now() + Duration::from_secs(60);
        while !self.children().is_empty() {
            assert!(Instant::now() < ends, "{:?} still run", self.children());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts a tiny run with this name.
    pub(crate) fn start_training(&self, name: &str, more: &[&str]) -> Process {
        self.start(&[&["run", "tiny.toml", "--name", name], more].concat())
    }

    /// Trains a tiny model to completion, as a run with this name.
    pub(crate) fn train(&self, name: &str, more: &[&str]) -> Output {
        self.start_training(name, more).output()
    }
}

/// Writes text from which a tiny model learns something in a few steps.
fn write_corpus(folder: &Path) {
    fs::create_dir(folder).expect("made");
    for file in 0..40 {
        let mut text = String::new();
        for line in 0..40 {
            let (a, b) = (file * 7 % 11, line * 5 % 13);
            let sum = a + b;
            text += &format!("fn f_{a}(x: u32) -> u32 {{\n    x * {b} + {sum}\n}}\n\n");
        }
        fs::write(folder.join(format!("{file:02}.rs")), text).expect("written");
    }
}
