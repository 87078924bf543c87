//! A part of a test in a process of its own.

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

/// Where a child puts its verdict; -1 in a process that is none.
static SAID: AtomicI32 = AtomicI32::new(-1);
/// Where a child notes what it is about to do, so that a crash has a place; -1 if nowhere.
static STAGE: AtomicI32 = AtomicI32::new(-1);
/// Most that is kept of what a plugin writes to stderr, in bytes.
const MOST_STDERR: u64 = 64 << 10;
/// Largest file that a test may write.
const LARGEST_FILE: u64 = 1 << 30;

/// How a child ended.
#[derive(Debug)]
pub(super) struct Ended {
    how: How,
    /// What the child's function gave, if it came to its end.
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

/// Notes what is about to be done: "update, given a 0-d nll".
pub(super) fn stage(what: &str) {
    let fd = STAGE.load(Ordering::Relaxed);
    if fd >= 0 {
        // Fixed width, so that one write replaces what stood there.
        let note = format!("{what:\0<256}");
        // SAFETY: the bytes are readable, and a closed descriptor is an error at worst.
        unsafe { libc::pwrite(fd, note.as_ptr().cast(), note.len().min(256), 0) };
    }
}

/// The descriptor of [`stage`], for a signal handler.
pub(super) fn stage_fd() -> i32 {
    STAGE.load(Ordering::Relaxed)
}

/// Runs a part of a test in a child. What it and its own children leave running is killed.
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
    /// What the test comes to: what it said itself if it ended well, else what went wrong.
    pub(super) fn outcome(&self, limit: Duration) -> Outcome {
        let during = match self.stage.as_str() {
            "" => "while it was loaded".to_owned(),
            stage => format!("in {stage}"),
        };
        let finding = match (self.how, &self.verdict) {
            (How::Exit(0), Some(verdict)) => return verdict.clone(),
            (How::Signal(signal), _) if self.stage.starts_with(WROTE) => Finding::new(
                format!("{}, and was stopped by {}", self.stage, signal_name(signal)),
                "tensors are borrowed and read-only",
                "copy what is to be changed; in C take the data as a pointer to const",
            ),
            (How::Signal(signal), _) => Finding::new(
                format!("was ended by {} {during}", signal_name(signal)),
                "what a plugin cannot use is a status and a message by set_error; nothing crashes it",
                "debug it with --only and --in-process: gdb --args host plugin check …",
            ),
            (How::Exit(101), _) => Finding::new(
                format!("ended the check by a panic {during}"),
                "no panic leaves a plugin",
                "see its stderr",
            ),
            (How::Exit(code), _) => Finding::new(
                format!("ended the process with the status {code} {during}"),
                "a plugin leaves exit alone",
                "return an error instead",
            ),
            (How::TimedOut, _) => Finding::new(
                format!("had not returned after {} s {during}", limit.as_secs_f64()),
                "every call returns, and publish soon after cancel",
                "look for an endless loop or a lock that is never released; --time-limit gives it longer",
            ),
        };
        Outcome::Failed(finding)
    }

    /// For a child within a test, which passes the outcome on.
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
    // SAFETY: the bytes are readable; the descriptor is the child's own.
    unsafe { libc::pwrite(fd, json.as_ptr().cast(), json.len(), 0) };
}

/// Ends a child that cannot come to its end because a thread of it does not return. In process, it
/// gives the verdict back.
pub(super) fn say_and_exit(stop: Stop) -> Stop {
    if SAID.load(Ordering::Relaxed) < 0 {
        return stop;
    }
    say(Err(stop));
    // SAFETY: ends the process at once.
    unsafe { libc::_exit(0) }
}

/// What a stage begins with once the plugin has written into its inputs.
pub(super) const WROTE: &str = "wrote into its inputs";

/// A forked process, the leader of a group of its own.
pub(super) struct Child {
    id: libc::pid_t,
    /// Readable once it has ended.
    handle: OwnedFd,
}

impl Child {
    /// Forks. The child runs `body` and ends without any of this process's destructors; its stdout
    /// goes to where its stderr goes.
    pub(super) fn start(stderr: Option<&File>, body: impl FnOnce()) -> io::Result<Self> {
        // What is buffered would be written twice.
        io::stdout().flush()?;
        // SAFETY: this process has one thread (of the suite; a test forks before it loads the
        // plugin), so the child is a whole copy and may do whatever this process may.
        let id = unsafe { libc::fork() };
        match id {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                enter_child(stderr);
                let code = match catch_unwind(AssertUnwindSafe(body)) {
                    Ok(()) => 0,
                    Err(_) => 101,
                };
                // SAFETY: ends the child at once.
                unsafe { libc::_exit(code) }
            }
            id => {
                // In both, so that neither is too late; either may come second and fail.
                // SAFETY: only a process's group changes.
                unsafe { libc::setpgid(id, id) };
                // SAFETY: the child is there until it is waited for; a descriptor is returned or -1.
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

    /// Waits until it has ended or has had its time, and ends it then.
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
            // SAFETY: one pollfd.
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

    /// Waits for it however long it takes.
    pub(super) fn join(&self) -> io::Result<()> {
        self.reap().map(drop)
    }

    fn reap(&self) -> io::Result<How> {
        let mut status = 0;
        loop {
            // SAFETY: the child is this process's own, and the status is writable.
            match unsafe { libc::waitpid(self.id, &raw mut status, 0) } {
                -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                -1 => return Err(io::Error::last_os_error()),
                _ if libc::WIFSIGNALED(status) => return Ok(How::Signal(libc::WTERMSIG(status))),
                _ => return Ok(How::Exit(libc::WEXITSTATUS(status))),
            }
        }
    }

    /// SIGKILL to it and to all that it started.
    pub(super) fn kill(&self) {
        // SAFETY: the group is the child's own; that it has gone is no matter.
        unsafe { libc::kill(-self.id, libc::SIGKILL) };
    }
}

/// What a child changes about itself before the test begins.
fn enter_child(stderr: Option<&File>) {
    let no_core = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // Above every file of a test, and below what a plugin that prints without end would fill.
    let some_file = libc::rlimit {
        rlim_cur: LARGEST_FILE,
        rlim_max: LARGEST_FILE,
    };
    // SAFETY: these change this process alone, and each that fails is a convenience lost.
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

/// The last bytes of a file: a plugin that talks much says last why it ended.
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

/// A child that could not be started is no fault of the plugin's.
pub(super) fn cannot(what: &str, error: &io::Error) -> Stop {
    Stop::Skip(format!("this machine cannot {what}: {error}"))
}

/// A fault with the words of a status that no call may give.
pub(super) fn panicked(words: String) -> Stop {
    fault(
        words,
        "no input makes a plugin panic: after HOST_PANIC the host can only destroy the instance",
        "check the input and return an error",
    )
}
