//! `host watch` in a terminal: a dashboard of one run.
//!
//! One thread owns the `Model` (the state of the run) and draws (`[main]`). The other threads send messages
//! to this thread through one bounded channel. The messages are events from the server, requested histories,
//! answers to requests, keys, and signals.

mod axis;
mod chart;
mod curve;
mod feed;
mod heading;
mod ledger;
mod model;
mod plugin_table;
mod requests;
mod screen;
mod tables;
mod terminal;
mod theme;
mod view;

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use host_core::{Error, ErrorKind, Result};
use host_serve::{Client, WatchEnd};
use host_store::Point;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use ratatui::crossterm::event::{self, Event as Input, KeyEventKind};
use rustix::process::{Signal, kill_current_process_group};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGTERM, SIGTSTP};
use signal_hook::iterator::Signals;

use feed::{Feed, Histories, News};
use model::{Connection, Model, RunState};
use requests::Requests;
use screen::{Action, Answer, Screen};
use terminal::Terminal;
use theme::Theme;
use view::Look;

use crate::runs::target::{Target, read_run};
use crate::show::printer::Printer;

/// The minimum time between two frames.
const FRAME: Duration = Duration::from_millis(100);
/// The maximum time for the dashboard to end after a signal.
const LEAVING: Duration = Duration::from_secs(2);
/// Maximum number of queued messages. When the queue is full, a sending thread blocks.
const MESSAGES: usize = 1024;
/// Number of past events that are read in full, for the log and the speed. Older history is downsampled.
const RECENT: u64 = 2000;

/// A message to the thread that draws.
enum Message {
    News(News),
    History {
        metric: String,
        points: Vec<Point>,
    },
    Input(Input),
    Answer(Answer),
    /// The process must be suspended (SIGTSTP).
    Suspend,
    /// The process was continued.
    Continued,
    Leave,
}

/// Shows a run until the user quits. `run` selects one of the server's runs if `target` does not name one.
/// The log shows only events with a sequence number above `after`. Keys can trigger requests, which are sent
/// in the name of `by`.
///
/// # Errors
/// Returns an error if the run does not exist, or if the terminal or the server fails before anything is
/// shown.
pub(crate) fn show(mut target: Target, run: &str, after: u64, by: String) -> Result<()> {
    let (client, address) = target.connect()?;
    let row = read_run(&client, target.name().unwrap_or(run))?;
    let mut model = Model::new(&row, address.clone());
    let (messages, received) = sync_channel(MESSAGES);
    // Keeps the target until the dashboard ends, because histories are read even after the last event.
    let target = Arc::new(Mutex::new(target));
    let feed = Feed {
        target: Arc::clone(&target),
        run: row.name.clone(),
        cursor: after
            .max(row.last_seq.saturating_sub(RECENT))
            .min(row.last_seq),
        messages: messages.clone(),
    };
    let histories = Histories::start(row.name.clone(), messages.clone())?;
    let requests = Requests::start(row.name, by, messages.clone())?;
    watch_signals(messages.clone())?;
    let terminal = Terminal::open()?;
    read_keys(messages)?;
    feed.start(client, address)?;
    let dashboard = Dashboard {
        model: &mut model,
        screen: Screen::new(),
        theme: Theme::choose(),
        zone: TimeZone::system(),
        client: None,
        histories,
        requests,
        asked: BTreeSet::new(),
        read: BTreeSet::new(),
    };
    dashboard.run(terminal, &received)?;
    Printer::of_process().conclude(&format!("{}\n", last_words(&model)));
    Ok(())
}

/// Returns the line that stays on the terminal after the dashboard has ended.
fn last_words(model: &Model) -> String {
    let (name, step) = (model.name(), model.step());
    match model.state() {
        RunState::Running | RunState::Paused if *model.connection() == Connection::Live => {
            format!("run {name} continues at step {step}; `host watch {name}` shows it again")
        }
        RunState::Running | RunState::Paused => {
            format!(
                "run {name} was last seen at step {step}: the connection to its server was lost"
            )
        }
        RunState::Ended(reason) => {
            let word = crate::show::event_line::reason_word(reason);
            format!("run {name} {word} at step {step}; `host runs show {name}` shows the results")
        }
        RunState::Crashed => format!(
            "run {name} crashed at step {step}; `host resume {name}` resumes it from its newest checkpoint"
        ),
    }
}

/// The state of the thread that draws.
struct Dashboard<'a> {
    model: &'a mut Model,
    screen: Screen,
    theme: Theme,
    zone: TimeZone,
    client: Option<Arc<Client>>,
    histories: Histories,
    requests: Requests,
    /// The metrics whose histories were requested (`asked`), and those whose histories have arrived (`read`).
    asked: BTreeSet<String>,
    read: BTreeSet<String>,
}

