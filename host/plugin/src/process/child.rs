use std::borrow::Cow;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, OnceLock};
use std::thread::sleep;
use std::time::{Duration, Instant};

use host_core::{Error, ErrorKind};
use serde::Serialize;

use super::channel::{Broken, GoOn, Receiver, Sender};
use super::protocol::{Hello, Open, Reply, Said};
use super::spawner::spawn;
use crate::guard::{PluginName, UnderWay, name_of};
use crate::library::LOAD;
use crate::log::{self, Level, LogRecord};
use crate::mode::default_time_limit;
use crate::out::MOST_BYTES;
use crate::secrets::{Secret, Shares};
use crate::signal_name::signal_name;
use crate::{PluginKind, Secrets};

/// While the host waits for the child, it checks at this interval whether to keep waiting.
const TICK: Duration = Duration::from_millis(100);
/// Time limit from starting the program to receiving its greeting.
const GREETING_LIMIT: Duration = Duration::from_secs(60);
/// Default time limit for each of two steps: loading a plugin, and creating its instance.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Default time limit for destroying the instance.
const END_LIMIT: Duration = Duration::from_secs(5);
/// The names of the calls into the plugin that create and destroy the instance.
const CREATE: &str = "create";
const DESTROY: &str = "destroy";
/// How long a child that closed its socket may take to exit before it is killed. If it exits by itself, its
/// exit status shows the reason.
const ENDING: Duration = Duration::from_millis(500);

/// The command that starts a plugin's child process, which runs [`serve`](crate::serve()).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServeCommand {
    program: PathBuf,
    args: Vec<OsString>,
    secrets: Secrets,
}

/// The name of the program that only serves plugins. It is in the same folder as the host's program.
const SERVER: &str = "host-plugin-serve";

impl ServeCommand {
    /// Returns the command for `host-plugin-serve`, the small program that only serves plugins, in this
    /// program's folder. If that program is missing, returns the command `host plugin serve` of this program.
    /// If an update replaces these programs on disk later, the command still runs the old ones.
    pub fn this_host() -> Self {
        /// Remains open as long as this process lives.
        static BESIDE: OnceLock<Option<File>> = OnceLock::new();
        let beside = || File::open(std::env::current_exe().ok()?.with_file_name(SERVER)).ok();
        let program = match BESIDE.get_or_init(beside) {
            // The child inherits the descriptor and keeps it open until exec.
            Some(file) => format!("/proc/self/fd/{}", file.as_raw_fd()),
            None => "/proc/self/exe".to_owned(),
        };
        Self::new(program, ["plugin", "serve"])
    }

    /// Returns a command with this program and these arguments. When the command runs, it gets one more
    /// argument, which lists the descriptors that the child inherits.
    pub fn new<A: Into<OsString>>(
        program: impl Into<PathBuf>,
        args: impl IntoIterator<Item = A>,
    ) -> Self {
        Self {
            program: program.into(),
            args: args.into_iter().map(Into::into).collect(),
            secrets: Secrets::default(),
        }
    }

    /// Hides these variables from the plugins' child processes, except that each child receives those that
    /// its own plugin reads.
    #[must_use]
    pub fn with_secrets(mut self, secrets: Secrets) -> Self {
        self.secrets = secrets;
        self
    }

    pub(crate) fn secrets(&self) -> &Secrets {
        &self.secrets
    }
}

/// The data for starting, or restarting, the child of an instance.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub(crate) serve: ServeCommand,
    pub(crate) plugin: Arc<str>,
    /// The library's bytes and their digest. The bytes are in a file that can no longer be modified.
    pub(crate) image: Arc<OwnedFd>,
    pub(crate) sha256: Arc<str>,
    /// The path of the library.
    pub(crate) path: Arc<std::path::Path>,
    /// The settings as JSON text.
    pub(crate) config: Arc<str>,
    pub(crate) kind: PluginKind,
    /// The variables that are hidden from the child, and those that the host sends to it over the channel.
    pub(crate) shares: Arc<Shares>,
}

/// The time limits of a plugin in a child process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// For one call into the instance.
    pub(super) call: Duration,
    /// For each of two steps: loading the plugin, and creating the instance.
    start: Duration,
    /// For destroying the instance.
    end: Duration,
}

