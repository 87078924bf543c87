//! The lines above and below the panes: the run, its progress, the newest values, the status line.

use host_core::{EVAL_LOSS, Request, StopReason};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span};

use super::model::{Connection, Model, RunState};
use super::screen::Screen;
use super::tables::{clipped_left, clipped_right};
use super::view::{Look, metric_value};
use crate::show::event_line::reason_word;
use crate::show::number;

/// Draws the run's name, its state, and the address of the server.
pub(super) fn draw_title(frame: &mut Frame<'_>, area: Rect, model: &Model, look: &Look<'_>) {
    let theme = &look.theme;
    let (state, style) = match model.state() {
        RunState::Running => ("● training", theme.good),
        RunState::Paused => ("‖ paused", theme.warning),
        RunState::Ended(reason @ StopReason::Failed) => (reason_word(reason), theme.warning),
        RunState::Ended(reason) => (reason_word(reason), theme.good),
        RunState::Crashed => ("crashed", theme.warning),
    };
    let ranks = match model.value("rank/world_size") {
        Some(count) => format!("  {count} ranks"),
        None => String::new(),
    };
    let left = Line::from(vec![
        Span::styled(model.name().to_owned(), theme.bold),
        Span::raw("  "),
        Span::styled(state, style),
        Span::styled(ranks, theme.label),
    ]);
    let room = usize::from(area.width).saturating_sub(left.width() + 2);
    let (connection, connection_style) = match model.connection() {
        Connection::Live | Connection::Over => (clipped_left(model.address(), room), theme.label),
        Connection::Lost { reason, tries } => (
            format!("reconnecting, attempt {tries}: {reason}"),
            theme.warning,
        ),
        Connection::Refused(reason) => (reason.clone(), theme.warning),
    };
    let columns = [
        Constraint::Length(left.width() as u16 + 2),
        Constraint::Fill(1),
    ];
    let [left_area, right_area] = Layout::horizontal(columns).areas(area);
    frame.render_widget(left, left_area);
    let connection = Line::styled(connection, connection_style);
    // A long reason is left-aligned, so that its beginning is visible.
    let connection = match connection.width() <= usize::from(right_area.width) {
        true => connection.right_aligned(),
        false => connection,
    };
    frame.render_widget(connection, right_area);
}

/// Draws `███████░░░░░  45 %  900/2000 steps  3m10s left`.
pub(super) fn draw_progress(frame: &mut Frame<'_>, area: Rect, model: &Model, look: &Look<'_>) {
    let (step, last) = (model.step(), model.last_step());
    let mut text = match last {
        0 => format!("step {step}"),
        _ => {
            let percent = (step * 100).checked_div(last).unwrap_or(0).min(100);
            format!("{percent:>3} %  {step}/{last} steps")
        }
    };
    if let Some(secs) = model.seconds_left() {
        text += &format!("  {} left", number::duration(secs));
    }
    let room = usize::from(area.width).saturating_sub(text.chars().count() + 2);
    let line = if last == 0 || room < 8 {
        Line::raw(text)
    } else {
        let done = (room as u128 * u128::from(step.min(last)) / u128::from(last)) as usize;
        Line::from(vec![
            Span::styled("█".repeat(done), look.theme.curves[0]),
            Span::styled("░".repeat(room - done), look.theme.label),
            Span::raw("  "),
            Span::raw(text),
        ])
    };
    frame.render_widget(line, area);
}

/// Formats the most important values, as many as fit into the line.
pub(super) fn values<'a>(model: &Model, width: u16, look: &Look<'_>) -> Line<'a> {
    let mut parts = Vec::new();
    for (label, metric) in [("loss", "loss/train"), ("eval", EVAL_LOSS), ("lr", "lr")] {
        if let Some(value) = model.value(metric) {
            parts.push((label.to_owned(), metric_value(metric, value)));
        }
    }
    if let Some(speed) = model.value("tokens_per_second") {
        parts.push(("tokens/s".to_owned(), number::count(speed)));
    }
    if let Some(secs) = model.value("step_secs") {
        let p50 = model.step_secs_p50().map(number::latency);
        let p50 = p50.map(|p50| format!(" (p50 {p50})")).unwrap_or_default();
        parts.push(("step".to_owned(), number::latency(secs) + &p50));
    }
    if let Some(share) = model.value("mfu") {
        parts.push(("mfu".to_owned(), number::percent(share * 100.0)));
    }
    fitted(parts, width, look)
}

