//! The token of `hub-git` reaches only the plugin's child process and the git processes that need the token.
//!
//! The tests read the arguments and the environments of a run's processes, and every file that the run
//! leaves.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use test_hub::{Fault, TestHub, WRITE_TOKEN};

use crate::support::{Fixture, Home, Output};

/// A token that the server rejects. It contains characters that are escaped in a URL.
const WRONG_TOKEN: &str = "hf_Wrong/Token+Of%The=Tests";

/// Returns the forms in which a token could be found: unchanged, encoded in Base64 without and with a user
/// name (as in HTTP headers), and escaped for a URL.
fn shapes(token: &str) -> [String; 4] {
    let escaped = token.replace('%', "%25");
    let escaped = escaped.replace('/', "%2F").replace('+', "%2B");
    [
        token.to_owned(),
        BASE64_STANDARD.encode(token),
        BASE64_STANDARD.encode(format!("user:{token}")),
        escaped.replace('=', "%3D"),
    ]
}

fn holds(text: &[u8], token: &str) -> bool {
    shapes(token).iter().any(|shape| {
        text.windows(shape.len())
            .any(|part| part == shape.as_bytes())
    })
}

/// The first git command that contacts the server.
const FIRST_CALL: &str = "git ls-remote";

/// An observed process.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    pid: u32,
    parent: u32,
    command: String,
    environment: Vec<u8>,
}

/// Returns the current descendants of a process.
fn descendants(of: u32) -> BTreeSet<Seen> {
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The name of the program is in parentheses, and can contain any characters.
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| {
            let mut fields = rest.split(' ');
            fields.nth(1)?.parse::<u32>().ok()
        });
        parents.extend(parent.map(|parent| (pid, parent)));
    }
    let is_below = |pid: &u32| {
        let mut at = *pid;
        while let Some(&parent) = parents.get(&at) {
            if parent == of {
                return true;
            }
            at = parent;
        }
        false
    };
    let below = parents.keys().filter(|pid| is_below(pid));
    below
        .filter_map(|&pid| {
            let proc = PathBuf::from(format!("/proc/{pid}"));
            let command = fs::read(proc.join("cmdline")).ok()?;
            let environment = fs::read(proc.join("environ")).ok()?;
            // Between fork and exec, a process still has its parent's command line.
            let again = fs::read(proc.join("cmdline")).ok()?;
            let command_text = String::from_utf8_lossy(&command).replace('\0', " ");
            (command == again && !command.is_empty()).then_some(Seen {
                pid,
                parent: parents[&pid],
                command: command_text,
                environment,
            })
        })
        .collect()
}

