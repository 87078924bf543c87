//! Runs a part of a test in a child process.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::test::{Finding, Outcome, Stop, Verdict, fault, skip};
use host_plugin::raw::signal_name;

/// A child writes its verdict to this file descriptor. It is -1 in a process that is not a child.
static SAID: AtomicI32 = AtomicI32::new(-1);
/// A child writes its current stage to this file descriptor. After a crash, the last stage is reported. The
/// descriptor is -1 if stages are not recorded.
static STAGE: AtomicI32 = AtomicI32::new(-1);
/// Maximum number of bytes of a plugin's stderr output that are kept.
const MOST_STDERR: u64 = 64 << 10;
/// Largest file that a test may write, in bytes.
const LARGEST_FILE: u64 = 1 << 30;

/// The result of a child process.
#[derive(Debug)]
pub(super) struct Ended {
    how: How,
    /// The verdict of the child's function, if it finished.
    verdict: Option<Outcome>,
    stage: String,
    pub(super) stderr: String,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Exit(i32),
    Signal(i32),
    TimedOut,
}

/// Records what happens next, for example "update, given a 0-d nll".
pub(super) fn stage(what: &str) {
    let fd = STAGE.load(Ordering::Relaxed);
    if fd >= 0 {
        // The text has a fixed width, so that one write replaces the previous text.
        let note = format!("{what:\0<256}");
        // SAFETY: the bytes are readable, and writing to a closed descriptor only causes an error.
        unsafe { libc::pwrite(fd, note.as_ptr().cast(), note.len().min(256), 0) };
    }
}

/// Returns the file descriptor that [`stage`] writes to, for a signal handler.
pub(super) fn stage_fd() -> i32 {
    STAGE.load(Ordering::Relaxed)
}

/// Runs a part of a test in a child process. Kills all processes that the child leaves running.
pub(super) fn contained(limit: Duration, body: impl FnOnce() -> Verdict) -> io::Result<Ended> {
    let (said, stage, stderr) = (
        tempfile::tempfile()?,
        tempfile::tempfile()?,
        tempfile::tempfile()?,
    );
    let child = Child::start(Some(&stderr), || {
        STAGE.store(stage.as_raw_fd(), Ordering::Relaxed);
        SAID.store(said.as_raw_fd(), Ordering::Relaxed);
        say(body());
    })?;
    let how = child.wait(limit)?;
    child.kill();
    let mut note = [0; 256];
    let length = stage.read_at(&mut note, 0)?;
    let stage = String::from_utf8_lossy(&note[..length]);
    Ok(Ended {
        how,
        verdict: outcome_of(&end_of(said, u64::MAX)?),
        stage: stage.trim_end_matches('\0').to_owned(),
        stderr: end_of(stderr, MOST_STDERR)?,
    })
}

impl Ended {
    /// Returns the outcome of the test: the child's verdict if the child finished normally, otherwise a
    /// finding.
    pub(super) fn outcome(&self, limit: Duration) -> Outcome {
        let during = match self.stage.as_str() {
            "" => "while loading".to_owned(),
            stage => format!("in {stage}"),
        };
        let finding = match (self.how, &self.verdict) {
            (How::Exit(0), Some(verdict)) => return verdict.clone(),
            (How::Signal(signal), _) if self.stage.starts_with(WROTE) => Finding::new(
                format!("{}, and was killed by {}", self.stage, signal_name(signal)),
                "tensors are borrowed and read-only",
                "copy the data before changing it; in C declare the data pointer as const",
            ),
            (How::Signal(signal), _) => Finding::new(
                format!("was killed by {} {during}", signal_name(signal)),
                "for unusable input, a plugin returns an error status and passes a message to set_error, without crashing",
                "debug it with --only and --in-process: gdb --args host plugin check …",
            ),
            (How::Exit(101), _) => Finding::new(
                format!("ended the check with a panic {during}"),
                "a plugin never lets a panic escape to the host",
                "see its stderr",
            ),
            (How::Exit(code), _) => Finding::new(
                format!("ended the process with status {code} {during}"),
                "a plugin does not call exit",
                "return an error instead",
            ),
            (How::TimedOut, _) => Finding::new(
                format!("did not return within {} s {during}", limit.as_secs_f64()),
                "every call returns, and publish returns soon after cancel",
                "look for an endless loop or a lock that is never released; --time-limit raises the limit",
            ),
        };
        Outcome::Failed(finding)
    }