impl Limits {
    /// Returns the time limits. If the user has set a limit, `chosen`, it applies to each of them. Otherwise,
    /// each has its default. The default for a call depends on the kind.
    pub(crate) fn new(chosen: Option<Duration>, kind: PluginKind) -> Self {
        Self {
            call: chosen.unwrap_or(default_time_limit(kind)),
            start: chosen.unwrap_or(START_LIMIT),
            end: chosen.unwrap_or(END_LIMIT),
        }
    }
}

/// A child process with an instance. Dropping it ends the process.
#[derive(Debug)]
pub(super) struct Child {
    plugin: &'static PluginName,
    limits: Limits,
    /// Whether the plugin is loaded and its `create` has been called.
    is_creating: bool,
    process: std::process::Child,
    sender: Sender,
    receiver: Receiver,
    /// The socket on which cancellations are sent to the child. The child exits when this socket closes, for
    /// example because the host died.
    control: Arc<UnixStream>,
    lost: Option<String>,
    is_over: bool,
}

/// Why a child did not start.
#[derive(Debug)]
pub(super) enum StartError {
    /// The plugin or the system reported an error. Another attempt would fail in the same way.
    Refused(Error),
    /// The child ended or was killed during a call of the plugin. Contains the call and the reason.
    Died(&'static str, String),
}

impl Child {
    /// Starts the program, checks that it has the host's version, and lets it create the instance.
    pub(super) fn start(
        launch: &Launch,
        limits: Limits,
        go_on: GoOn<'_>,
    ) -> Result<Self, StartError> {
        let mut child = Self::run(launch, limits).map_err(|error| {
            let message = format!(
                "cannot start a process for plugin {}: {error}: {}",
                launch.plugin,
                launch.serve.program.display()
            );
            StartError::Refused(Error::new(ErrorKind::System, message))
        })?;
        let name = child.plugin;
        let under_way = UnderWay::in_child(name, LOAD, limits.start);
        let begun = Instant::now();
        let mut in_time = || begun.elapsed() < GREETING_LIMIT && go_on();
        let hello: Hello = match child.receiver.receive(&mut in_time) {
            Ok(hello) => hello,
            Err(broken) => {
                return Err(StartError::Died(LOAD, child.death(broken, GREETING_LIMIT)));
            }
        };
        let ours = Hello::of_this_host();
        if hello != ours {
            let said = |hello: &Hello| {
                let (major, minor) = hello.abi;
                format!("host {} with ABI {major}.{minor}", hello.host)
            };
            let message = format!(
                "the process for plugin {} is {}, not {}: {}",
                launch.plugin,
                said(&hello),
                said(&ours),
                launch.serve.program.display()
            );
            return Err(StartError::Refused(Error::new(ErrorKind::System, message)));
        }
        let open = Open {
            sha256: Cow::Borrowed(&launch.sha256),
            path: Cow::Borrowed(&launch.path),
            config: Cow::Borrowed(&launch.config),
            kind: launch.kind,
            log_level: log::kept(),
            secrets: Secret::read(&launch.shares.own),
        };
        let id = child.process.id();
        let begun = Instant::now();
        let mut in_time = || begun.elapsed() < limits.start && go_on();
        let mut opened = child
            .sender
            .send(&open, &[], &mut while_alive(id, &mut in_time));
        while opened.is_ok() && !child.is_creating {
            let said = child.listen(&mut while_alive(id, &mut in_time));
            match said {
                Ok(Some(reply)) => return child.opened(reply),
                Ok(None) if in_time() => {}
                Ok(None) => opened = Err(Broken::GivenUp),
                Err(broken) => opened = Err(broken),
            }
        }
        if let Err(broken) = opened {
            return Err(StartError::Died(LOAD, child.death(broken, limits.start)));
        }
        drop(under_way);
        let _under_way = UnderWay::in_child(name, CREATE, limits.start);
        let begun = Instant::now();
        let mut in_time = || begun.elapsed() < limits.start && go_on();
        match child.answer(&mut in_time) {
            Ok(reply) => child.opened(reply),
            Err(broken) => Err(StartError::Died(CREATE, child.death(broken, limits.start))),
        }
    }

    fn opened(self, reply: Reply) -> Result<Self, StartError> {
        match reply {
            Reply::Failed(fault) => Err(StartError::Refused(fault.into())),
            _ => Ok(self),
        }
    }

