//! The user's choices, and the actions of the keys.

use std::sync::Arc;

use host_core::Request;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::model::{Model, RunState};

/// A part of the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pane {
    /// The chosen metric's curve.
    Chart,
    /// The cost of the plugins.
    Plugins,
    /// The delivery ledger.
    Deliveries,
    /// The log of events.
    Log,
}

impl Pane {
    pub(super) const ALL: [Self; 4] = [Self::Chart, Self::Plugins, Self::Deliveries, Self::Log];

    fn next(self, by: usize) -> Self {
        let at = Self::ALL.iter().position(|pane| *pane == self);
        Self::ALL[(at.unwrap_or(0) + by) % Self::ALL.len()]
    }
}

/// How long an answer is shown if no key is pressed.
const ANSWER_US: i64 = 10_000_000;

/// An action that a key triggers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Action {
    /// End the dashboard; the run continues.
    Leave,
    /// Redraw the whole screen, in case something else wrote on it.
    Redraw,
    /// Stop the process and return the terminal to the shell.
    Suspend,
    /// Send a request to the run.
    Ask(Request),
}

/// The answer to the last request, or the reason why the request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) is_refusal: bool,
    pub(super) text: String,
    /// When the answer was first drawn.
    shown_us: Option<i64>,
}

impl Answer {
    /// Creates the answer to an accepted request. The run has carried it out, or will do so.
    pub(super) fn done(text: String) -> Self {
        Self {
            is_refusal: false,
            text,
            shown_us: None,
        }
    }

    /// Creates an answer with the reason why a request is not carried out.
    pub(super) fn refusal(text: String) -> Self {
        Self {
            is_refusal: true,
            ..Self::done(text)
        }
    }
}

/// The user's choices.
#[derive(Clone, Debug)]
pub(super) struct Screen {
    pub(super) focus: Pane,
    /// The pane below the chart. Used on screens where only one pane fits there.
    pub(super) lower: Pane,
    pub(super) metric: Arc<str>,
    /// Whether the vertical axis of every chart is logarithmic. `None`: depends on the values.
    pub(super) log_scale: Option<bool>,
    /// Whether the curves show every point. Otherwise, dense points are replaced by their means.
    pub(super) has_every_point: bool,
    /// Number of lines by which the focused pane is scrolled. The log scrolls up, and the tables scroll down.
    pub(super) scroll: usize,
    pub(super) is_help_open: bool,
    /// The request that waits for the user's confirmation.
    pub(super) pending: Option<Request>,
    pub(super) answer: Option<Answer>,
    /// Whether the chart was last drawn with a logarithmic axis.
    pub(super) is_log_shown: bool,
}

impl Screen {
    pub(super) fn new() -> Self {
        Self {
            focus: Pane::Chart,
            lower: Pane::Log,
            metric: "loss/train".into(),
            log_scale: None,
            has_every_point: false,
            scroll: 0,
            is_help_open: false,
            pending: None,
            answer: None,
            is_log_shown: false,
        }
    }

    /// Removes an answer that was shown long enough. Called for each frame, with the frame's time.
    pub(super) fn pass(&mut self, now_us: i64) {
        if let Some(answer) = &mut self.answer {
            let shown_us = *answer.shown_us.get_or_insert(now_us);
            if now_us.saturating_sub(shown_us) >= ANSWER_US {
                self.answer = None;
            }
        }
    }

    /// Handles a key.
    pub(super) fn press(&mut self, key: KeyEvent, model: &Model) -> Option<Action> {
        let with_control = key.modifiers.contains(KeyModifiers::CONTROL);
        if with_control {
            return match key.code {
                KeyCode::Char('c') => Some(Action::Leave),
                KeyCode::Char('l') => Some(Action::Redraw),
                KeyCode::Char('z') => Some(Action::Suspend),
                _ => None,
            };
        }
        if let Some(request) = self.pending.take() {
            return match key.code {
                KeyCode::Char('y' | 'Y') | KeyCode::Enter => Some(Action::Ask(request)),
                _ => None,
            };
        }
        self.answer = None;
        if self.is_help_open {
            self.is_help_open = false;
            return (key.code == KeyCode::Char('q')).then_some(Action::Leave);
        }
        match key.code {
            KeyCode::Char('q') => return Some(Action::Leave),
            KeyCode::Char('?' | 'h') => self.is_help_open = true,
            KeyCode::Tab => self.focus(self.focus.next(1)),
            KeyCode::BackTab => self.focus(self.focus.next(Pane::ALL.len() - 1)),
            KeyCode::Left => self.choose(model, -1),
            KeyCode::Right => self.choose(model, 1),
            KeyCode::Char('l') => self.log_scale = Some(!self.is_log_shown),
            KeyCode::Char('m') => self.has_every_point = !self.has_every_point,
            KeyCode::Up | KeyCode::Down | KeyCode::PageUp | KeyCode::PageDown
                if self.focus == Pane::Chart =>
            {
                let back = matches!(key.code, KeyCode::Up | KeyCode::PageUp);
                self.choose(model, if back { -1 } else { 1 });
            }
            KeyCode::Up => self.scroll(-1),
            KeyCode::Down => self.scroll(1),
            KeyCode::PageUp => self.scroll(-10),
            KeyCode::PageDown => self.scroll(10),
            KeyCode::Char('s') => self.pending = self.allowed(Request::Stop, model),
            KeyCode::Char('c') => return self.ask(Request::Checkpoint, model),
            KeyCode::Char('e') => return self.ask(Request::Evaluate, model),
            KeyCode::Char('p') if model.state() == RunState::Paused => {
                return self.ask(Request::Continue, model);
            }
            KeyCode::Char('p') => return self.ask(Request::Pause, model),
            _ => {}
        }
        None
    }

