use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::fs::MemfdFlags;
use rustix::process::{Pid, Signal};

use crate::limit::Limit;
use crate::network::Network;
use crate::token::Token;
use crate::{Error, Result};

/// The git command line, isolated from the user's environment. Git uses no system or user configuration, and
/// no repository in the current folder. Of all attributes files, it uses only those in the branch. It runs no
/// credential helper, prompt, local hook or editor.
///
/// Each call runs in its own process group. The whole group is killed in two cases: when the time limit is
/// reached, and when the calling process ends for any reason.
#[derive(Clone, Debug)]
pub(crate) struct Git {
    program: PathBuf,
    /// Environment variables with secrets. They are removed from the environment of each child.
    hidden: Vec<String>,
    /// The connection settings; the defaults until [`Git::with_network`] sets them.
    network: Network,
}

/// A builder for one call of git.
pub(crate) struct Call<'a> {
    git: &'a Git,
    program: &'a Path,
    args: Vec<OsString>,
    env: Vec<(&'static str, OsString)>,
    stdin: &'a [u8],
    stdout: Option<&'a File>,
    authorization: Option<(&'a str, &'a Token)>,
    /// Whether the call reads the user's and the system's configuration.
    asks_user: bool,
}

/// The result of a call.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

/// The oldest version of git that reads `GIT_CONFIG_COUNT` and `GIT_CONFIG_GLOBAL`.
const OLDEST: (u32, u32) = (2, 32);

/// The shell's exit status if the program does not exist.
const NOT_FOUND: i32 = 127;

/// Maximum bytes of output that are read.
const OUTPUT_BYTES: u64 = 4 << 20;

/// The `GIT_*` variables that every call keeps from the user's environment. Without them, git might not reach
/// the remote.
const KEPT: [&str; 4] = [
    "GIT_EXEC_PATH",
    "GIT_SSH",
    "GIT_SSH_COMMAND",
    "GIT_SSH_VARIANT",
];

/// Configuration of every call. A transfer that stalls for a minute is aborted. Weights do not compress, so
/// compression is off, and large files are streamed. No call starts a housekeeping process. Git does not
/// follow redirects, because it would send the token to the target; `moved.rs` follows them instead. The
/// files for attributes and excludes are set, because git would otherwise read the user's files from default
/// paths.
const CONFIG: [(&str, &str); 12] = [
    ("core.attributesFile", "/dev/null"),
    ("core.excludesFile", "/dev/null"),
    ("http.followRedirects", "false"),
    ("core.hooksPath", "/dev/null"),
    ("core.askPass", ""),
    ("core.compression", "0"),
    ("core.bigFileThreshold", "16m"),
    ("credential.helper", ""),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("http.lowSpeedLimit", "1000"),
    ("http.lowSpeedTime", "60"),
];

/// The shell script that runs a call. It starts the program, and ends the whole process group when standard
/// input is closed. Standard input is a pipe from the calling process. The kernel closes the pipe when that
/// process ends for any reason. Git first receives SIGTERM. It then has two seconds to remove its lock files,
/// which would otherwise stay in a repository on this machine.
const GUARD: &str = r#"exec 3<&0 </dev/null
"$@" 3<&- &
program=$!
{ read -r word <&3; trap '' TERM; kill -TERM 0; sleep 2; kill -KILL 0; } &
guard=$!
wait $program
status=$?
kill $guard
wait $guard 2>/dev/null
exit $status"#;

impl Git {
    /// Checks that git exists and is new enough. `hidden` lists the environment variables that hold secrets.
    ///
    /// # Errors
    /// Returns an error if git does not exist, cannot be run, or is too old.
    pub(crate) fn find(
        program: impl Into<PathBuf>,
        hidden: &[&str],
        limit: &Limit<'_>,
    ) -> Result<Self> {
        let git = Self {
            program: program.into(),
            hidden: hidden.iter().map(|name| (*name).to_owned()).collect(),
            network: Network::default(),
        };
        let output = git.call(["version"]).run(limit)?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        match version(&said) {
            Some(found) if found >= OLDEST => Ok(git),
            _ => Err(Error::Permanent(format!(
                "git {}.{} or later is required, but {} reports {said:?}",
                OLDEST.0,
                OLDEST.1,
                git.program.display()
            ))),
        }
    }

    /// Sets the connection settings.
    pub(crate) fn with_network(self, network: Network) -> Self {
        Self { network, ..self }
    }