    fn run(launch: &Launch, limits: Limits) -> io::Result<Self> {
        let (calls, their_calls) = UnixStream::pair()?;
        let (control, their_control) = UnixStream::pair()?;
        calls.set_read_timeout(Some(TICK))?;
        calls.set_write_timeout(Some(TICK))?;
        control.set_nonblocking(true)?;
        let inherited = [
            their_calls.as_raw_fd(),
            their_control.as_raw_fd(),
            launch.image.as_raw_fd(),
        ];
        let parent = std::process::id();
        let mut command = Command::new(&launch.serve.program);
        command
            .arg0("host")
            .args(&launch.serve.args)
            .arg(inherited.map(|fd| fd.to_string()).join(","))
            .stdin(Stdio::null())
            // The plugin's output must not mix with the host's machine-readable output on stdout.
            .stdout(io::stderr())
            // Ctrl-C in the terminal signals the whole process group, but the host decides what happens to
            // the child. A separate group also lets the host kill processes that the plugin started.
            .process_group(0);
        for name in launch.shares.hidden.iter().chain(&launch.shares.own) {
            command.env_remove(name);
        }
        // SAFETY: between fork and exec the closure only makes system calls and does not allocate.
        unsafe { command.pre_exec(move || inherit(inherited, parent)) };
        let sender = Sender::new(calls.try_clone()?);
        Ok(Self {
            plugin: name_of(&launch.plugin),
            limits,
            is_creating: false,
            process: spawn(command)?,
            sender,
            receiver: Receiver::new(calls, MOST_BYTES as u64),
            control: Arc::new(control),
            lost: None,
            is_over: false,
        })
    }

    pub(super) fn plugin(&self) -> &'static PluginName {
        self.plugin
    }

    /// Returns the socket for cancellations.
    pub(super) fn control(&self) -> Arc<UnixStream> {
        Arc::clone(&self.control)
    }

    /// Sends a message and waits for its reply. Log lines that arrive in the meantime are logged.
    pub(super) fn exchange(
        &mut self,
        message: &impl Serialize,
        parts: &[&[u8]],
        go_on: GoOn<'_>,
    ) -> Result<Reply, Broken> {
        // `while_alive` detects the child's death even if a process that the child started keeps the socket
        // open.
        let id = self.process.id();
        self.sender
            .send(message, parts, &mut while_alive(id, go_on))?;
        self.answer(go_on)
    }

    /// Receives the next reply.
    fn answer(&mut self, go_on: GoOn<'_>) -> Result<Reply, Broken> {
        let id = self.process.id();
        loop {
            let said = self.listen(&mut while_alive(id, go_on))?;
            match said {
                Some(reply) => return Ok(reply),
                // The time limit also applies to a plugin that logs endlessly. The child's death is not
                // checked here, since its last messages may still be in the socket.
                None if !go_on() => return Err(Broken::GivenUp),
                None => {}
            }
        }
    }

    /// If the instance can never work again although its process is still running, returns the reason.
    pub(super) fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    /// Returns the raw bytes after the last reply.
    pub(super) fn behind(&self) -> &[u8] {
        self.receiver.behind()
    }

    /// Handles the next message, and returns it if it is a reply.
    fn listen(&mut self, go_on: GoOn<'_>) -> Result<Option<Reply>, Broken> {
        match self.receiver.receive(go_on)? {
            Said::Reply { reply, lost } => {
                self.lost = lost;
                Ok(Some(reply))
            }
            Said::Creating => {
                self.is_creating = true;
                Ok(None)
            }
            Said::Log {
                level,
                target,
                message,
            } => {
                log::write(&LogRecord {
                    level: Level::from_number(level),
                    plugin: self.plugin,
                    target: &target,
                    message: &message,
                });
                Ok(None)
            }
        }
    }

    /// Ends the process if it is still running, and returns why it ended. `limit` is the time limit of the
    /// call.
    pub(super) fn death(&mut self, broken: Broken, limit: Duration) -> String {
        let patience = match broken {
            Broken::Closed => ENDING,
            Broken::GivenUp | Broken::Garbage | Broken::TooLarge(_) => Duration::ZERO,
        };
        let ended_by_itself = self.ends_within(patience);
        let status = self.end();
        match broken {
            Broken::Garbage => "its process sent an invalid message".to_owned(),
            _ if ended_by_itself => status.map_or_else(|| "its process ended".to_owned(), ending),
            Broken::Closed => {
                "its process closed the connection to the host and was killed".to_owned()
            }
            Broken::GivenUp => format!("it did not return within {} and was killed", secs(limit)),
            Broken::TooLarge(bytes) => Broken::too_large("its input", bytes),
        }
    }

