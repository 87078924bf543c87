//! The output for people while the program runs: lines on stderr, the progress bar below them, and the final
//! lines on stdout.
//!
//! A separate thread writes. A terminal can block for a long time (Ctrl-S, a frozen ssh, a full pipe). Lines
//! then wait in a bounded queue; lines that do not fit are only counted. Callers never wait for the output.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::show::outlet;
use crate::show::printable::{lines, one_line};

/// Maximum number of waiting lines (`LINES`), and their maximum total size in bytes (`BYTES`).
const LINES: usize = 4096;
const BYTES: usize = 1 << 20;
/// How long the program waits at its end for a blocked terminal (`STUCK`) and for a slow terminal (`SLOW`).
const STUCK: Duration = Duration::from_secs(2);
const SLOW: Duration = Duration::from_secs(10);
/// Replaces both `STUCK` and `SLOW` if the process must end immediately.
const SOON: Duration = Duration::from_millis(300);

/// A handle to the thread that writes. `[any]`, shared.
#[derive(Clone)]
pub(crate) struct Printer(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Item>,
    bytes: usize,
    /// The next content of the bar; a newer one replaces it.
    face: Option<Face>,
    /// Whether the thread is writing.
    is_writing: bool,
    /// Number of items written so far.
    written: u64,
    /// Set if the thread could not be started.
    has_no_thread: bool,
}

enum Item {
    Line(String),
    LastWords(String),
    /// A gap in the output: this many lines did not fit into the queue.
    NotShown(u64),
}

/// The content of the bar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Face {
    /// Work of unknown length.
    Busy(String),
    /// Finished steps, total steps, and a text next to them.
    Steps(u64, u64, String),
    /// No bar.
    Gone,
}

static PRINTER: OnceLock<Printer> = OnceLock::new();

impl Printer {
    /// Returns the printer of this process, and starts it on the first call.
    pub(crate) fn of_process() -> &'static Self {
        PRINTER.get_or_init(|| match (outlet::stderr(), outlet::stdout()) {
            (Ok(stderr), Ok(stdout)) => Self::start(stderr, stdout),
            _ => Self::without_thread(),
        })
    }

    /// Waits until all output of the process is written. If there was no output, the printer's thread is not
    /// started, so that the process can still fork.
    pub(crate) fn flush_process() {
        if let Some(printer) = PRINTER.get() {
            printer.flush();
        }
    }

    fn start(stderr: File, stdout: File) -> Self {
        let printer = Self(Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
        }));
        let shared = Arc::clone(&printer.0);
        // The thread runs until the process ends.
        let thread = std::thread::Builder::new()
            .name("printer".to_owned())
            .spawn(move || shared.write(Device::new(stderr, stdout)));
        match thread {
            Ok(_) => printer,
            Err(_) => Self::without_thread(),
        }
    }

    /// Creates a printer that writes synchronously. Used if threads cannot be started. No training runs then,
    /// so a blocked write is harmless.
    fn without_thread() -> Self {
        let state = State {
            has_no_thread: true,
            ..State::default()
        };
        Self(Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }))
    }

    /// Writes a line to stderr, above the bar. If too many lines wait, it is only counted.
    pub(crate) fn say(&self, line: &str) {
        self.put(Item::Line(one_line(line)), false);
    }

    /// Like [`Self::say`], for a line that must not be lost: an error, or an answer to a signal.
    pub(crate) fn insist(&self, line: &str) {
        self.put(Item::Line(one_line(line)), true);
    }

    /// Removes the bar and writes these lines to stdout.
    pub(crate) fn conclude(&self, text: &str) {
        self.put(Item::LastWords(lines(text)), true);
    }

    /// Sets the content of the bar.
    pub(crate) fn show(&self, face: Face) {
        let mut state = self.0.state();
        if !state.has_no_thread {
            state.face = Some(face);
            self.0.changed.notify_all();
        }
    }

    /// Waits until everything is written, but at most as long as `STUCK` and `SLOW` allow. Returns false if
    /// output is left.
    pub(crate) fn flush(&self) -> bool {
        self.0.flush(STUCK, SLOW)
    }

    /// Like [`Self::flush`], for a process that must end immediately.
    pub(crate) fn flush_soon(&self) {
        self.0.flush(SOON, SOON);
    }

    fn put(&self, item: Item, must_be: bool) {
        let mut state = self.0.state();
        if state.has_no_thread {
            drop(state);
            if let (Ok(stderr), Ok(stdout)) = (outlet::stderr(), outlet::stdout()) {
                Device::new(stderr, stdout).write(item);
            }
            return;
        }
        let bytes = item.bytes();
        let has_room = state.waiting.len() < LINES && state.bytes + bytes <= BYTES;
        if has_room || must_be {
            state.bytes += bytes;
            state.waiting.push_back(item);
        } else if let Some(Item::NotShown(count)) = state.waiting.back_mut() {
            *count += 1;
        } else {
            state.waiting.push_back(Item::NotShown(1));
        }
        self.0.changed.notify_all();
    }
}

