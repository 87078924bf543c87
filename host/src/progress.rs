//! What a person or a program sees of a run while it happens: events as the store has them.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use host_core::{Event, RunName, Step};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use crate::event_json::event_json;
use crate::event_line::{event_line, one_line};
use crate::meter::Meter;
use crate::service::Served;
use crate::sparkline::sparkline;

/// A plain line about the training comes at most this often.
const LINE_EVERY_US: i64 = 10_000_000;

/// Bars of the loss's curve beside the progress bar.
const CURVE: usize = 16;

/// How events are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// A bar on a terminal, lines above it.
    Bar,
    /// Plain lines on stderr.
    Lines,
    /// Each event as a JSON object on stdout; for people only what goes to stderr.
    Json,
}

impl Style {
    /// JSON if asked for; else a bar where stderr is a terminal.
    pub(crate) fn choose(json: bool) -> Self {
        match json {
            true => Self::Json,
            false if std::io::stderr().is_terminal() => Self::Bar,
            false => Self::Lines,
        }
    }
}

/// The display of a run. `[any]`, shared.
#[derive(Clone)]
pub(crate) struct Progress {
    style: Style,
    bar: ProgressBar,
    meter: Arc<Mutex<Paced>>,
    /// Set when stdout has no reader any more.
    unread: Arc<AtomicBool>,
}

/// The meter, and when it was last shown in a plain line.
struct Paced {
    meter: Meter,
    shown_us: i64,
}

impl Progress {
    /// A display that shows nothing yet; `last_step` is where the training ends.
    pub(crate) fn new(style: Style, last_step: u64) -> Self {
        let target = match style {
            Style::Bar => ProgressDrawTarget::stderr(),
            Style::Lines | Style::Json => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some(last_step), target);
        let meter = Meter::new(last_step);
        Self {
            style,
            bar,
            meter: Arc::new(Mutex::new(Paced { meter, shown_us: 0 })),
            unread: Arc::default(),
        }
    }

    /// A line for the person who waits, on stderr, above the bar.
    pub(crate) fn say(&self, line: &str) {
        let line = one_line(line);
        match self.style {
            Style::Bar => self.bar.println(line),
            Style::Lines | Style::Json => write_stderr(&line),
        }
    }

    /// Where the run is to be found, and how it is served, if it is: for people lines, for programs the
    /// first object.
    pub(crate) fn opened(&self, name: &RunName, path: &Path, served: Option<&Served>) {
        if self.style == Style::Json {
            let path = path.display().to_string();
            let mut run = json!({ "kind": "run", "name": name, "path": path });
            if let Some(served) = served {
                run["listen"] = json!(served.serving.addr());
                if let Some(fingerprint) = served.fingerprint {
                    run["tls_fingerprint"] = json!(fingerprint.to_string());
                }
            }
            self.write_json(&run);
        } else {
            self.say(&format!("run {name} at {}", path.display()));
            if let Some(served) = served {
                self.say(&format!("gRPC at {}", served.serving.addr()));
                served.clients().iter().for_each(|line| self.say(line));
            }
        }
    }

    /// What goes on now, until something else does. On a terminal it moves; else it is a line.
    pub(crate) fn busy(&self, what: &str) {
        if self.style == Style::Bar {
            self.bar.set_style(style("{spinner} {msg}"));
            self.bar.set_message(one_line(what));
            self.bar.enable_steady_tick(Duration::from_millis(120));
        } else {
            self.say(what);
        }
    }

    /// Shows the bar from this step on.
    pub(crate) fn begin(&self, step: Step) {
        self.bar.disable_steady_tick();
        self.bar
            .set_style(style("{bar:16.cyan/dim} {pos}/{len}  {wide_msg}"));
        self.bar.set_position(step.0);
        self.bar.set_message("");
    }

    /// The steps up to this time are history: they have no plain lines.
    pub(crate) fn catch_up(&self, time_us: i64) {
        let mut paced = self.meter.lock().unwrap_or_else(PoisonError::into_inner);
        paced.shown_us = time_us;
    }

    /// Whether stdout has no reader any more, as behind `| head`.
    pub(crate) fn has_no_reader(&self) -> bool {
        self.unread.load(Ordering::Relaxed)
    }

    /// Shows events, which come in order.
    pub(crate) fn show(&self, events: &[Event]) {
        let mut paced = self.meter.lock().unwrap_or_else(PoisonError::into_inner);
        let mut moved = false;
        for event in events {
            let is_step = paced.meter.note(event);
            moved |= is_step;
            match self.style {
                Style::Json => self.write_json(&event_json(event)),
                Style::Bar => {
                    if let Some(line) = event_line(event) {
                        self.bar.println(line);
                    }
                }
                Style::Lines => {
                    if is_step && event.time_us - paced.shown_us >= LINE_EVERY_US {
                        paced.shown_us = event.time_us;
                        write_stderr(&paced.meter.line());
                    }
                    if let Some(line) = event_line(event) {
                        write_stderr(&line);
                    }
                }
            }
        }
        if moved && self.style == Style::Bar {
            self.bar.set_position(paced.meter.step().0);
            let curve = sparkline(paced.meter.curve(), CURVE);
            let values = paced.meter.values();
            self.bar.set_message(format!("{values}  {curve}"));
        }
    }

    fn write_json(&self, object: &serde_json::Value) {
        let mut out = std::io::stdout().lock();
        if writeln!(out, "{object}")
            .and_then(|()| out.flush())
            .is_err()
        {
            self.unread.store(true, Ordering::Relaxed);
        }
    }

    /// Takes the bar away and says the last words: on stdout, unless that is for programs.
    pub(crate) fn conclude(&self, lines: &str) {
        self.end();
        let _ = match self.style {
            Style::Bar | Style::Lines => write!(std::io::stdout().lock(), "{lines}"),
            Style::Json => write!(std::io::stderr().lock(), "{lines}"),
        };
    }

    /// Takes the bar away; what was said stays.
    pub(crate) fn end(&self) {
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    // The templates are constants of this file.
    ProgressStyle::with_template(template).expect("a template")
}

/// Nobody reading any more must not end a training.
fn write_stderr(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