impl Dashboard<'_> {
    /// Draws changes and carries out key actions, until a message ends the dashboard.
    fn run(mut self, mut terminal: Terminal, messages: &Receiver<Message>) -> Result<()> {
        let mut drawn: Option<Instant> = None;
        let mut has_changed = true;
        loop {
            let wait = match drawn {
                None => Duration::ZERO,
                Some(at) if has_changed => (at + FRAME).saturating_duration_since(Instant::now()),
                Some(at) => {
                    let tick = match &self.screen.answer {
                        // The answer disappears after a while.
                        Some(_) => Duration::from_secs(1),
                        None => self.model.ledger().tick(now_us()),
                    };
                    (at + tick).saturating_duration_since(Instant::now())
                }
            };
            match messages.recv_timeout(wait) {
                Ok(message) => {
                    if self.take(message, &mut terminal)? {
                        return Ok(());
                    }
                    has_changed = true;
                    // Draws all messages of a burst in one frame.
                    if drawn.is_some_and(|at| at.elapsed() < FRAME) {
                        continue;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            self.ask_for_histories();
            let look = Look {
                theme: self.theme,
                zone: &self.zone,
                now_us: now_us(),
            };
            terminal.draw(|frame| view::draw(frame, self.model, &mut self.screen, &look))?;
            drawn = Some(Instant::now());
            has_changed = false;
        }
    }

    /// Handles a message. Returns true if it ends the dashboard.
    fn take(&mut self, message: Message, terminal: &mut Terminal) -> Result<bool> {
        match message {
            Message::News(news) => self.take_news(news),
            Message::History { metric, points } => {
                self.model.put_history(&metric, points);
                self.read.insert(metric);
            }
            Message::Input(Input::Key(key)) if key.kind != KeyEventKind::Release => {
                match self.screen.press(key, self.model) {
                    Some(Action::Leave) => return Ok(true),
                    Some(Action::Redraw) => terminal.clear()?,
                    Some(Action::Suspend) => self.suspend_group(),
                    Some(Action::Ask(request)) => {
                        let answer = self.requests.ask(self.client.as_ref(), request);
                        self.screen.answer = Some(answer);
                    }
                    None => {}
                }
            }
            Message::Input(_) => {}
            Message::Answer(answer) => self.screen.answer = Some(answer),
            Message::Suspend => terminal.suspend()?,
            Message::Continued => terminal.retake()?,
            Message::Leave => return Ok(true),
        }
        Ok(false)
    }

    /// Suspends the whole process group, as the terminal does on Ctrl-Z. The group can include a script that
    /// waits for this process. This process receives the signal too, and suspends itself when it handles the
    /// signal.
    fn suspend_group(&mut self) {
        let stopped = match terminal::has_job_control() {
            true => kill_current_process_group(Signal::TSTP).is_ok(),
            false => false,
        };
        if !stopped {
            let text = "Ctrl-Z needs a shell with job control".to_owned();
            self.screen.answer = Some(Answer::refusal(text));
        }
    }

    fn take_news(&mut self, news: News) {
        let model = &mut *self.model;
        match news {
            News::Connected { client, address } => {
                self.client = Some(client);
                self.asked.clone_from(&self.read);
                model.connect(Connection::Live, Some(address));
            }
            News::Series(series) => model.put_series(&series),
            News::Deliveries(entries) => model.put_deliveries(entries),
            News::Event(event) => model.note(&event),
            News::Lost { reason, tries } => {
                self.client = None;
                model.connect(Connection::Lost { reason, tries }, None);
            }
            News::Ended(end) => {
                if end == WatchEnd::RunCrashed {
                    model.crashed();
                }
                model.connect(Connection::Over, None);
            }
            News::Refused(reason) => model.connect(Connection::Refused(reason), None),
        }
    }

    /// Requests the histories of the metrics on the screen.
    fn ask_for_histories(&mut self) {
        let Some(client) = &self.client else {
            return;
        };
        for metric in view::shown_together(&self.screen.metric) {
            let is_known = self.model.curve(&metric).is_some();
            if is_known && !self.asked.contains(&metric) && self.histories.ask(client, &metric) {
                self.asked.insert(metric);
            }
        }
    }
}

fn now_us() -> i64 {
    Timestamp::now().as_microsecond()
}

/// Starts a thread that reads keys and size changes. The thread runs until the process ends, because the read
/// cannot be interrupted.
fn read_keys(messages: SyncSender<Message>) -> Result<()> {
    feed::spawn("keys", move || {
        while let Ok(input) = event::read() {
            if messages.send(Message::Input(input)).is_err() {
                return;
            }
        }
        // The terminal was closed.
        let _ = messages.send(Message::Leave);
    })
}

/// Starts a thread that handles signals. The first signal ends the dashboard; the second ends the process
/// immediately. On SIGTSTP, the terminal is restored before the process is suspended.
fn watch_signals(messages: SyncSender<Message>) -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGTSTP, SIGCONT])
        .map_err(|e| Error::new(ErrorKind::System, format!("cannot watch for signals: {e}")))?;
    feed::spawn("signals", move || {
        let mut is_leaving = false;
        for signal in signals.forever() {
            let message = match signal {
                SIGTSTP if !terminal::has_job_control() => continue,
                SIGTSTP => Message::Suspend,
                SIGCONT => Message::Continued,
                _ => Message::Leave,
            };
            let leaves = matches!(message, Message::Leave);
            let is_second = leaves && std::mem::replace(&mut is_leaving, leaves);
            let is_taken = !is_second && messages.try_send(message).is_ok();
            if leaves && !is_taken {
                leave_at_once(signal);
            }
            if leaves {
                // While the terminal is blocked, the thread that draws does not receive the message. If the
                // process still runs after `LEAVING`, the thread that is started here ends the process.
                feed::spawn("leaving", move || {
                    std::thread::sleep(LEAVING);
                    leave_at_once(signal);
                })
                .unwrap_or_else(|_| leave_at_once(signal));
            }
        }
    })
}

/// Restores the terminal and ends the process. If the terminal is not restored in time, ends the process
/// anyway.
fn leave_at_once(signal: i32) -> ! {
    let (done, wait) = sync_channel(1);
    let restored = feed::spawn("restoring", move || {
        terminal::restore();
        let _ = done.send(());
    });
    if restored.is_ok() {
        let _ = wait.recv_timeout(FRAME * 3);
    }
    signal_hook::low_level::exit(128 + signal)
}