/// A run that pushes its checkpoints. Its other plugins also have their own processes.
struct Scene {
    home: Home,
    hub: TestHub,
    repo: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let hub = TestHub::start();
        let repo = hub.create_repo("user/model", &[(".gitattributes", "")]);
        let home = Home::new();
        Self { home, hub, repo }
    }

    /// Runs to the end, and observes the processes during the run. Then searches for the token in everything
    /// that the run left.
    fn run(&self, token: &str, settings: &str, preflight: &str) -> Output {
        self.run_with(token, settings, preflight, &[])
    }

    /// Like `run`, with more arguments.
    fn run_with(&self, token: &str, settings: &str, preflight: &str, more: &[&str]) -> Output {
        let sink = format!("hub-git:repo=user/model{settings}");
        let kept = format!("local-disk:dir={}", self.home.text_path("kept"));
        let args = [
            "run",
            "tiny.toml",
            "--name",
            "run",
            "--json",
            "--plugin",
            &sink,
            "--plugin",
            &kept,
            "--plugin",
            "perplexity:mode=process",
            "--preflight",
            preflight,
        ];
        let args = [&args[..], more].concat();
        let env = [("HF_ENDPOINT", self.hub.url()), ("HF_TOKEN", token)];
        // The server delays the first git command until the test has observed the command's process.
        let found = Arc::new(AtomicBool::new(false));
        let wait = Fault::Wait(Arc::clone(&found));
        self.hub.fault("git-upload-pack", wait, 1);
        let process = self.home.start_with(&env, &args);
        let host = process.id();
        let (done, is_done) = sync_channel::<()>(0);
        let (output, seen) = std::thread::scope(|scope| {
            let watch = scope.spawn(move || {
                let mut seen = BTreeSet::new();
                let pause = Duration::from_millis(2);
                while is_done.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                    seen.extend(descendants(host));
                    if seen.iter().any(|seen| seen.command.contains(FIRST_CALL)) {
                        found.store(true, Ordering::SeqCst);
                    }
                }
                seen
            });
            let output = process.output();
            drop(done);
            (output, watch.join().expect("no panic"))
        });
        self.assert_hidden(token, host, &output, &seen);
        output
    }

    fn assert_hidden(&self, token: &str, host: u32, output: &Output, seen: &BTreeSet<Seen>) {
        assert!(!holds(output.stdout.as_bytes(), token), "{output}");
        assert!(!holds(output.stderr.as_bytes(), token), "{output}");
        let shown = self.home.host(&["runs", "show", "run", "--json"]);
        assert!(!holds(shown.stdout.as_bytes(), token), "{shown}");
        for file in all_files(&self.home.path("")) {
            let bytes = fs::read(&file).expect("a file");
            assert!(!holds(&bytes, token), "{}", file.display());
        }

        let mut serving = BTreeSet::new();
        let mut calls = BTreeSet::new();
        for process in seen {
            let command = process.command.as_str();
            assert!(!holds(command.as_bytes(), token), "{command}");
            let knows = holds(&process.environment, token);
            let program = command.split(' ').next().unwrap_or_default();
            if !program.ends_with("host") {
                calls.insert((git_command(command), knows));
            } else if process.parent == host && command.starts_with("host plugin serve") {
                serving.insert((process.pid, knows));
            }
            // Any other process was just forked and has not called exec yet.
        }
        // Even the sink was started without the token in its environment, because `/proc` shows that
        // environment to other processes. The sink gets the token later.
        assert!(serving.len() >= 3, "{serving:?}");
        assert!(serving.iter().all(|(_, knows)| !knows), "{serving:?}");
        // Only git commands that contact the server, and processes that git starts for them, have the token.
        assert!(calls.contains(&("ls-remote", true)), "{calls:?}");
        let local = [
            "version",
            "init",
            "cat-file",
            "read-tree",
            "hash-object",
            "update-index",
            "check-attr",
            "write-tree",
            "commit-tree",
            "show",
            "ls-tree",
            "check-ref-format",
        ];
        for command in local {
            assert!(!calls.contains(&(command, true)), "{command}: {calls:?}");
        }
    }
}

/// Returns git's subcommand, such as `push` for `/usr/libexec/git-core/git -c x=y push …`. The line can also
/// be the command line of a shell. That shell runs git, and ends git when the host ends.
#[track_caller]
fn git_command(line: &str) -> &str {
    let line = line
        .split_once("exit $status sh ")
        .map_or(line, |(_, call)| call);
    let mut words = line.split(' ');
    let program = words.next().expect("a program");
    let name = program.rsplit('/').next().expect("a name");
    assert!(name.starts_with("git"), "{line}");
    match name.strip_prefix("git-") {
        Some(command) => command,
        None => words
            .find(|word| !word.starts_with('-') && !word.contains('='))
            .unwrap_or_default(),
    }
}

fn all_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        match fs::symlink_metadata(&path).expect("a file").file_type() {
            kind if kind.is_dir() => found.extend(all_files(&path)),
            kind if kind.is_file() => found.push(path),
            _ => {}
        }
    }
    found
}

#[test]
fn a_push_that_arrives_does_not_leak_the_token() {
    let scene = Scene::new();
    scene.run(WRITE_TOKEN, "", "fail").succeeded();
    let config = scene
        .home
        .run_dir("run")
        .join("sinks/hub-git/repo.git/config");
    assert!(config.is_file(), "{}", config.display());
}