    /// Returns the outcome as a verdict. A test that runs only a part of itself in a child can return this
    /// verdict as its own.
    pub(super) fn verdict(&self, limit: Duration) -> Verdict {
        match self.outcome(limit) {
            Outcome::Passed => Ok(()),
            Outcome::Warned(finding) => Err(Stop::Warning(finding)),
            Outcome::Failed(finding) => Err(Stop::Fault(finding)),
            Outcome::Skipped(reason) => skip(reason),
        }
    }
}

fn say(verdict: Verdict) {
    let json = json_of(&Outcome::of(verdict)).to_string();
    let fd = SAID.load(Ordering::Relaxed);
    // SAFETY: the bytes are readable; the descriptor belongs to the child.
    unsafe { libc::pwrite(fd, json.as_ptr().cast(), json.len(), 0) };
}

/// Reports the verdict and ends this child process. This is needed if a thread does not return, because the
/// child then cannot finish normally. If this process is not a child, only returns `stop`.
pub(super) fn say_and_exit(stop: Stop) -> Stop {
    if SAID.load(Ordering::Relaxed) < 0 {
        return stop;
    }
    say(Err(stop));
    // SAFETY: the call has no requirements; it ends the process immediately.
    unsafe { libc::_exit(0) }
}

/// If the plugin wrote into its inputs, the text of `Ended::stage` starts with this.
pub(super) const WROTE: &str = "wrote into its inputs";

/// A forked process, the leader of its own process group.
pub(super) struct Child {
    id: libc::pid_t,
    /// A pidfd, which becomes readable when the process has ended.
    handle: OwnedFd,
}

impl Child {
    /// Forks. The child runs `body` and ends without running this process's destructors. The child's stdout
    /// is redirected to its stderr.
    pub(super) fn start(stderr: Option<&File>, body: impl FnOnce()) -> io::Result<Self> {
        // Without a flush, both processes would write the buffered output.
        io::stdout().flush()?;
        // SAFETY: this process has one thread: the suite has only one, and a test forks before it loads the
        // plugin. The child is therefore a complete copy and can do anything that this process can.
        let id = unsafe { libc::fork() };
        match id {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                enter_child(stderr);
                let code = match catch_unwind(AssertUnwindSafe(body)) {
                    Ok(()) => 0,
                    Err(_) => 101,
                };
                // SAFETY: the call has no requirements; it ends the child immediately.
                unsafe { libc::_exit(code) }
            }
            id => {
                // Both processes set the group, because either can be the first to need it. It does no harm
                // if the second call fails.
                // SAFETY: the call only changes the group of a process.
                unsafe { libc::setpgid(id, id) };
                // SAFETY: the child exists until it is waited for; the call returns a descriptor or -1.
                let handle = unsafe { libc::syscall(libc::SYS_pidfd_open, id, 0) };
                let handle = i32::try_from(handle).unwrap_or(-1);
                if handle < 0 {
                    return Err(io::Error::last_os_error());
                }
                // SAFETY: the descriptor is new.
                let handle = unsafe { OwnedFd::from_raw_fd(handle) };
                Ok(Self { id, handle })
            }
        }
    }

    /// Waits until the process has ended. Kills it at the time limit.
    fn wait(&self, limit: Duration) -> io::Result<How> {
        let ends = Instant::now() + limit;
        loop {
            let left = ends.saturating_duration_since(Instant::now());
            let millis = i32::try_from(left.as_millis().saturating_add(1)).unwrap_or(i32::MAX);
            let mut poll = libc::pollfd {
                fd: self.handle.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: the pointer refers to exactly one valid pollfd.
            match unsafe { libc::poll(&raw mut poll, 1, millis) } {
                1.. => return self.reap(),
                0 => {
                    self.kill();
                    self.reap()?;
                    return Ok(How::TimedOut);
                }
                _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                _ => return Err(io::Error::last_os_error()),
            }
        }
    }

    /// Waits for the end of the process without a time limit.
    pub(super) fn join(&self) -> io::Result<()> {
        self.reap().map(drop)
    }

    fn reap(&self) -> io::Result<How> {
        let mut status = 0;
        loop {
            // SAFETY: the child belongs to this process, and the status is writable.
            match unsafe { libc::waitpid(self.id, &raw mut status, 0) } {
                -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                -1 => return Err(io::Error::last_os_error()),
                _ if libc::WIFSIGNALED(status) => return Ok(How::Signal(libc::WTERMSIG(status))),
                _ => return Ok(How::Exit(libc::WEXITSTATUS(status))),
            }
        }
    }

    /// Sends SIGKILL to the process and to all processes that it started.
    pub(super) fn kill(&self) {
        // SAFETY: the group belongs to the child; if it no longer exists, the call only fails.
        unsafe { libc::kill(-self.id, libc::SIGKILL) };
    }
}