impl Item {
    fn bytes(&self) -> usize {
        match self {
            Self::Line(text) | Self::LastWords(text) => text.len(),
            Self::NotShown(_) => 0,
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // The state is consistent at all times, even after a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs the thread's loop.
    fn write(&self, mut device: Device) {
        let mut state = self.state();
        loop {
            if let Some(item) = state.waiting.pop_front() {
                state.bytes -= item.bytes();
                state.is_writing = true;
                drop(state);
                device.write(item);
            } else if let Some(face) = state.face.take() {
                state.is_writing = true;
                drop(state);
                device.show(face);
            } else {
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state = self.state();
            state.is_writing = false;
            state.written += 1;
            self.changed.notify_all();
        }
    }

    fn flush(&self, stuck: Duration, slow: Duration) -> bool {
        let begun = Instant::now();
        let mut state = self.state();
        let (mut written, mut moved) = (state.written, begun);
        loop {
            if state.waiting.is_empty() && state.face.is_none() && !state.is_writing {
                return true;
            }
            let now = Instant::now();
            if state.written != written {
                (written, moved) = (state.written, now);
            }
            let until = (moved + stuck).min(begun + slow);
            if now >= until {
                return false;
            }
            state = self
                .changed
                .wait_timeout(state, until - now)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

/// The outputs. Owned by the thread.
struct Device {
    stderr: File,
    stdout: File,
    bar: Option<ProgressBar>,
}

impl Device {
    fn new(stderr: File, stdout: File) -> Self {
        Self {
            stderr,
            stdout,
            bar: None,
        }
    }

    fn write(&mut self, item: Item) {
        match item {
            Item::Line(line) => self.line(&line),
            Item::NotShown(count) => self.line(&format!(
                "{count} lines were not shown: the output was not read in time; the run's events are complete"
            )),
            Item::LastWords(text) => {
                self.show(Face::Gone);
                // A closed pipe must not end a training.
                let _ = outlet::write(self.stdout.as_fd(), text.as_bytes(), &|| {});
            }
        }
    }

    fn line(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => {
                let line = format!("{line}\n");
                let _ = outlet::write(self.stderr.as_fd(), line.as_bytes(), &|| {});
            }
        }
    }

    fn show(&mut self, face: Face) {
        match face {
            Face::Busy(what) => {
                let bar = self.bar();
                bar.set_style(style("{spinner} {msg}"));
                bar.set_message(what);
                bar.enable_steady_tick(Duration::from_millis(120));
            }
            Face::Steps(step, last_step, values) => {
                let bar = self.bar();
                bar.disable_steady_tick();
                bar.set_style(style("{bar:16.cyan/dim} {pos}/{len}  {wide_msg}"));
                bar.set_length(last_step);
                bar.set_position(step);
                bar.set_message(values);
            }
            Face::Gone => {
                if let Some(bar) = self.bar.take() {
                    bar.finish_and_clear();
                }
            }
        }
    }

    fn bar(&mut self) -> &ProgressBar {
        self.bar.get_or_insert_with(|| {
            ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr())
        })
    }
}

fn style(template: &str) -> ProgressStyle {
    // The templates are constants in this file.
    ProgressStyle::with_template(template).expect("a template")
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, PipeReader, PipeWriter, Write as _, pipe};
    use std::os::fd::OwnedFd;

    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

    use super::*;

    /// Creates a full pipe.
    fn full_pipe() -> (PipeReader, PipeWriter) {
        let (read, mut write) = pipe().expect("a pipe");
        let flags = fcntl_getfl(&write).expect("flags");
        fcntl_setfl(&write, flags | OFlags::NONBLOCK).expect("set");
        while write.write(&[b'\n'; 4096]).is_ok() {}
        fcntl_setfl(&write, flags).expect("set");
        (read, write)
    }

    fn file(end: PipeWriter) -> File {
        File::from(OwnedFd::from(end))
    }

    #[test]
    fn lines_for_a_full_pipe_wait_and_then_are_counted() {
        let (read, full) = full_pipe();
        let stdout = pipe().expect("a pipe");
        let printer = Printer::start(file(full), file(stdout.1));
        // These calls must not block: if one did, the test would hang.
        for n in 0..LINES + 500 {
            printer.say(&format!("line {n}"));
        }
        printer.insist("an error");
        assert!(!printer.0.flush(Duration::ZERO, Duration::ZERO));

        let lines = BufReader::new(read).lines().map(|line| line.expect("read"));
        let mut said = Vec::new();
        for line in lines.filter(|line| !line.is_empty()) {
            said.push(line);
            if said.last().is_some_and(|line| line == "an error") {
                break;
            }
        }
        let shown = said.len() - 2;
        // In addition to the lines in the queue, the thread can hold one line.
        assert!((LINES..=LINES + 1).contains(&shown), "{shown}");
        assert!((0..shown).all(|n| said[n] == format!("line {n}")));
        let missing = LINES + 500 - shown;
        assert!(
            said[shown].starts_with(&format!("{missing} lines were not shown")),
            "{}",
            said[shown]
        );
        let long = Duration::from_secs(60);
        assert!(printer.0.flush(long, long));
    }

    #[test]
    fn long_lines_are_bounded_by_their_bytes() {
        let (_read, full) = full_pipe();
        let stdout = pipe().expect("a pipe");
        let printer = Printer::start(file(full), file(stdout.1));
        for _ in 0..64 {
            printer.say(&"x".repeat(BYTES / 8));
        }
        let state = printer.0.state();
        assert!(state.bytes <= BYTES, "{}", state.bytes);
        assert!(state.waiting.len() <= 10, "{}", state.waiting.len());
    }

    #[test]
    fn the_conclusion_is_on_stdout_and_lines_are_on_stderr_in_order() {
        let (stderr, stdout) = (pipe().expect("a pipe"), pipe().expect("a pipe"));
        let printer = Printer::start(file(stderr.1), file(stdout.1));
        printer.say("one\u{1b}[2J");
        printer.say("two");
        printer.conclude("a  b\u{9b}\nc\n");
        let long = Duration::from_secs(60);
        assert!(printer.0.flush(long, long));
        let first = |end: PipeReader| {
            let mut lines = BufReader::new(end).lines().map(|line| line.expect("read"));
            [lines.next(), lines.next()].map(|line| line.expect("a line"))
        };
        assert_eq!(first(stderr.0), ["one [2J", "two"]);
        assert_eq!(first(stdout.0), ["a  b ", "c"]);
    }
}
