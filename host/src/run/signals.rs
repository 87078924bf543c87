//! The signals that end a run, after a checkpoint: Ctrl-C, SIGTERM, a terminal that is gone, the warning
//! of a scheduler.
//!
//! `signal-hook` turns signals into values on a thread of ours: what has to be done at one (locks,
//! messages, files) is not allowed in a signal handler. Nothing here waits for a terminal.

use std::path::PathBuf;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use host_core::{Control, Error, ErrorKind, Result, StopReason};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGXFSZ};
use signal_hook::iterator::{Handle, Signals};
use signal_hook::low_level::{emulate_default_handler, exit, signal_name};

use crate::show::printer::Printer;
use crate::show::progress::Progress;

/// They ask for the end; the second of them ends the process at once.
const ASKED: [i32; 3] = [SIGINT, SIGTERM, SIGQUIT];
/// They warn, once or several times, of an end that comes from elsewhere: a hangup comes from the terminal
/// and again from its shell, a scheduler tells each process of a group. They never end the process at once.
const WARNED: [i32; 3] = [SIGHUP, SIGUSR1, SIGUSR2];

/// The first signal that came; 0 if none did. The process's exit code says it.
static FIRST: AtomicI32 = AtomicI32::new(0);

/// The thread that answers signals until this is dropped. The first asks the training to stop and
/// whatever else is under way to end soon; the second request to end ends the process at once.
pub(crate) struct SignalWatch {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Whether one came that asks for the end.
    is_asked: bool,
    /// Ends what the training's control does not reach.
    cancel: Option<Box<dyn Fn() + Send>>,
    /// Whether training is over and `cancel` is what a first signal is for.
    is_draining: bool,
}

impl SignalWatch {
    /// Answers signals from now on. `stale` are files that must not outlive the process, `at_once` what
    /// is said when it is ended at once. A hangup that was ignored when the process began, as behind
    /// `nohup`, stays ignored.
    ///
    /// # Errors
    /// The system refuses.
    pub(crate) fn start(
        control: Control,
        progress: Progress,
        stale: [PathBuf; 2],
        at_once: &'static str,
    ) -> Result<Self> {
        let warned = WARNED.into_iter().filter(|&s| !is_ignored_hangup(s));
        let mut signals = Signals::new(ASKED.into_iter().chain(warned)).map_err(refused)?;
        // A file that grows beyond a limit of the user's is a write that fails, as on a full disk, and
        // not the end of the process.
        signal_hook::flag::register(SIGXFSZ, Arc::default()).map_err(refused)?;
        let handle = signals.handle();
        let state = Arc::<Mutex<State>>::default();
        let shared = Arc::clone(&state);
        let watch = move || {
            for signal in &mut signals {
                let mut state = shared.lock().unwrap_or_else(PoisonError::into_inner);
                let is_first = FIRST
                    .compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst)
                    .is_ok();
                let asks = ASKED.contains(&signal);
                if asks && std::mem::replace(&mut state.is_asked, true) {
                    // Sinks get a word, so that no child process of theirs goes on alone.
                    if let Some(cancel) = &state.cancel {
                        cancel();
                    }
                    for file in &stale {
                        let _ = std::fs::remove_file(file);
                    }
                    progress.end();
                    progress.insist(at_once);
                    Printer::of_process().flush_soon();
                    end_at_once(signal);
                }
                control.stop(reason(signal));
                match &state.cancel {
                    // A warning that comes again cuts no delivery short.
                    Some(cancel) if state.is_draining && (asks || is_first) => cancel(),
                    Some(_) if state.is_draining => {}
                    _ => progress.insist(&answer(signal)),
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(watch)
            .map_err(refused)?;
        Ok(Self {
            handle,
            thread: Some(thread),
            state,
        })
    }

    /// What ends the deliveries soon.
    pub(crate) fn on_cancel(&self, cancel: impl Fn() + Send + 'static) {
        self.lock().cancel = Some(Box::new(cancel));
    }

    /// From now on a first signal ends the deliveries.
    pub(crate) fn draining(&self) {
        self.lock().is_draining = true;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for SignalWatch {
    fn drop(&mut self) {
        self.handle.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What is said at a signal while the training is under way.
fn answer(signal: i32) -> String {
    let what = "finishing this step and writing a checkpoint";
    match signal {
        SIGINT | SIGTERM => format!("{what}; once more ends at once"),
        signal => format!("{}: {what}", name(signal)),
    }
}

/// How a run counts as ended. Of the signals the store knows Ctrl-C and all others.
fn reason(signal: i32) -> StopReason {
    match signal {
        SIGINT => StopReason::Interrupted,
        _ => StopReason::Terminated,
    }
}

fn name(signal: i32) -> &'static str {
    signal_name(signal).unwrap_or("a signal")
}

/// The first signal that came, if the way the run ended does not say which it was.
pub(crate) fn uncommon() -> Option<&'static str> {
    match FIRST.load(Ordering::SeqCst) {
        0 | SIGINT | SIGTERM => None,
        signal => Some(name(signal)),
    }
}

/// Whether a signal has come.
pub(crate) fn have_come() -> bool {
    FIRST.load(Ordering::SeqCst) != 0
}

/// The process's exit code for the way a run ended, 128 + the signal if one ended it. After SIGQUIT the
/// process ends by that signal, with a core where the system keeps one.
pub(crate) fn leave(reason: StopReason) -> u8 {
    let signal = match reason {
        StopReason::Completed | StopReason::Requested => return 0,
        StopReason::Failed => return ErrorKind::Training.exit_code(),
        StopReason::Interrupted | StopReason::Terminated => FIRST.load(Ordering::SeqCst),
    };
    if signal == SIGQUIT {
        end_at_once(signal);
    }
    exit_code(signal)
}

fn exit_code(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

fn end_at_once(signal: i32) {
    if signal == SIGQUIT {
        // It does not return.
        let _ = emulate_default_handler(signal);
    }
    exit(i32::from(exit_code(signal)));
}

/// Whether this is a hangup that the starter of the process has set to be ignored, as `nohup` does.
fn is_ignored_hangup(signal: i32) -> bool {
    let ignored = || {
        let status = procfs::process::Process::myself().ok()?.status().ok()?;
        Some(status.sigign & (1 << (SIGHUP - 1)) != 0)
    };
    signal == SIGHUP && ignored().unwrap_or(false)
}

/// Ctrl-C, SIGTERM or a hangup, for what has nothing to finish. One that comes before it is waited for
/// counts.
pub(crate) struct EndSignal(Signals);

impl EndSignal {
    /// Takes the signals from now on.
    ///
    /// # Errors
    /// The system refuses.
    pub(crate) fn new() -> Result<Self> {
        let all = [SIGINT, SIGTERM, SIGHUP];
        let taken = all.into_iter().filter(|&s| !is_ignored_hangup(s));
        Ok(Self(Signals::new(taken).map_err(refused)?))
    }

    /// Blocks until one comes, or at once when it has come.
    pub(crate) fn wait(mut self) {
        self.0.forever().next();
    }
}

fn refused(error: std::io::Error) -> Error {
    Error::new(
        ErrorKind::System,
        format!("cannot watch for signals: {error}"),
    )
}
