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
use crate::token::Token;
use crate::{Error, Result};

/// The git command line, run so that nothing of the user's surroundings changes what it does: no
/// system or user configuration, no credential helper, no prompt, no hook of ours, no editor.
///
/// Each call is a process group of its own, which is killed as a whole when its time is over.
#[derive(Clone, Debug)]
pub(crate) struct Git {
    program: PathBuf,
    /// Variables that hold secrets, which no child gets.
    hidden: Vec<String>,
}

/// One call of git, being put together.
pub(crate) struct Call<'a> {
    git: &'a Git,
    program: &'a Path,
    args: Vec<OsString>,
    env: Vec<(&'static str, OsString)>,
    stdin: &'a [u8],
    stdout: Option<&'a File>,
    authorization: Option<(&'a str, &'a Token)>,
}

/// What a call came to.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

/// The oldest git that takes configuration by `GIT_CONFIG_COUNT` and `GIT_CONFIG_GLOBAL`.
const OLDEST: (u32, u32) = (2, 32);

/// Longest output that is looked at.
const OUTPUT_BYTES: u64 = 4 << 20;

/// Variables of git's that the user may have set to make the remote reachable at all.
const KEPT: [&str; 6] = [
    "GIT_EXEC_PATH",
    "GIT_SSH",
    "GIT_SSH_COMMAND",
    "GIT_SSH_VARIANT",
    "GIT_SSL_CAINFO",
    "GIT_SSL_CAPATH",
];

/// Configuration of every call. A transfer that stands still for a minute is given up. Weights do
/// not compress, so git shall not try, and it shall stream what is large. No call leaves a
/// housekeeping process behind.
const CONFIG: [(&str, &str); 9] = [
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

impl Git {
    /// Finds out whether git is there and new enough. `hidden` are the variables that hold secrets.
    ///
    /// # Errors
    /// It is not.
    pub(crate) fn find(
        program: impl Into<PathBuf>,
        hidden: &[&str],
        limit: &Limit<'_>,
    ) -> Result<Self> {
        let git = Self {
            program: program.into(),
            hidden: hidden.iter().map(|name| (*name).to_owned()).collect(),
        };
        let output = git.call(["version"]).run(limit)?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        match version(&said) {
            Some(found) if found >= OLDEST => Ok(git),
            _ => Err(Error::Permanent(format!(
                "git {}.{} or later is needed, but {} says {said:?}",
                OLDEST.0,
                OLDEST.1,
                git.program.display()
            ))),
        }
    }

    /// Whether a branch may be called so.
    pub(crate) fn check_branch(&self, branch: &str) -> Result<()> {
        let name = format!("refs/heads/{branch}");
        let limit = Limit::new(60, &|| false);
        let output = self.call(["check-ref-format", &name]).run(&limit)?;
        if output.status.success() {
            return Ok(());
        }
        Err(Error::Permanent(format!("{branch:?} cannot name a branch")))
    }

    /// A call with these arguments.
    pub(crate) fn call<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Call<'_> {
        self.call_of(&self.program, args)
    }

    /// A call of ssh as git itself would make it, by the same variables.
    pub(crate) fn ssh<S: AsRef<OsStr>>(&self, args: &[S]) -> Call<'_> {
        // A command is for the shell, a program is not.
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

    /// Puts the output into a file, however long it is, and not into memory.
    pub(crate) fn stdout(mut self, file: &'a File) -> Self {
        self.stdout = Some(file);
        self
    }

    /// Sends the token to `origin` (`https://host/`) and nowhere else. It travels in the environment,
    /// where no list of processes shows it.
    pub(crate) fn authorization(
        mut self,
        origin: Option<&'a str>,
        token: Option<&'a Token>,
    ) -> Self {
        self.authorization = origin.zip(token);
        self
    }

    /// Runs it to its end, whatever its exit status.
    ///
    /// # Errors
    /// There is no git, the limit is over, or it was killed.
    pub(crate) fn run(self, limit: &Limit<'_>) -> Result<Output> {
        limit.check()?;
        // Files in memory instead of pipes: nobody has to empty them, a grandchild that keeps one
        // open holds nobody up, and a full disk does not matter.
        let memory = || {
            rustix::fs::memfd_create("hub-git", MemfdFlags::CLOEXEC)
                .map(File::from)
                .map_err(|error| Error::Temporary(format!("cannot run git: {error}")))
        };
        let broken = |error: std::io::Error| Error::Temporary(format!("cannot run git: {error}"));
        let (mut stdin, mut stdout, mut stderr) = (memory()?, memory()?, memory()?);
        stdin.write_all(self.stdin).map_err(broken)?;
        stdin.rewind().map_err(broken)?;

        let mut command = Command::new(self.program);
        command
            .args(&self.args)
            .stdin(Stdio::from(stdin))
            .stdout(Stdio::from(
                self.stdout.unwrap_or(&stdout).try_clone().map_err(broken)?,
            ))
            .stderr(Stdio::from(stderr.try_clone().map_err(broken)?))
            .process_group(0);
        self.set_environment(&mut command);
        let child = command.spawn().map_err(|error| {
            let program = self.program.display();
            match error.kind() {
                std::io::ErrorKind::NotFound => Error::Permanent(format!(
                    "{program} is not there: install git {}.{} or later",
                    OLDEST.0, OLDEST.1
                )),
                _ => Error::Temporary(format!("cannot run {program}: {error}")),
            }
        })?;
        let status = wait(child, limit)?;
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
            let kept = KEPT.contains(&&*text);
            if text.starts_with("GIT_") && !kept || self.git.hidden.iter().any(|n| *n == text) {
                command.env_remove(&name);
            }
        }
        if std::env::var_os("GIT_SSH_COMMAND").is_none() && std::env::var_os("GIT_SSH").is_none() {
            command.env("GIT_SSH_COMMAND", "ssh -oBatchMode=yes -oConnectTimeout=30");
        }
        command
            .env_remove("SSH_ASKPASS")
            .env("LC_ALL", "C")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        let header = self.authorization.map(|(origin, token)| {
            let value = format!("Authorization: {}", token.authorization());
            (format!("http.{origin}.extraHeader"), value)
        });
        let config = CONFIG
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
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
    /// The output, if git was content.
    pub(crate) fn success(self) -> Result<Vec<u8>, String> {
        if self.status.success() {
            Ok(self.stdout)
        } else {
            Err(self.stderr)
        }
    }
}

