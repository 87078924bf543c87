//! Ctrl-C and SIGTERM.
//!
//! `signal-hook` turns signals into values on a thread of ours: what has to be done at one (locks,
//! messages, files) is not allowed in a signal handler.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use host_core::{Control, Error, Kind, Result, StopReason};
use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::{Handle, Signals};

use crate::progress::Progress;

/// The thread that answers signals until this is dropped. The first asks the training to stop and
/// whatever else is under way to end soon; the second ends the process at once.
pub(crate) struct SignalWatch {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    first: Option<StopReason>,
    /// Ends what the training's control does not reach.
    cancel: Option<Box<dyn Fn() + Send>>,
    /// Whether training is over and `cancel` is what a first signal is for.
    is_draining: bool,
}

impl SignalWatch {
    /// Answers signals from now on. `stale` are files that must not outlive the process, `at_once` what
    /// is said when it is ended at once.
    ///
    /// # Errors
    /// The system refuses.
    pub(crate) fn start(
        control: Control,
        progress: Progress,
        stale: [PathBuf; 2],
        at_once: &'static str,
    ) -> Result<Self> {
        let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(refused)?;
        // A file that grows beyond a limit of the user's is a write that fails, as on a full disk, and
        // not the end of the process.
        signal_hook::flag::register(SIGXFSZ, Arc::default()).map_err(refused)?;
        let handle = signals.handle();
        let state = Arc::<Mutex<State>>::default();
        let shared = Arc::clone(&state);
        let watch = move || {
            for signal in &mut signals {
                let reason = match signal {
                    SIGTERM => StopReason::Terminated,
                    _ => StopReason::Interrupted,
                };
                let mut state = shared.lock().unwrap_or_else(PoisonError::into_inner);
                if state.first.is_some() {
                    // Sinks get a word, so that no child process of theirs goes on alone.
                    if let Some(cancel) = &state.cancel {
                        cancel();
                    }
                    for file in &stale {
                        let _ = std::fs::remove_file(file);
                    }
                    progress.end();
                    progress.say(at_once);
                    signal_hook::low_level::exit(i32::from(exit_code(reason)));
                }
                state.first = Some(reason);
                control.stop(reason);
                match &state.cancel {
                    Some(cancel) if state.is_draining => cancel(),
                    _ => progress.say(
                        "finishing this step and writing a checkpoint; once more ends at once",
                    ),
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

/// The process's exit code for the way a run ended.
pub(crate) fn exit_code(reason: StopReason) -> u8 {
    match reason {
        StopReason::Completed | StopReason::Requested => 0,
        StopReason::Interrupted => 130,
        StopReason::Terminated => 143,
        StopReason::Failed => 5,
    }
}

/// Ctrl-C or SIGTERM, for what has nothing to finish. One that comes before it is waited for counts.
pub(crate) struct EndSignal(Signals);

impl EndSignal {
    /// Takes the signals from now on.
    ///
    /// # Errors
    /// The system refuses.
    pub(crate) fn new() -> Result<Self> {
        let signals = Signals::new([SIGINT, SIGTERM]).map_err(refused)?;
        Ok(Self(signals))
    }

    /// Blocks until one comes, or at once when it has come.
    pub(crate) fn wait(mut self) {
        self.0.forever().next();
    }
}

fn refused(error: std::io::Error) -> Error {
    Error::new(Kind::System, format!("cannot watch for signals: {error}"))
}