    /// Returns the connection settings.
    pub(crate) fn network(&self) -> &Network {
        &self.network
    }

    /// Reads a value of the user's or the system's configuration. Returns `None` if it is not set.
    pub(crate) fn ask_user<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
    ) -> Result<Option<String>> {
        let limit = Limit::new(60, &|| false);
        let mut call = self.call(["config"]);
        call.args
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        call.asks_user = true;
        let output = call.run(&limit)?;
        Ok(output.success().ok().map(|bytes| {
            let text = String::from_utf8_lossy(&bytes);
            text.strip_suffix('\n').unwrap_or(&text).to_owned()
        }))
    }

    /// Returns an error if git does not accept the branch name.
    pub(crate) fn check_branch(&self, branch: &str) -> Result<()> {
        let name = format!("refs/heads/{branch}");
        let limit = Limit::new(60, &|| false);
        let output = self.call(["check-ref-format", &name]).run(&limit)?;
        if output.status.success() {
            return Ok(());
        }
        Err(Error::Permanent(format!("invalid branch name: {branch:?}")))
    }

    /// Returns a call of git with these arguments.
    pub(crate) fn call<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Call<'_> {
        self.call_of(&self.program, args)
    }

    /// Returns a call that starts ssh in the same way as git does, with the same environment variables.
    pub(crate) fn ssh<S: AsRef<OsStr>>(&self, args: &[S]) -> Call<'_> {
        // GIT_SSH_COMMAND is a shell command line, GIT_SSH the name of a program.
        let script = "case $GIT_SSH_COMMAND in \
            '') exec \"$GIT_SSH\" \"$@\" ;; \
            *) eval \"$GIT_SSH_COMMAND \"'\"$@\"' ;; esac";
        let before = ["-c", script, "ssh"].map(OsStr::new);
        let args = args.iter().map(AsRef::as_ref);
        self.call_of(Path::new("sh"), before.into_iter().chain(args))
    }

    fn call_of<'a, S: AsRef<OsStr>>(
        &'a self,
        program: &'a Path,
        args: impl IntoIterator<Item = S>,
    ) -> Call<'a> {
        Call {
            git: self,
            program,
            args: args
                .into_iter()
                .map(|arg| arg.as_ref().to_owned())
                .collect(),
            env: Vec::new(),
            stdin: &[],
            stdout: None,
            authorization: None,
            asks_user: false,
        }
    }
}

impl<'a> Call<'a> {
    pub(crate) fn env(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.env.push((name, value.into()));
        self
    }

    pub(crate) fn stdin(mut self, bytes: &'a [u8]) -> Self {
        self.stdin = bytes;
        self
    }

    /// Writes stdout to a file instead of to memory. The size of this file is not limited.
    pub(crate) fn stdout(mut self, file: &'a File) -> Self {
        self.stdout = Some(file);
        self
    }

    /// Sends the token only to `origin` (`https://host/`). Git receives the token in an environment variable,
    /// because process lists show arguments.
    pub(crate) fn authorization(
        mut self,
        origin: Option<&'a str>,
        token: Option<&'a Token>,
    ) -> Self {
        self.authorization = origin.zip(token);
        self
    }