/// Waits for the child, and kills its whole group if the limit comes first.
fn wait(mut child: Child, limit: &Limit<'_>) -> Result<ExitStatus> {
    let group = Pid::from_child(&child);
    let mut pause = Duration::from_millis(1);
    let lost = |error: std::io::Error| Error::Temporary(format!("cannot wait for git: {error}"));
    loop {
        if let Some(status) = child.try_wait().map_err(lost)? {
            if let Some(signal) = status.signal() {
                // Somebody killed git itself; what it had started must not go on alone.
                let _ = rustix::process::kill_process_group(group, Signal::KILL);
                return Err(Error::Temporary(format!(
                    "git was killed by signal {signal}"
                )));
            }
            return Ok(status);
        }
        if let Err(over) = limit.check() {
            // The group exists until its leader is waited for, so the number is still ours.
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
            child.wait().map_err(lost)?;
            // The others die by themselves; a moment later nothing of them touches our files.
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

/// `git version 2.47.3` as (2, 47).
fn version(said: &str) -> Option<(u32, u32)> {
    let mut numbers = said.strip_prefix("git version ")?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Whether a folder looks like what git calls a repository: bare, or with a `.git` inside.
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
    fn git_must_be_there_and_new_enough() {
        let limit = Limit::new(10, &|| false);
        let error = Git::find("/nowhere/git", &[], &limit).expect_err("not there");
        assert_eq!(
            error,
            Error::Permanent("/nowhere/git is not there: install git 2.32 or later".to_owned())
        );
        let (_folder, old) = script("echo git version 2.20.1");
        let error = Git::find(old, &[], &limit).expect_err("too old");
        assert!(
            error.to_string().contains("2.32 or later is needed"),
            "{error}"
        );
    }

    #[test]
    fn when_the_time_is_over_no_child_survives() {
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
        };
        let written = || pid.exists();
        let limit = Limit::new(60, &written);
        assert_eq!(
            git.call(["push"]).run(&limit).expect_err("ended"),
            Error::Cancelled
        );
        let grandchild = std::fs::read_to_string(&pid).expect("a pid");
        let status = PathBuf::from(format!("/proc/{}/stat", grandchild.trim()));
        // Its new parent may take a moment to collect it; a zombie (Z) no longer runs.
        while std::fs::read_to_string(&status).is_ok_and(|stat| !stat.contains(") Z ")) {
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_users_surroundings_stay_outside() {
        let (_folder, program) = script("env; echo; git config --list");
        let token_config = serde_json::json!({"repo": "a/b"});
        let config = serde_json::from_value(token_config).expect("a configuration");
        let remote = crate::remote::Remote::parse("a/b", None).expect("a remote");
        let token = Token::find(&config, &remote, &|_| Some("hf_secret".to_owned()));
        let token = token.expect("found").expect("one");
        let hidden = vec!["HOME".to_owned()];
        let git = Git { program, hidden };
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
