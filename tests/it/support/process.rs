use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// The time limit for every wait. Normally nothing takes seconds, but a busy machine can be slow.
const LIMIT: Duration = Duration::from_secs(120);

/// A running program. It is killed when this value is dropped.
pub(crate) struct Process {
    what: String,
    child: Child,
    stdout: Lines,
    stderr: Lines,
}

/// The exit status and the output of a program.
#[derive(Debug)]
pub(crate) struct Output {
    what: String,
    status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Self {
        // The description omits the environment, which can contain a secret.
        let arguments: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
        let what = format!("host {}", arguments.join(" "));
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        let stdout = Lines::read("stdout", child.stdout.take().expect("piped"));
        let stderr = Lines::read("stderr", child.stderr.take().expect("piped"));
        Self {
            what,
            child,
            stdout,
            stderr,
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for an event on stdout. Returns the first matching event, even if it was printed before the
    /// call.
    pub(crate) fn event(&self, fits: impl Fn(&Value) -> bool) -> Value {
        self.wait_for(&self.stdout, |line| {
            let event = serde_json::from_str(line).ok()?;
            fits(&event).then_some(event)
        })
    }

    /// Waits for a line on stderr that contains this text.
    pub(crate) fn said(&self, part: &str) -> String {
        self.wait_for(&self.stderr, |line| {
            line.contains(part).then(|| line.to_owned())
        })
    }

    /// Calls `act` until there is a line on stderr that contains this text.
    pub(crate) fn said_while(&self, part: &str, act: impl Fn()) {
        let ends = Instant::now() + LIMIT;
        while !self.stderr.text().contains(part) {
            assert!(Instant::now() < ends, "waited in vain for {part}");
            act();
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for a line on stdout that contains this text.
    pub(crate) fn printed(&self, part: &str) -> String {
        self.wait_for(&self.stdout, |line| {
            line.contains(part).then(|| line.to_owned())
        })
    }

    fn wait_for<T>(&self, lines: &Lines, find: impl Fn(&str) -> Option<T>) -> T {
        lines
            .wait(|heard| heard.lines.iter().find_map(|line| find(line)))
            .unwrap_or_else(|| {
                let (what, out, err) = (&self.what, self.stdout.text(), self.stderr.text());
                panic!("waited in vain for {what}\nstdout:\n{out}\nstderr:\n{err}")
            })
    }

    pub(crate) fn interrupt(&self) {
        self.signal(Signal::INT);
    }

    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// `kill -9`.
    pub(crate) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the process is there");
    }

    /// Waits until the program has ended. Returns its output.
    pub(crate) fn output(mut self) -> Output {
        let ends = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                break status;
            }
            if Instant::now() >= ends {
                let (what, out, err) = (&self.what, self.stdout.text(), self.stderr.text());
                panic!("{what} does not end\nstdout:\n{out}\nstderr:\n{err}");
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        // The last output may not have been read yet.
        for lines in [&self.stdout, &self.stderr] {
            lines.wait(|heard| heard.ended.then_some(()));
        }
        Output {
            what: std::mem::take(&mut self.what),
            status,
            stdout: self.stdout.text(),
            stderr: self.stderr.text(),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Output {
    /// Asserts that the exit code is 0.
    #[track_caller]
    pub(crate) fn succeeded(self) -> Self {
        self.ended_with(0)
    }

    /// Asserts that the program ended with this exit code.
    #[track_caller]
    pub(crate) fn ended_with(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "{self}");
        self
    }

    /// Whether the exit code is 0.
    pub(crate) fn is_success(&self) -> bool {
        self.status.success()
    }

    /// Returns the signal that ended the program.
    pub(crate) fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// Asserts that the program ended with this exit code, one error and one hint. Returns the error and the
    /// hint.
    #[track_caller]
    pub(crate) fn failed_with(&self, code: i32) -> (&str, &str) {
        assert_eq!(self.status.code(), Some(code), "{self}");
        let said = |what: &str| {
            let lines: Vec<&str> = self
                .stderr
                .lines()
                .filter_map(|line| line.strip_prefix(what))
                .collect();
            match lines[..] {
                [line] if !line.trim().is_empty() => line,
                _ => panic!("not exactly one line {what:?}\n{self}"),
            }
        };
        let (error, hint) = (said("error: "), said("hint: "));
        let end = format!("error: {error}\nhint: {hint}\n");
        assert!(self.stderr.ends_with(&end), "{self}");
        (error, hint)
    }

    /// Returns the events that `--json` prints, without the first object, which describes the run.
    pub(crate) fn events(&self) -> Vec<Value> {
        self.objects().into_iter().skip(1).collect()
    }

    /// Returns every line of stdout as JSON.
    pub(crate) fn objects(&self) -> Vec<Value> {
        let read = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}\n{self}"));
        self.stdout.lines().map(read).collect()
    }

    /// Returns all of stdout as one JSON value.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}\n{self}"))
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            what,
            status,
            stdout,
            stderr,
        } = self;
        write!(f, "{what}\n{status}\nstdout:\n{stdout}\nstderr:\n{stderr}")
    }
}

/// The lines of a pipe. A separate thread reads the pipe, so that the program never waits for the test.
struct Lines(Arc<(Mutex<Heard>, Condvar)>);

#[derive(Default)]
struct Heard {
    lines: Vec<String>,
    ended: bool,
}

impl Lines {
    fn read(name: &str, pipe: impl Read + Send + 'static) -> Self {
        let shared = Arc::<(Mutex<Heard>, Condvar)>::default();
        let heard = Arc::clone(&shared);
        let read = move || {
            let mut pipe = BufReader::new(pipe);
            loop {
                let mut line = Vec::new();
                let read = pipe.read_until(b'\n', &mut line);
                let mut heard_so_far = heard.0.lock().expect("not poisoned");
                match read {
                    Ok(1..) => heard_so_far.lines.push(
                        String::from_utf8_lossy(&line)
                            .trim_end_matches('\n')
                            .to_owned(),
                    ),
                    _ => heard_so_far.ended = true,
                }
                heard.1.notify_all();
                if heard_so_far.ended {
                    return;
                }
            }
        };
        // The thread ends when the pipe is closed.
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(read)
            .expect("a thread");
        Self(shared)
    }

    /// Waits until `find` finds something in the lines. Returns `None` if the pipe is closed or the time
    /// limit has passed.
    fn wait<T>(&self, find: impl Fn(&Heard) -> Option<T>) -> Option<T> {
        let ends = Instant::now() + LIMIT;
        let mut heard = self.0.0.lock().expect("not poisoned");
        loop {
            if let Some(found) = find(&heard) {
                return Some(found);
            }
            let left = ends.saturating_duration_since(Instant::now());
            if heard.ended || left.is_zero() {
                return None;
            }
            heard = self.0.1.wait_timeout(heard, left).expect("not poisoned").0;
        }
    }

    fn text(&self) -> String {
        let heard = self.0.0.lock().expect("not poisoned");
        heard.lines.iter().map(|line| line.clone() + "\n").collect()
    }
}

/// Whether a process has installed a handler for a signal.
pub(crate) fn takes(process: u32, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("a process");
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = u64::from_str_radix(caught.expect("a mask").trim(), 16).expect("a mask");
    caught & 1 << (signal.as_raw() - 1) != 0
}
