//! The signals that make a run write a checkpoint and end: Ctrl-C, SIGTERM, the loss of the terminal, and a
//! scheduler's warning.
//!
//! `signal-hook` delivers signals as values to a thread of this module, because the actions that follow
//! (locking, sending messages, deleting files) are not allowed in a signal handler. Nothing here waits for a
//! terminal.

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

/// Signals that request the end of the run. The second such signal ends the process immediately.
const ASKED: [i32; 3] = [SIGINT, SIGTERM, SIGQUIT];
/// Signals that warn that the process will soon be killed. A warning can arrive more than once: the terminal
/// and its shell both send a hangup, and a scheduler sends its signal to each process of a group. These
/// signals never end the process immediately.
const WARNED: [i32; 3] = [SIGHUP, SIGUSR1, SIGUSR2];

/// The first signal received, or 0. It determines the exit code.
static FIRST: AtomicI32 = AtomicI32::new(0);

/// Owns the thread that handles signals. The thread ends when this value is dropped. The first signal stops
/// the training, or the deliveries if the training is over. The second request to end the run ends the
/// process immediately.
pub(crate) struct SignalWatch {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Whether a request to end the run was received.
    is_asked: bool,
    /// Cancels the deliveries, which the training's control does not stop.
    cancel: Option<Box<dyn Fn() + Send>>,
    /// Whether training is over. If so, a signal calls `cancel`.
    is_draining: bool,
}

impl SignalWatch {
    /// Starts to handle signals. A second request to end the run deletes the files `stale`, prints `at_once`
    /// and ends the process immediately. SIGHUP stays ignored if it was ignored when the process started, as
    /// with `nohup`.
    ///
    /// # Errors
    /// Returns an error if the signals cannot be registered, or the thread cannot be started.
    pub(crate) fn start(
        control: Control,
        progress: Progress,
        stale: Vec<PathBuf>,
        at_once: &'static str,
    ) -> Result<Self> {
        let warned = WARNED.into_iter().filter(|&s| !is_ignored_hangup(s));
        let mut signals = Signals::new(ASKED.into_iter().chain(warned)).map_err(refused)?;
        // Replaces the default action of SIGXFSZ, which kills the process. Exceeding the file size limit is
        // then a write error, as on a full disk.
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
                    // Cancels the sinks, so that none of their child processes keeps running.
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
                    // A repeated warning does not cancel deliveries.
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

    /// Sets the function that cancels the deliveries.
    pub(crate) fn on_cancel(&self, cancel: impl Fn() + Send + 'static) {
        self.lock().cancel = Some(Box::new(cancel));
    }

    /// Records that the training is over. From now on, every signal except a repeated warning cancels the
    /// deliveries.
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

/// Returns the message for a signal during training.
fn answer(signal: i32) -> String {
    let what = "finishing this step and writing a checkpoint";
    match signal {
        SIGINT | SIGTERM => format!("{what}; a second Ctrl-C or SIGTERM exits immediately"),
        signal => format!("{}: {what}", name(signal)),
    }
}

/// Returns the stop reason to record. The store has one reason for Ctrl-C and one for all other signals.
fn reason(signal: i32) -> StopReason {
    match signal {
        SIGINT => StopReason::Interrupted,
        _ => StopReason::Terminated,
    }
}

fn name(signal: i32) -> &'static str {
    signal_name(signal).unwrap_or("a signal")
}

/// Returns the name of the first signal. Returns `None` for SIGINT and SIGTERM, because the stop reason
/// implies them.
pub(crate) fn uncommon() -> Option<&'static str> {
    match FIRST.load(Ordering::SeqCst) {
        0 | SIGINT | SIGTERM => None,
        signal => Some(name(signal)),
    }
}

/// Whether a signal was received.
pub(crate) fn have_come() -> bool {
    FIRST.load(Ordering::SeqCst) != 0
}

/// Returns the exit code of a run that ended for this reason. If signal N ended the run, the exit code is 128
/// plus N. After SIGQUIT, this function does not return. Instead, the process ends itself with SIGQUIT, and
/// dumps core if the system allows it.
pub(crate) fn leave(reason: StopReason) -> u8 {
    let signal = match reason {
        StopReason::Completed | StopReason::Requested => return 0,
        StopReason::Failed => return ErrorKind::Training.exit_code(),
        StopReason::Interrupted | StopReason::Terminated => match FIRST.load(Ordering::SeqCst) {
            // The signal arrived at another rank.
            0 if reason == StopReason::Interrupted => SIGINT,
            0 => SIGTERM,
            signal => signal,
        },
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
        // Does not return.
        let _ = emulate_default_handler(signal);
    }
    exit(i32::from(exit_code(signal)));
}

/// Whether `signal` is SIGHUP and was ignored when the process started, as with `nohup`.
fn is_ignored_hangup(signal: i32) -> bool {
    let ignored = || {
        let status = procfs::process::Process::myself().ok()?.status().ok()?;
        Some(status.sigign & (1 << (SIGHUP - 1)) != 0)
    };
    signal == SIGHUP && ignored().unwrap_or(false)
}

/// Waits for Ctrl-C, SIGTERM or SIGHUP. Used by commands that have nothing to finish. A signal that arrives
/// before the call of [`Self::wait`] counts, too.
pub(crate) struct EndSignal(Signals);

impl EndSignal {
    /// Starts to catch the signals.
    ///
    /// # Errors
    /// Returns an error if the signals cannot be registered.
    pub(crate) fn new() -> Result<Self> {
        let all = [SIGINT, SIGTERM, SIGHUP];
        let taken = all.into_iter().filter(|&s| !is_ignored_hangup(s));
        Ok(Self(Signals::new(taken).map_err(refused)?))
    }

    /// Blocks until a signal arrives. Returns at once if one has arrived already.
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
