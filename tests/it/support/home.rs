use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::built::built;
use super::process::{Output, Process};

/// A training of a tenth of a second: 20 steps, of which every fifth ends in a checkpoint. Where it
/// trains comes beside it.
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

/// A home folder of the test's own, in which the program works: nothing of the user's is read, and
/// nothing is left. It holds a corpus (`data`) and a configuration (`tiny.toml`).
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

    /// Where the tests train: on the device that `TEST_DEVICE` names, else on the CPU.
    pub(crate) fn device() -> String {
        std::env::var("TEST_DEVICE").unwrap_or_else(|_| "cpu".to_owned())
    }

    /// A path in it.
    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.0.path().join(below)
    }

    /// The same as text.
    pub(crate) fn text_path(&self, below: &str) -> String {
        let path = self.path(below);
        path.to_str().expect("a path in UTF-8").to_owned()
    }

    /// A run's folder.
    pub(crate) fn run_dir(&self, run: &str) -> PathBuf {
        self.path("runs").join(run)
    }

    /// A checkpoint's folder.
    pub(crate) fn checkpoint(&self, run: &str, step: u64) -> PathBuf {
        let checkpoints = self.run_dir(run).join("checkpoints");
        checkpoints.join(format!("step-{step:06}"))
    }

    /// The steps of the checkpoints that stand in a run's folder, in order.
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

    /// `host` with these arguments in this home, with no variable of the caller's but `PATH`.
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

    /// Starts it.
    pub(crate) fn start(&self, args: &[&str]) -> Process {
        Process::start(&mut self.command(args))
    }

    /// Lets it work to the end.
    pub(crate) fn host(&self, args: &[&str]) -> Output {
        self.start(args).output()
    }

    /// Starts it with variables of the environment.
    pub(crate) fn start_with(&self, env: &[(&str, &str)], args: &[&str]) -> Process {
        Process::start(self.command(args).envs(env.iter().copied()))
    }

    /// The same to the end.
    pub(crate) fn host_with(&self, env: &[(&str, &str)], args: &[&str]) -> Output {
        self.start_with(env, args).output()
    }

    /// The processes that run a plugin for a host of this home.
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

    /// Waits until the children of a host that was killed are gone.
    #[track_caller]
    pub(crate) fn wait_for_no_child(&self) {
        let ends = Instant::now() + Duration::from_secs(60);
        while !self.children().is_empty() {
            assert!(Instant::now() < ends, "{:?} go on", self.children());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts a tiny training under this name.
    pub(crate) fn start_training(&self, name: &str, more: &[&str]) -> Process {
        self.start(&[&["run", "tiny.toml", "--name", name], more].concat())
    }

    /// Trains to the end.
    pub(crate) fn train(&self, name: &str, more: &[&str]) -> Output {
        self.start_training(name, more).output()
    }
}

/// Text of a kind that a tiny model learns something from in a few steps.
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