    /// Runs the call until it ends. Returns `Ok` for any exit status.
    ///
    /// # Errors
    /// Returns an error if git does not exist, the limit was reached, or the process was killed.
    pub(crate) fn run(self, limit: &Limit<'_>) -> Result<Output> {
        limit.check()?;
        // Input and output use files in memory. Pipes would need a thread to drain them, and would block this
        // process while a grandchild keeps one open. Files on disk would fail if the disk is full.
        let memory = || {
            rustix::fs::memfd_create("hub-git", MemfdFlags::CLOEXEC)
                .map(File::from)
                .map_err(|error| Error::Temporary(format!("cannot run git: {error}")))
        };
        let broken = |error: std::io::Error| Error::Temporary(format!("cannot run git: {error}"));
        let (mut stdin, mut stdout, mut stderr) = (memory()?, memory()?, memory()?);
        let mut command;
        let (from, lifeline);
        if self.stdin.is_empty() {
            let (end, ours) = std::io::pipe().map_err(broken)?;
            command = Command::new("sh");
            command.args(["-c", GUARD, "sh"]).arg(self.program);
            (from, lifeline) = (Stdio::from(end), Some(ours));
        } else {
            // A call that reads stdin contacts no server. It ends soon by itself, so it does not need the
            // `GUARD` script.
            stdin.write_all(self.stdin).map_err(broken)?;
            stdin.rewind().map_err(broken)?;
            command = Command::new(self.program);
            (from, lifeline) = (Stdio::from(stdin), None);
        }
        command
            .args(&self.args)
            .stdin(from)
            .stdout(Stdio::from(
                self.stdout.unwrap_or(&stdout).try_clone().map_err(broken)?,
            ))
            .stderr(Stdio::from(stderr.try_clone().map_err(broken)?))
            .process_group(0);
        self.set_environment(&mut command);
        let child = command
            .spawn()
            .map_err(|error| Error::Temporary(format!("cannot run git: {error}")))?;
        // `command` still holds the child's end of the pipe, which only the child may hold.
        drop(command);
        let status = wait(child, limit)?;
        drop(lifeline);
        if status.code() == Some(NOT_FOUND) && self.program != Path::new("sh") {
            let program = self.program.display();
            return Err(Error::Permanent(format!(
                "{program} was not found: install git {}.{} or later",
                OLDEST.0, OLDEST.1
            )));
        }
        let read = |file: &mut File| {
            let mut bytes = Vec::new();
            file.rewind()
                .and_then(|()| file.take(OUTPUT_BYTES).read_to_end(&mut bytes))?;
            Ok(bytes)
        };
        Ok(Output {
            status,
            stdout: read(&mut stdout).map_err(broken)?,
            stderr: String::from_utf8_lossy(&read(&mut stderr).map_err(broken)?).into_owned(),
        })
    }

    fn set_environment(&self, command: &mut Command) {
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            let kept = KEPT.contains(&&*text) || self.asks_user && text.starts_with("GIT_CONFIG");
            if text.starts_with("GIT_") && !kept || self.git.hidden.iter().any(|n| *n == text) {
                command.env_remove(&name);
            }
        }
        command
            .env_remove("SSH_ASKPASS")
            .env("LC_ALL", "C")
            .env("GIT_TERMINAL_PROMPT", "0")
            // With this setting, git uses a repository only if the call names one. By default, it would use
            // the repository in the current folder.
            .env("GIT_DIR", "/dev/null")
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        if self.asks_user {
            return;
        }
        if std::env::var_os("GIT_SSH_COMMAND").is_none() && std::env::var_os("GIT_SSH").is_none() {
            let ssh = "ssh -oBatchMode=yes -oConnectTimeout=30";
            let ssh = self.git.network.ssh().unwrap_or(ssh);
            command.env("GIT_SSH_COMMAND", ssh);
        }
        command
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_ATTR_NOSYSTEM", "1")
            .envs(self.git.network.git_env());
        if self.git.network.has_decided() {
            // `network` has already applied these variables, so git must not apply them again.
            command.env_remove("no_proxy").env_remove("NO_PROXY");
        }
        let header = self.authorization.map(|(origin, token)| {
            let value = format!("Authorization: {}", token.authorization());
            (format!("http.{origin}.extraHeader"), value)
        });
        let config = CONFIG
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .chain(self.git.network.git_config())
            .chain(header);
        let mut count = 0;
        for (key, value) in config {
            command
                .env(format!("GIT_CONFIG_KEY_{count}"), key)
                .env(format!("GIT_CONFIG_VALUE_{count}"), value);
            count += 1;
        }
        command.env("GIT_CONFIG_COUNT", count.to_string());
    }
}

impl Output {
    /// Returns stdout if the exit status is a success, else stderr.
    pub(crate) fn success(self) -> Result<Vec<u8>, String> {
        if self.status.success() {
            Ok(self.stdout)
        } else {
            Err(self.stderr)
        }
    }
}