    fn focus(&mut self, pane: Pane) {
        self.focus = pane;
        self.scroll = 0;
        if pane != Pane::Chart {
            self.lower = pane;
        }
    }

    fn scroll(&mut self, lines: isize) {
        // Unscrolled, the log shows its newest lines, which are at its end. It therefore scrolls up.
        let lines = if self.focus == Pane::Log {
            -lines
        } else {
            lines
        };
        self.scroll = self.scroll.saturating_add_signed(lines);
    }

    fn choose(&mut self, model: &Model, by: isize) {
        let names = model.metric_names();
        if names.is_empty() {
            return;
        }
        let at = names.iter().position(|name| **name == self.metric);
        let next = match at {
            Some(at) => (at as isize + by).rem_euclid(names.len() as isize) as usize,
            None => 0,
        };
        self.metric = Arc::clone(names[next]);
    }

    fn ask(&mut self, request: Request, model: &Model) -> Option<Action> {
        self.allowed(request, model).map(Action::Ask)
    }

    /// Returns the request if the run can carry it out. Otherwise sets an answer with the reason.
    fn allowed(&mut self, request: Request, model: &Model) -> Option<Request> {
        if model.is_at_work() {
            return Some(request);
        }
        let text = "the run is not live".to_owned();
        self.answer = Some(Answer::refusal(text));
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::tests::{event, metrics, row};
    use super::*;
    use host_core::{EventBody, StopReason};

    fn press(screen: &mut Screen, model: &Model, code: KeyCode) -> Option<Action> {
        screen.press(KeyEvent::from(code), model)
    }

    fn running() -> Model {
        let mut model = Model::new(&row(), String::new());
        model.note(&event(1, 1, metrics(&[("loss/train", 3.0), ("lr", 1e-3)])));
        model
    }

    #[test]
    fn a_stop_needs_a_confirmation() {
        let (mut screen, model) = (Screen::new(), running());
        assert_eq!(press(&mut screen, &model, KeyCode::Char('s')), None);
        assert_eq!(press(&mut screen, &model, KeyCode::Char('n')), None);
        assert_eq!(press(&mut screen, &model, KeyCode::Char('y')), None);
        press(&mut screen, &model, KeyCode::Char('s'));
        let stop = Some(Action::Ask(Request::Stop));
        assert_eq!(press(&mut screen, &model, KeyCode::Char('y')), stop);
    }

    #[test]
    fn keys_send_no_request_to_a_run_that_has_ended() {
        let (mut screen, mut model) = (Screen::new(), running());
        let reason = StopReason::Completed;
        let message = String::new();
        model.note(&event(2, 1, EventBody::RunFinished { reason, message }));
        for key in ['s', 'c', 'e', 'p'] {
            assert_eq!(press(&mut screen, &model, KeyCode::Char(key)), None);
            assert_eq!(screen.pending, None);
            assert!(
                screen
                    .answer
                    .as_ref()
                    .is_some_and(|answer| answer.is_refusal)
            );
        }
    }

    #[test]
    fn arrows_choose_the_metric_or_scroll_the_pane() {
        let (mut screen, model) = (Screen::new(), running());
        press(&mut screen, &model, KeyCode::Down);
        assert_eq!(&*screen.metric, "lr");
        press(&mut screen, &model, KeyCode::Right);
        assert_eq!(&*screen.metric, "loss/train");
        press(&mut screen, &model, KeyCode::BackTab);
        assert_eq!(screen.focus, Pane::Log);
        press(&mut screen, &model, KeyCode::Up);
        assert_eq!((screen.scroll, &*screen.metric), (1, "loss/train"));
    }

    #[test]
    fn the_chosen_axis_applies_to_every_curve() {
        let (mut screen, model) = (Screen::new(), running());
        press(&mut screen, &model, KeyCode::Char('l'));
        press(&mut screen, &model, KeyCode::Right);
        assert_eq!((&*screen.metric, screen.log_scale), ("lr", Some(true)));
    }

    #[test]
    fn an_answer_disappears_after_a_key_or_a_while() {
        let (mut screen, model) = (Screen::new(), running());
        screen.answer = Some(Answer::done("pause: carried out".to_owned()));
        for (now_us, is_there) in [(7, true), (6 + ANSWER_US, true), (7 + ANSWER_US, false)] {
            screen.pass(now_us);
            assert_eq!(screen.answer.is_some(), is_there, "{now_us}");
        }
        screen.answer = Some(Answer::done("pause: carried out".to_owned()));
        press(&mut screen, &model, KeyCode::Tab);
        assert_eq!(screen.answer, None);
    }

    #[test]
    fn q_and_control_c_quit_even_from_the_help() {
        let (mut screen, model) = (Screen::new(), running());
        press(&mut screen, &model, KeyCode::Char('?'));
        let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(screen.press(control_c, &model), Some(Action::Leave));
        assert_eq!(
            press(&mut screen, &model, KeyCode::Char('q')),
            Some(Action::Leave)
        );
    }
}