/// Formats the system metrics, such as `system/cpu_percent`. Returns `None` if the run has none.
pub(super) fn system<'a>(model: &Model, width: u16, look: &Look<'_>) -> Option<Line<'a>> {
    let parts: Vec<(String, String)> = model
        .system()
        .into_iter()
        .map(|(name, value)| {
            let label = ["_per_sec", "_bytes", "_percent"]
                .into_iter()
                .fold(name, |name, unit| name.strip_suffix(unit).unwrap_or(name))
                .replace(['_', '/'], " ");
            (label, metric_value(name, value))
        })
        .collect();
    (!parts.is_empty()).then(|| fitted(parts, width, look))
}

/// Formats as many labels with their values as fit completely.
fn fitted<'a>(parts: Vec<(String, String)>, width: u16, look: &Look<'_>) -> Line<'a> {
    let mut line = Line::default();
    for (label, value) in parts {
        let gap = if line.spans.is_empty() { "" } else { "  " };
        let label = format!("{gap}{label} ");
        let wanted = line.width() + label.chars().count() + value.chars().count();
        if wanted > usize::from(width) {
            break;
        }
        line.push_span(Span::styled(label, look.theme.label));
        line.push_span(Span::raw(value));
    }
    line
}

/// Formats the status line. The line shows the question that waits for an
/// answer. Without such a question, it shows the keys and the last answer.
pub(super) fn status<'a>(model: &Model, screen: &Screen, width: u16, look: &Look<'_>) -> Line<'a> {
    let theme = &look.theme;
    let width = usize::from(width);
    if let Some(request) = screen.pending {
        let question = format!(
            "{} {}, after a checkpoint? y/n",
            request_word(request),
            model.name()
        );
        return Line::styled(question, theme.focus);
    }
    let answer = screen.answer.as_ref().map_or(Line::default(), |answer| {
        let style = match answer.is_refusal {
            true => theme.warning,
            false => theme.good,
        };
        let room = width.saturating_sub("q quit  ? help  ".len());
        Line::styled(clipped_right(&answer.text, room), style)
    });
    let room = match answer.width() {
        0 => width,
        taken => width.saturating_sub(taken + 2),
    };
    let mut line = keys(model, room, look);
    let space = width.saturating_sub(line.width() + answer.width());
    line.push_span(" ".repeat(space));
    line.push_span(Span::styled(answer.to_string(), answer.style));
    line
}

/// Formats as many keys with their actions as fit completely.
fn keys<'a>(model: &Model, room: usize, look: &Look<'_>) -> Line<'a> {
    let pause = if model.state() == RunState::Paused {
        "continue"
    } else {
        "pause"
    };
    let mut keys = vec![
        ("q", "quit"),
        ("?", "help"),
        ("Tab", "pane"),
        ("←→", "metric"),
    ];
    if model.is_at_work() {
        keys.extend([
            ("s", "stop"),
            ("c", "checkpoint"),
            ("e", "evaluate"),
            ("p", pause),
        ]);
    }
    let mut line = Line::default();
    for (key, does) in keys {
        let gap = if line.spans.is_empty() { "" } else { "  " };
        let does = format!(" {does}");
        let wanted = gap.len() + key.chars().count() + does.len();
        if line.width() + wanted > room {
            break;
        }
        line.push_span(Span::raw(gap));
        line.push_span(Span::styled(key, look.theme.focus));
        line.push_span(Span::styled(does, look.theme.label));
    }
    line
}

/// Returns a word for a request.
pub(super) fn request_word(request: Request) -> &'static str {
    match request {
        Request::Stop => "stop",
        Request::Checkpoint => "checkpoint",
        Request::Evaluate => "evaluation",
        Request::Pause => "pause",
        Request::Continue => "continue",
        _ => "request",
    }
}