    /// Kills the process and its group if it is still running, and reaps it.
    fn end(&mut self) -> Option<ExitStatus> {
        if std::mem::replace(&mut self.is_over, true) {
            return None;
        }
        if let Ok(group) = libc::pid_t::try_from(self.process.id()) {
            // SAFETY: the process was not reaped, so its id, which is also its group's id, has not been
            // reused.
            unsafe { libc::kill(-group, libc::SIGKILL) };
        }
        // The process may have left its group.
        let _ = self.process.kill();
        self.process.wait().ok()
    }

    fn ends_within(&self, patience: Duration) -> bool {
        let begun = Instant::now();
        let mut pause = Duration::from_micros(100);
        while !has_ended(self.process.id()) {
            if begun.elapsed() >= patience {
                return false;
            }
            sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
        true
    }
}

impl Drop for Child {
    /// Tells the child to destroy its instance and exit. Kills the child if it does not exit in time.
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let limit = self.limits.end;
        let _under_way = UnderWay::in_child(self.plugin, DESTROY, limit);
        let begun = Instant::now();
        let mut go_on = || begun.elapsed() < limit;
        let asked = self
            .sender
            .send(&super::protocol::Call::End, &[], &mut go_on);
        if asked.is_ok() {
            // The child may log until it ends.
            while begun.elapsed() < limit && self.listen(&mut go_on).is_ok() {}
        }
        let left = limit.saturating_sub(begun.elapsed()).min(ENDING);
        if !self.ends_within(left) {
            let message = format!(
                "its destroy function did not return within {}, and its process was killed",
                secs(limit)
            );
            log::write(&LogRecord {
                level: Level::Warn,
                plugin: self.plugin,
                target: log::HOST,
                message: &message,
            });
        }
        self.end();
    }
}

/// Runs in the child between fork and exec.
fn inherit(descriptors: [RawFd; 3], parent: u32) -> io::Result<()> {
    for descriptor in descriptors {
        // SAFETY: the descriptor is open, and F_SETFD takes an int.
        if unsafe { libc::fcntl(descriptor, libc::F_SETFD, 0) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: PR_SET_PDEATHSIG takes only a signal number.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // The parent may have died before the call above.
    if std::os::unix::process::parent_id() != parent {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    Ok(())
}

/// Returns a callback that decides whether to continue reading. While the child runs, the callback returns
/// the result of `go_on`. After the child has exited, the callback allows one more read, because the child
/// may have written between the previous read and its exit.
fn while_alive(id: u32, go_on: GoOn<'_>) -> impl FnMut() -> bool {
    let mut was_last_read = false;
    move || match has_ended(id) {
        true => !std::mem::replace(&mut was_last_read, true),
        false => go_on(),
    }
}

/// Whether a child has ended. Does not reap it, so its id is not reused.
fn has_ended(id: u32) -> bool {
    // SAFETY: a zeroed struct of integers is valid.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: the pointer is writable.
    let status = unsafe { libc::waitid(libc::P_PID, id, &raw mut info, flags) };
    // SAFETY: waitid has either set the field or left it zero.
    status == 0 && unsafe { info.si_pid() } != 0
}

/// Formats a duration as `1 s`, `1.5 s`.
pub(super) fn secs(time: Duration) -> String {
    format!("{} s", time.as_secs_f64())
}

/// Describes how a process ended.
fn ending(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("its process was killed by {}", signal_name(signal)),
        (None, Some(code)) => format!("its process ended with exit status {code}"),
        (None, None) => "its process ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_has_exited_is_read_once_more() {
        let mut child = Command::new("true").spawn().expect("started");
        let id = child.id();
        while !has_ended(id) {
            sleep(Duration::from_millis(1));
        }
        let mut patient = || true;
        let mut alive = while_alive(id, &mut patient);
        assert_eq!([alive(), alive()], [true, false]);
        child.wait().expect("reaped");
    }

    #[test]
    fn a_running_child_is_read_as_long_as_the_caller_waits() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("started");
        let mut ticks = 0;
        let mut thrice = || {
            ticks += 1;
            ticks < 3
        };
        let mut alive = while_alive(child.id(), &mut thrice);
        assert_eq!([alive(), alive(), alive()], [true, true, false]);
        child.kill().expect("killed");
        child.wait().expect("reaped");
    }
}