/// Waits for the child, and kills its process group if the limit is reached first.
fn wait(mut child: Child, limit: &Limit<'_>) -> Result<ExitStatus> {
    let group = Pid::from_child(&child);
    let mut pause = Duration::from_millis(1);
    let lost = |error: std::io::Error| Error::Temporary(format!("cannot wait for git: {error}"));
    loop {
        if let Some(status) = child.try_wait().map_err(lost)? {
            // The shell returns 128 plus the signal's number if a signal ended the program.
            let of_program = status.code().map(|code| code - 128);
            let of_program = of_program.filter(|signal| [9, 15].contains(signal));
            if let Some(signal) = status.signal().or(of_program) {
                // If git itself was killed, the processes that it started must end too.
                let _ = rustix::process::kill_process_group(group, Signal::KILL);
                return Err(Error::Temporary(format!(
                    "git was killed by signal {signal}"
                )));
            }
            return Ok(status);
        }
        if let Err(over) = limit.check() {
            // The group exists until its leader is waited for, so the id cannot have been reused.
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
            child.wait().map_err(lost)?;
            // SIGKILL also reached the other processes. Wait until they have ended and no longer use files.
            for _ in 0..200 {
                if rustix::process::test_kill_process_group(group).is_err() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            return Err(over);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Parses `git version 2.47.3` as (2, 47).
fn version(said: &str) -> Option<(u32, u32)> {
    let mut numbers = said.strip_prefix("git version ")?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Returns the git directory of a repository: its `.git` folder if it has one, else the path itself.
pub(crate) fn git_dir(path: &Path) -> PathBuf {
    let inside = path.join(".git");
    if inside.is_dir() {
        inside
    } else {
        path.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn script(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("git");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a script");
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&path, mode).expect("a script");
        (folder, path)
    }

    #[test]
    fn versions() {
        assert_eq!(version("git version 2.47.3"), Some((2, 47)));
        assert_eq!(version("git version 2.39.5 (Apple Git-154)"), Some((2, 39)));
        assert_eq!(version("hub version 2.14"), None);
    }

    #[test]
    fn git_must_exist_and_be_new_enough() {
        let limit = Limit::new(10, &|| false);
        let error = Git::find("/nowhere/git", &[], &limit).expect_err("not found");
        assert_eq!(
            error,
            Error::Permanent("/nowhere/git was not found: install git 2.32 or later".to_owned())
        );
        let (_folder, old) = script("echo git version 2.20.1");
        let error = Git::find(old, &[], &limit).expect_err("too old");
        assert!(
            error.to_string().contains("2.32 or later is required"),
            "{error}"
        );
    }

    #[test]
    fn no_child_survives_the_time_limit() {
        let folder = tempfile::tempdir().expect("a folder");
        let pid = folder.path().join("pid");
        let text = format!(
            "sleep 600 & echo $! > {0}.new; mv {0}.new {0}; wait",
            pid.display()
        );
        let (_script, program) = script(&text);
        let git = Git {
            program,
            hidden: Vec::new(),
            network: Network::default(),
        };
        let written = || pid.exists();
        let limit = Limit::new(60, &written);
        assert_eq!(
            git.call(["push"]).run(&limit).expect_err("ended"),
            Error::Cancelled
        );
        let grandchild = std::fs::read_to_string(&pid).expect("a pid");
        let status = PathBuf::from(format!("/proc/{}/stat", grandchild.trim()));
        // The grandchild's new parent may need a moment to reap it. A zombie (Z) is no longer running.
        while std::fs::read_to_string(&status).is_ok_and(|stat| !stat.contains(") Z ")) {
            std::thread::yield_now();
        }
    }

    #[test]
    fn git_does_not_inherit_the_users_environment() {
        let (_folder, program) = script("env; echo; git config --list");
        let token_config = serde_json::json!({"repo": "a/b"});
        let config = serde_json::from_value(token_config).expect("a configuration");
        let remote = crate::remote::Remote::parse("a/b", &|_| None).expect("a remote");
        let token = Token::find(&config, &remote, &|_| Some("hf_secret".to_owned()));
        let token = token.expect("found").expect("one");
        let hidden = vec!["HOME".to_owned()];
        let network = Network::default();
        let git = Git {
            program,
            hidden,
            network,
        };
        let limit = Limit::new(10, &|| false);
        let run = |call: Call<'_>| {
            let output = call.env("LC_ALL", "C").run(&limit).expect("it runs");
            String::from_utf8(output.stdout).expect("text")
        };
        let plain = run(git.call(["x"]));
        assert!(plain.contains("GIT_CONFIG_GLOBAL=/dev/null"), "{plain}");
        assert!(plain.contains("core.hookspath=/dev/null"), "{plain}");
        assert!(!plain.contains("\nHOME="), "{plain}");
        assert!(!plain.contains("extraHeader"), "{plain}");
        let with_token = run(git.call(["x"]).authorization(remote.origin(), Some(&token)));
        let key = "http.https://huggingface.co/.extraHeader";
        assert!(with_token.contains(key), "{with_token}");
        assert!(with_token.contains(token.authorization()), "{with_token}");
    }
}