#[test]
fn fetching_a_model_does_not_leak_the_token() {
    let scene = Scene::new();
    let env = [("HF_ENDPOINT", scene.hub.url()), ("HF_TOKEN", WRITE_TOKEN)];
    let base = [
        "run",
        "tiny.toml",
        "--name",
        "base",
        "--max-train-steps",
        "5",
    ];
    let push = ["--plugin", "hub-git:repo=user/model"];
    scene
        .home
        .host_with(&env, &[&base[..], &push].concat())
        .succeeded();
    let model = ["--model", "hub:user/model@base"];
    scene.run_with(WRITE_TOKEN, "", "fail", &model).succeeded();
}

#[test]
fn a_rejected_token_is_not_printed() {
    let scene = Scene::new();
    let output = scene.run(WRONG_TOKEN, "", "warn");
    output.failed_with(4);
    assert!(
        output.stdout.contains("the token was not accepted"),
        "{output}"
    );
}

#[test]
fn a_token_in_the_answer_of_a_remote_is_masked() {
    let scene = Scene::new();
    let hook = scene.repo.join("hooks/pre-receive");
    let [plain, alone, basic, _] = shapes(WRITE_TOKEN);
    let text = format!("#!/bin/sh\necho 'no: {plain} {alone} {basic}' >&2\nexit 1\n");
    fs::write(&hook, text).expect("a hook");
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).expect("a hook");
    // The fault occurs once before the first step, and once at the first checkpoint.
    scene.hub.fault("objects/batch", Fault::Echo(422), 2);
    let output = scene.run(WRITE_TOKEN, "", "warn");
    output.failed_with(4);
    assert!(
        output.stdout.contains("refused: Basic ***: ***"),
        "{output}"
    );
    assert!(output.stdout.contains("no: *** *** ***"), "{output}");
}

#[test]
fn a_remote_that_hangs_does_not_leak_the_token() {
    let scene = Scene::new();
    scene.hub.fault("git-receive-pack", Fault::Hang, 1);
    let output = scene
        .run(WRITE_TOKEN, ",timeout_secs=10", "off")
        .succeeded();
    assert!(output.stdout.contains("took longer than 10 s"), "{output}");
}

/// A plugin in a separate process searches for all secrets that are not its own. It searches its environment,
/// and what `/proc` shows about the host and about the host's other children.
#[test]
fn a_plugins_process_finds_no_secret_of_another() {
    let home = Home::new();
    let spy = Fixture::spy("spy")
        .build(&home.path(""))
        .display()
        .to_string();
    let secrets = [
        ("HF_TOKEN", "hf-secret-of-the-hub"),
        ("READ_ME", "token-to-read-the-service"),
        ("CONTROL_ME", "token-to-control-the-service"),
        ("SINK_TOKEN", "token-of-another-sink"),
    ];
    let words: String = secrets
        .iter()
        .map(|(_, value)| format!("{value}\n"))
        .collect();
    let list = home.text_path("words");
    fs::write(&list, words + "not-a-secret\n").expect("written");
    let repo = home.text_path("remote.git");
    let sink = format!("hub-git:repo={repo},create=true,token_env=SINK_TOKEN");
    let spy = format!("{spy}:mode=process");
    let mut env = secrets.to_vec();
    env.extend([("LOOK_FOR", &*list), ("PUBLIC", "not-a-secret")]);
    let args = [
        "run",
        "tiny.toml",
        "--name",
        "spied",
        "--plugin",
        &sink,
        "--plugin",
        &spy,
        "--plugin",
        "perplexity:mode=process",
        "--read-token-env",
        "READ_ME",
        "--control-token-env",
        "CONTROL_ME",
    ];
    let output = home.host_with(&env, &args).succeeded();
    assert!(output.stderr.contains("spy: looked"), "{output}");
    // The search works: in every place, it finds a variable that is not secret.
    for place in [
        "its environment",
        "its own block",
        "its parent's block",
        "another child's block",
    ] {
        let found = format!("found not-a-secret in {place}");
        assert!(output.stderr.contains(&found), "{found}: {output}");
    }
    for (_, value) in secrets {
        assert!(!output.stderr.contains(value), "{output}");
    }
}
