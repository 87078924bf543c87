//! The display of a running command. Nothing here waits for a terminal; only the thread of the [`Printer`]
//! does.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use host_core::{Event, RunName, Step};

use crate::show::event_line::{event_line, one_line};
use crate::show::narration::Narration;
use crate::show::printer::{Face, Printer};
use crate::show::sparkline::sparkline;
use crate::show::terminal::can_draw;

/// The loss is drawn as a curve of small bars, next to the progress bar. This is the number of small bars.
const CURVE: usize = 16;

/// How events are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// A bar on a terminal, with lines above it.
    Bar,
    /// Plain lines on stderr.
    Lines,
    /// Plain lines on stderr, but none for events. [`JsonStream`](crate::show::json_stream::JsonStream)
    /// writes the events to stdout as JSON.
    Json,
}

impl Style {
    /// Returns `Json` if requested. Otherwise, returns `Bar` if stderr is a terminal that can be drawn on. In
    /// all other cases, returns `Lines`.
    pub(crate) fn choose(json: bool) -> Self {
        match json {
            true => Self::Json,
            false if can_draw(&std::io::stderr()) => Self::Bar,
            false => Self::Lines,
        }
    }
}

/// The display of a run. `[any]`, shared.
#[derive(Clone)]
pub(crate) struct Progress {
    style: Style,
    last_step: u64,
    printer: &'static Printer,
    /// The beginning of each line.
    prefix: String,
    narration: Arc<Mutex<Narration>>,
}

impl Progress {
    /// Creates an empty display. The training ends at `last_step`.
    pub(crate) fn new(style: Style, last_step: u64) -> Self {
        Self {
            style,
            last_step,
            printer: Printer::of_process(),
            prefix: String::new(),
            narration: Arc::new(Mutex::new(Narration::new(last_step))),
        }
    }

    /// Makes each line begin with the number of a rank.
    pub(crate) fn of_rank(mut self, rank: usize) -> Self {
        self.prefix = format!("rank {rank}: ");
        self
    }

    /// Returns true if the events are written as JSON.
    pub(crate) fn is_json(&self) -> bool {
        self.style == Style::Json
    }

    /// Writes a line to stderr, above the bar.
    pub(crate) fn say(&self, line: &str) {
        self.printer.say(&format!("{}{line}", self.prefix));
    }

    /// Like [`Self::say`], for a line that must be shown even if too many lines are waiting.
    pub(crate) fn insist(&self, line: &str) {
        self.printer.insist(&format!("{}{line}", self.prefix));
    }

    /// Shows the run's folder and, if the run is served, the lines that say how to connect.
    pub(crate) fn opened(&self, name: &RunName, path: &Path, served: &[String]) {
        self.printer
            .insist(&format!("run {name} at {}", path.display()));
        served.iter().for_each(|line| self.printer.insist(line));
    }

    /// Shows the current activity until the next activity starts. On a terminal, it is animated; otherwise,
    /// it is a line.
    pub(crate) fn busy(&self, what: &str) {
        match self.style {
            Style::Bar => self.printer.show(Face::Busy(one_line(what))),
            Style::Lines | Style::Json => self.say(what),
        }
    }

    /// Shows the bar, starting at this step.
    pub(crate) fn begin(&self, step: Step) {
        self.steps(step, String::new());
    }

    /// Shows events, which must arrive in order.
    pub(crate) fn show(&self, events: &[Event]) {
        let mut narration = self.narration();
        match self.style {
            Style::Json => {}
            Style::Lines => {
                for event in events {
                    narration.lines(event).for_each(|line| self.say(&line));
                    narration.forecast().iter().for_each(|line| self.say(line));
                }
            }
            Style::Bar => {
                let mut has_moved = false;
                for event in events {
                    if narration.note(event) {
                        has_moved = true;
                        narration.forecast().iter().for_each(|line| self.say(line));
                    }
                    event_line(event).iter().for_each(|line| self.say(line));
                }
                if has_moved {
                    let meter = narration.meter();
                    let curve = sparkline(meter.curve(), CURVE);
                    self.steps(meter.step(), format!("{}  {curve}", meter.values()));
                }
            }
        }
    }

    fn steps(&self, step: Step, values: String) {
        if self.style == Style::Bar {
            self.printer
                .show(Face::Steps(step.0, self.last_step, values));
        }
    }

    /// Removes the bar and writes the final lines. They go to stdout, or to stderr if stdout carries JSON.
    pub(crate) fn conclude(&self, text: &str) {
        self.end();
        match self.style {
            Style::Bar | Style::Lines => self.printer.conclude(text),
            Style::Json => text.lines().for_each(|line| self.printer.insist(line)),
        }
    }

    /// Removes the bar; the lines stay.
    pub(crate) fn end(&self) {
        if self.style == Style::Bar {
            self.printer.show(Face::Gone);
        }
    }

    fn narration(&self) -> MutexGuard<'_, Narration> {
        self.narration
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
