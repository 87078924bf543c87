use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::{Home, Output, Process};

/// A file system of a few megabytes for the runs of a home.
///
/// It is in a separate mount namespace, which an ordinary user may create on most systems. The program runs
/// there, and the test reads the files through `/proc`. The file system is removed when this value is
/// dropped.
pub(crate) struct SmallDisk<'a> {
    home: &'a Home,
    holder: Child,
    runs: PathBuf,
}

impl<'a> SmallDisk<'a> {
    /// Creates the file system. Prints a line and returns `None` if the system allows no mount namespace.
    pub(crate) fn new(home: &'a Home, megabytes: u32) -> Option<Self> {
        let runs = home.path("runs");
        std::fs::create_dir(&runs).expect("made");
        let script =
            format!("mount -t tmpfs -o size={megabytes}m tmpfs \"$0\" && echo ready && read end");
        let mut holder = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
            .arg(&runs)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        let mut said = String::new();
        let out = holder.stdout.take().expect("piped");
        BufReader::new(out).read_line(&mut said).expect("read");
        if said != "ready\n" {
            holder.wait().expect("a child");
            let _ = writeln!(std::io::stderr(), "SKIPPED: no mount namespace here");
            return None;
        }
        Some(Self { home, holder, runs })
    }

    fn command(&self, program: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--preserve-credentials", "--user", "--mount", "--target"])
            .arg(self.holder.id().to_string())
            .args(["sh", "-c", "cd \"$0\" && exec \"$@\""])
            .arg(self.home.path(""))
            .args(program);
        command
    }

    /// Starts `host` in the home, with the runs on this disk.
    pub(crate) fn start(&self, args: &[&str]) -> Process {
        let plain = self.home.command(args);
        let mut program = vec![plain.get_program().to_str().expect("UTF-8")];
        program.extend(plain.get_args().map(|arg| arg.to_str().expect("UTF-8")));
        let mut command = self.command(&program);
        command.env_clear();
        let env = plain.get_envs();
        command.envs(env.filter_map(|(name, value)| Some((name, value?))));
        Process::start(&mut command)
    }

    /// Runs `host` to completion.
    pub(crate) fn host(&self, args: &[&str]) -> Output {
        self.start(args).output()
    }

    /// Returns a path to a run's folder. The test can use this path although it runs outside of the
    /// namespace.
    pub(crate) fn run_dir(&self, run: &str) -> PathBuf {
        self.seen(&self.runs.join(run))
    }

    fn seen(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.id()));
        root.join(path.strip_prefix("/").expect("an absolute path"))
    }

    /// Changes the size of the disk.
    pub(crate) fn resize(&self, megabytes: u32) {
        let runs = self.runs.to_str().expect("UTF-8");
        let size = format!("remount,size={megabytes}m");
        self.does(&["mount", "-o", &size, runs]);
    }

    /// Runs a program that mounts something in the namespace, and retries if the disk is busy. A disk cannot
    /// become read-only while a file on it is open for writing.
    #[track_caller]
    pub(crate) fn does(&self, program: &[&str]) {
        let began = Instant::now();
        loop {
            let output = self.command(program).env("LC_ALL", "C").output();
            let output = output.expect("a program");
            if output.status.success() {
                return;
            }
            let stderr = String::from_utf8_lossy(&output.stderr);
            let is_busy = stderr.contains("busy") && began.elapsed() < Duration::from_secs(30);
            assert!(is_busy, "{program:?}: {stderr}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Fills the disk to the last byte. May be called again.
    pub(crate) fn fill(&self) {
        let path = self.seen(&self.runs.join("ballast"));
        let mut options = std::fs::OpenOptions::new();
        let ballast = options.append(true).create(true).open(path);
        let mut ballast = ballast.expect("made");
        let mut chunk = &[0; 1 << 20][..];
        while !chunk.is_empty() {
            // The part that fits is written before the failure.
            if ballast.write_all(chunk).is_err() {
                chunk = &chunk[..chunk.len() / 2];
            }
        }
    }

    /// Removes the file that filled the disk.
    pub(crate) fn empty(&self) {
        std::fs::remove_file(self.seen(&self.runs.join("ballast"))).expect("removed");
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        // The script ends when its input is closed.
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}