/// Prepares a child before its test starts.
fn enter_child(stderr: Option<&File>) {
    let no_core = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // No test needs a larger file. The limit stops a plugin that prints endlessly.
    let some_file = libc::rlimit {
        rlim_cur: LARGEST_FILE,
        rlim_max: LARGEST_FILE,
    };
    // SAFETY: these calls change only this process, and a failure has no serious effect.
    unsafe {
        libc::setpgid(0, 0);
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::setrlimit(libc::RLIMIT_CORE, &raw const no_core);
        libc::setrlimit(libc::RLIMIT_FSIZE, &raw const some_file);
        if let Some(stderr) = stderr {
            libc::dup2(stderr.as_raw_fd(), 1);
            libc::dup2(stderr.as_raw_fd(), 2);
        }
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        libc::dup2(null, 0);
    }
}

/// Reads the end of a file, at most `most` bytes. The end of a long output is the part most likely to explain
/// a failure.
fn end_of(mut file: File, most: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    file.take(most).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn json_of(outcome: &Outcome) -> Value {
    match outcome {
        Outcome::Passed => json!([outcome.word()]),
        Outcome::Warned(it) | Outcome::Failed(it) => {
            json!([outcome.word(), it.did, it.expected, it.fix])
        }
        Outcome::Skipped(reason) => json!([outcome.word(), reason]),
    }
}

fn outcome_of(json: &str) -> Option<Outcome> {
    let words: Vec<String> = serde_json::from_str(json).ok()?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["passed"] => Some(Outcome::Passed),
        ["warned", did, expected, fix] => Some(Outcome::Warned(Finding::new(did, expected, fix))),
        ["failed", did, expected, fix] => Some(Outcome::Failed(Finding::new(did, expected, fix))),
        ["skipped", reason] => Some(Outcome::Skipped(reason.to_owned())),
        _ => None,
    }
}

/// Returns the reason to skip a test whose environment cannot be set up. That is not the plugin's fault.
pub(super) fn cannot(what: &str, error: &io::Error) -> Stop {
    Stop::Skip(format!("cannot {what} on this machine: {error}"))
}

/// Returns the fault of a call that returned HOST_PANIC. No call may return that status.
pub(super) fn panicked(words: String) -> Stop {
    fault(
        words,
        "a plugin does not panic, with any input: after HOST_PANIC the host can only destroy the instance",
        "check the input and return an error",
    )
}
