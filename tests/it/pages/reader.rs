use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::block::{Block, Deed, Shown, is_printed};
use crate::support::built;

/// A simulated reader of the pages. The reader has a built host and a compiler, but an empty home and no
/// network.
pub(super) struct Reader(TempDir);

impl Reader {
    pub(super) fn new() -> Self {
        let reader = Self(tempfile::tempdir().expect("a folder"));
        for folder in [reader.folder(), reader.notes()] {
            fs::create_dir(folder).expect("made");
        }
        reader
    }

    /// Returns the reader's home.
    pub(super) fn home(&self) -> &Path {
        self.0.path()
    }

    /// Returns the folder of the reader's plugins.
    pub(super) fn folder(&self) -> PathBuf {
        self.0.path().join("plugins")
    }

    /// Returns the folder for the output of commands.
    fn notes(&self) -> PathBuf {
        self.0.path().join("notes")
    }

    /// Returns a command that runs a program in the folder of the plugins.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(match program {
            "host" => built("host"),
            _ => program.into(),
        });
        let var = |name: &str| std::env::var_os(name).unwrap_or_default();
        let tools = |name: &str, folder: &str| match std::env::var_os(name) {
            Some(path) => PathBuf::from(path),
            None => Path::new(&var("HOME")).join(folder),
        };
        let mut path = built("host")
            .parent()
            .expect("a folder")
            .as_os_str()
            .to_owned();
        path.push(":");
        path.push(var("PATH"));
        command
            .current_dir(self.folder())
            .env_clear()
            .env("PATH", path)
            .env("HOME", self.0.path())
            .env("TMPDIR", self.0.path())
            .env("CARGO_HOME", tools("CARGO_HOME", ".cargo"))
            .env("RUSTUP_HOME", tools("RUSTUP_HOME", ".rustup"))
            .env("CARGO_NET_OFFLINE", "true")
            // With this folder, the SDK is built only once, for all projects and for later test runs.
            .env("CARGO_BUILD_BUILD_DIR", built("guide"))
            .env("RUSTFLAGS", "-Dwarnings")
            .env("CFLAGS", "-O1 -Wall -Wextra -Werror");
        command
    }

    /// Does what the blocks say, in order and in one shell: runs commands, and writes and checks files.
    ///
    /// # Panics
    /// Panics if a command fails or does not print what its block shows, or if a file lacks the expected
    /// lines.
    pub(super) fn read(&self, blocks: &[Block]) {
        let script = self.0.path().join("script.sh");
        fs::write(&script, self.script(blocks)).expect("written");
        let output = self
            .command("bash")
            .arg(&script)
            .output()
            .expect("bash runs");
        let block = |number: usize| {
            let Block { place, deed } = &blocks[number];
            format!("{place}: {deed:?}")
        };
        if !output.status.success() {
            let reached = fs::read_to_string(self.notes().join("block")).expect("a number");
            let reached: usize = reached.trim().parse().expect("a number");
            let mut said = String::from_utf8_lossy(&output.stderr).into_owned();
            for command in 0.. {
                let Ok(printed) = fs::read_to_string(self.printed(reached, command)) else {
                    break;
                };
                said.push_str(&printed);
            }
            panic!("{}\n{said}", block(reached));
        }
        for (number, Block { deed, .. }) in blocks.iter().enumerate() {
            match deed {
                Deed::Run { commands, .. } => {
                    for (command, Shown { prints, .. }) in commands.iter().enumerate() {
                        let printed = self.printed(number, command);
                        let printed = fs::read_to_string(printed).expect("printed");
                        let lines: Vec<&str> = printed.lines().collect();
                        let is_good = prints.as_ref().is_none_or(|p| is_printed(p, &lines));
                        assert!(is_good, "{}\nprinted:\n{printed}", block(number));
                    }
                }
                Deed::Find { text, .. } => {
                    let file = self.notes().join(format!("{number}.file"));
                    let file = fs::read_to_string(file).expect("a file");
                    assert!(file.contains(text), "{}\nthe file:\n{file}", block(number));
                }
                Deed::Write { .. } => {}
            }
        }
    }

    fn printed(&self, block: usize, command: usize) -> PathBuf {
        self.notes().join(format!("{block}.{command}"))
    }

    fn script(&self, blocks: &[Block]) -> String {
        let notes = self.notes();
        let mut script = String::from("set -euo pipefail\n");
        for (number, Block { deed, .. }) in blocks.iter().enumerate() {
            writeln!(script, "echo {number} > {}/block", notes.display()).expect("a string");
            match deed {
                Deed::Write { path, text } => {
                    let file = notes.join(format!("{number}.text"));
                    fs::write(&file, text).expect("written");
                    writeln!(
                        script,
                        "mkdir -p \"$(dirname '{path}')\"; cp {} '{path}'",
                        file.display()
                    )
                }
                Deed::Find { path, .. } => {
                    writeln!(script, "cp '{path}' {}/{number}.file", notes.display())
                }
                Deed::Run { commands, beside } => {
                    let goes_on = matches!(
                        blocks.get(number + 1),
                        Some(Block {
                            deed: Deed::Run { beside: true, .. },
                            ..
                        })
                    );
                    for (at, shown) in commands.iter().enumerate() {
                        self.run(&mut script, shown, &self.printed(number, at), goes_on);
                    }
                    writeln!(script, "{}", if *beside { "wait $first" } else { ":" })
                }
            }
            .expect("a string");
        }
        script
    }

    /// Appends a command to the script, with its output redirected to the file `printed`. If `goes_on` is
    /// set, the command is a run that continues in the background, and the script waits until the run has
    /// printed its address.
    fn run(&self, script: &mut String, shown: &Shown, printed: &Path, goes_on: bool) {
        let Shown { command, prints } = shown;
        let to = format!("> {} 2>&1", printed.display());
        let fails = prints
            .iter()
            .flatten()
            .any(|line| line.starts_with("error:"));
        match (goes_on, fails) {
            (true, _) => writeln!(
                script,
                "{{\n{command}\n}} {to} & first=$!\n\
                 tail -F --pid=$first {} 2> /dev/null | grep -q -m 1 '^gRPC at' || :",
                printed.display()
            ),
            (false, true) => writeln!(script, "if {{\n{command}\n}} {to}; then exit 1; fi"),
            (false, false) => writeln!(script, "{{\n{command}\n}} {to}"),
        }
        .expect("a string");
    }
}

/// Runs a command, which must succeed, and returns its stdout.
#[track_caller]
pub(super) fn succeed(command: &mut Command) -> String {
    let output = command.output().expect("the program starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{said}");
    String::from_utf8(output.stdout).expect("text")
}
