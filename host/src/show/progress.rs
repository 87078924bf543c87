//! What a person sees of a run while it happens. Nothing here waits for a terminal: the [`Printer`]
//! does.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use host_core::{Event, RunName, Step};

use crate::show::event_line::{event_line, one_line};
use crate::show::narration::Narration;
use crate::show::printer::{Face, Printer};
use crate::show::sparkline::sparkline;
use crate::show::terminal::can_draw;

/// Bars of the loss's curve beside the progress bar.
const CURVE: usize = 16;

/// How events are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// A bar on a terminal, lines above it.
    Bar,
    /// Plain lines on stderr.
    Lines,
    /// On stderr only what is no event; stdout has those, as JSON, of which the store's reader takes care.
    Json,
}

impl Style {
    /// JSON if asked for; else a bar where stderr is a terminal that can be drawn on.
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
    narration: Arc<Mutex<Narration>>,
}

impl Progress {
    /// A display that shows nothing yet; `last_step` is where the training ends.
    pub(crate) fn new(style: Style, last_step: u64) -> Self {
        Self {
            style,
            last_step,
            printer: Printer::of_process(),
            narration: Arc::new(Mutex::new(Narration::new(last_step))),
        }
    }

    /// Whether the events are for programs.
    pub(crate) fn is_json(&self) -> bool {
        self.style == Style::Json
    }

    /// A line for the person who waits, on stderr, above the bar.
    pub(crate) fn say(&self, line: &str) {
        self.printer.say(line);
    }

    /// A line that is shown however many wait.
    pub(crate) fn insist(&self, line: &str) {
        self.printer.insist(line);
    }

    /// Where the run is to be found, and in lines how it is served, if it is.
    pub(crate) fn opened(&self, name: &RunName, path: &Path, served: &[String]) {
        self.printer
            .insist(&format!("run {name} at {}", path.display()));
        served.iter().for_each(|line| self.printer.insist(line));
    }

    /// What goes on now, until something else does. On a terminal it moves; else it is a line.
    pub(crate) fn busy(&self, what: &str) {
        match self.style {
            Style::Bar => self.printer.show(Face::Busy(one_line(what))),
            Style::Lines | Style::Json => self.say(what),
        }
    }

    /// Shows the bar from this step on.
    pub(crate) fn begin(&self, step: Step) {
        self.steps(step, String::new());
    }

    /// Shows events, which come in order.
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

    /// Takes the bar away and says the last words: on stdout, unless that is for programs.
    pub(crate) fn conclude(&self, text: &str) {
        self.end();
        match self.style {
            Style::Bar | Style::Lines => self.printer.conclude(text),
            Style::Json => text.lines().for_each(|line| self.printer.insist(line)),
        }
    }

    /// Takes the bar away; what was said stays.
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
