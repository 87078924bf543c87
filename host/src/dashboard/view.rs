//! The layout of the dashboard's screen, and the contents of its parts.

use jiff::tz::TimeZone;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Clear, Paragraph};

use super::chart::{Chart, Series, means};
use super::heading;
use super::model::Model;
use super::screen::{Pane, Screen};
use super::tables;
use super::theme::Theme;
use crate::show::number;

/// Below this height there is room for only one pane.
const LOW: u16 = 18;
/// There is room for all panes if the screen is at least this wide and this high.
const WIDE: u16 = 110;
const HIGH: u16 = 30;
/// The space between the parts of a line.
const GAP: &str = "  ";
/// Width of the list of metrics next to the chart.
const METRIC_LIST: u16 = 36;

/// The parameters for drawing, in addition to the dashboard's `Model` and `Screen`.
pub(super) struct Look<'a> {
    pub(super) theme: Theme,
    pub(super) zone: &'a TimeZone,
    pub(super) now_us: i64,
}

/// Draws the whole screen.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model, screen: &mut Screen, look: &Look<'_>) {
    screen.pass(look.now_us);
    let area = frame.area();
    let system = heading::system(model, area.width, look);
    let system_rows = u16::from(area.height >= LOW && system.is_some());
    let [title, progress, values, system_row, body, status] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(system_rows),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(area);
    heading::draw_title(frame, title, model, look);
    heading::draw_progress(frame, progress, model, look);
    frame.render_widget(heading::values(model, area.width, look), values);
    if let Some(line) = system {
        frame.render_widget(line, system_row);
    }
    draw_body(frame, body, area, model, screen, look);
    frame.render_widget(heading::status(model, screen, area.width, look), status);
    if screen.is_help_open {
        draw_help(frame, look);
    }
}

fn draw_body(
    frame: &mut Frame<'_>,
    body: Rect,
    area: Rect,
    model: &Model,
    screen: &mut Screen,
    look: &Look<'_>,
) {
    if area.height < LOW {
        draw_pane(frame, body, screen.focus, model, screen, look);
    } else if area.width < WIDE || area.height < HIGH {
        let [chart, lower] =
            Layout::vertical([Constraint::Fill(3), Constraint::Fill(2)]).areas(body);
        draw_pane(frame, chart, Pane::Chart, model, screen, look);
        draw_pane(frame, lower, screen.lower, model, screen, look);
    } else {
        let rows = model.plugins().len().max(model.ledger().entries().len());
        let rows = (rows as u16 + 2).clamp(4, 10);
        let [upper, middle, log] = Layout::vertical([
            Constraint::Fill(3),
            Constraint::Length(rows),
            Constraint::Fill(2),
        ])
        .areas(body);
        let beside = [Constraint::Fill(1), Constraint::Length(METRIC_LIST)];
        let [chart, list] = Layout::horizontal(beside).spacing(2).areas(upper);
        draw_pane(frame, chart, Pane::Chart, model, screen, look);
        draw_metrics(frame, list, model, screen, look);
        let halves = [Constraint::Min(tables::PLUGINS), Constraint::Fill(1)];
        let [plugins, deliveries] = Layout::horizontal(halves).spacing(2).areas(middle);
        draw_pane(frame, plugins, Pane::Plugins, model, screen, look);
        draw_pane(frame, deliveries, Pane::Deliveries, model, screen, look);
        draw_pane(frame, log, Pane::Log, model, screen, look);
    }
}

/// Draws a pane of text, and returns how far it can be scrolled.
type DrawTable = fn(&mut Frame<'_>, Rect, &Model, usize, &Look<'_>) -> usize;

fn draw_pane(
    frame: &mut Frame<'_>,
    area: Rect,
    pane: Pane,
    model: &Model,
    screen: &mut Screen,
    look: &Look<'_>,
) {
    let (name, draw): (_, DrawTable) = match pane {
        Pane::Chart => return draw_chart(frame, area, model, screen, look),
        Pane::Plugins => ("plugins", tables::draw_plugins),
        Pane::Deliveries => ("deliveries", tables::draw_deliveries),
        Pane::Log => ("log", tables::draw_log),
    };
    let is_focus = screen.focus == pane;
    let inside = framed(frame, area, Line::from(name), is_focus, look);
    let scroll = if is_focus { screen.scroll } else { 0 };
    let furthest = draw(frame, inside, model, scroll, look);
    if is_focus {
        screen.scroll = screen.scroll.min(furthest);
    }
}

/// Draws a line with a title at the top of the area. Returns the area below it.
fn framed(
    frame: &mut Frame<'_>,
    area: Rect,
    title: Line<'_>,
    is_focus: bool,
    look: &Look<'_>,
) -> Rect {
    let theme = &look.theme;
    let (mark, style) = match is_focus {
        true => ("─ ▸ ", theme.focus),
        false => ("── ", theme.label),
    };
    let mut spans = vec![Span::styled(mark, style)];
    spans.extend(
        title
            .spans
            .into_iter()
            .map(|span| match span.style == Style::new() {
                true => span.style(if is_focus { theme.focus } else { theme.bold }),
                false => span,
            }),
    );
    spans.push(Span::raw(" "));
    let block = Block::new()
        .borders(Borders::TOP)
        .border_style(if is_focus { theme.focus } else { theme.label })
        .title(Line::from(spans));
    let inside = block.inner(area);
    frame.render_widget(block, area);
    inside
}

/// Returns the metrics to draw when `metric` is chosen. A metric of the training and the same metric of the
/// evaluation are drawn together.
pub(super) fn shown_together(metric: &str) -> Vec<String> {
    match metric
        .strip_suffix("/train")
        .or(metric.strip_suffix("/eval"))
    {
        Some(stem) => vec![format!("{stem}/train"), format!("{stem}/eval")],
        None => vec![metric.to_owned()],
    }
}

/// Formats the title of the chart. The title contains: the metrics with their values; the position of the
/// chosen metric in the list; and the display options that differ from the default. Parts that do not fit are
/// omitted. The name and value of the chosen metric are never omitted.
fn chart_title<'a>(model: &Model, screen: &Screen, width: u16, look: &Look<'_>) -> Line<'a> {
    let theme = &look.theme;
    // The frame draws a mark before the title and a space after it.
    let room = usize::from(width).saturating_sub(5);
    let mut parts = Vec::new();
    let metrics = shown_together(&screen.metric).into_iter();
    for (metric, style) in metrics.zip(theme.curves) {
        let Some(value) = model.value(&metric) else {
            continue;
        };
        let mark = match theme.has_colors || metric.ends_with("/train") || parts.is_empty() {
            true => "⠒ ",
            false => "• ",
        };
        let value = format!(" {}", metric_value(&metric, value));
        let name = tables::clipped_left(&metric, room.saturating_sub(2 + value.chars().count()));
        // The frame makes the title bold. Removing the modifier prevents this for a metric that is drawn
        // together with the chosen one.
        let (rank, text) = match *metric == *screen.metric {
            true => (0, Style::new()),
            false => (2, Style::new().remove_modifier(Modifier::BOLD)),
        };
        let curve = [Span::styled(mark, style), Span::styled(name + &value, text)];
        parts.push((rank, Line::from_iter(curve)));
    }
    if parts.is_empty() {
        let nothing = format!("{} has no value yet", screen.metric);
        parts.push((0, Line::raw(nothing)));
    }
    let names = model.metric_names();
    if let Some(at) = names.iter().position(|name| **name == screen.metric) {
        let place = format!("{}/{}", at + 1, names.len());
        parts.push((3, Line::from(Span::styled(place, theme.label))));
    }
    if screen.is_log_shown {
        parts.push((1, Line::from(Span::styled("log", theme.label))));
    }
    if screen.has_every_point {
        parts.push((1, Line::from(Span::styled("every point", theme.label))));
    }
    whole_parts(parts, room)
}

/// Joins the parts that fit, in their original order. Always keeps parts of rank 0. Among the other parts,
/// lower ranks are kept first.
fn whole_parts(parts: Vec<(u8, Line<'_>)>, room: usize) -> Line<'_> {
    let mut by_rank: Vec<usize> = (0..parts.len()).collect();
    by_rank.sort_by_key(|&n| parts[n].0);
    let mut is_kept = vec![false; parts.len()];
    // The loop counts a gap before every part. The first part needs none, so there is room for one more gap.
    let mut left = room + GAP.len();
    for n in by_rank {
        let wanted = parts[n].1.width() + GAP.len();
        if parts[n].0 == 0 || wanted <= left {
            is_kept[n] = true;
            left = left.saturating_sub(wanted);
        }
    }
    let mut line = Line::default();
    for (n, (_, part)) in parts.into_iter().enumerate() {
        if !is_kept[n] {
            continue;
        }
        if !line.spans.is_empty() {
            line.push_span(Span::raw(GAP));
        }
        line.spans.extend(part.spans);
    }
    line
}

/// Draws the pane of the chosen metric.
fn draw_chart(
    frame: &mut Frame<'_>,
    area: Rect,
    model: &Model,
    screen: &mut Screen,
    look: &Look<'_>,
) {
    let theme = &look.theme;
    let metrics = shown_together(&screen.metric);
    let series = metrics.iter().zip(theme.curves).enumerate();
    let series = series.filter_map(|(n, (metric, style))| {
        let points = model.curve(metric)?.points();
        // A braille cell is two points wide.
        let columns = match screen.has_every_point {
            true => points.len(),
            false => 2 * usize::from(area.width),
        };
        Some(Series {
            points: means(points, columns),
            style,
            is_dotted: n > 0 && !theme.has_colors,
        })
    });
    let chart = Chart::new(series.collect(), screen.log_scale, theme.label);
    screen.is_log_shown = chart.as_ref().is_some_and(Chart::is_log);
    let title = chart_title(model, screen, area.width, look);
    let inside = framed(frame, area, title, screen.focus == Pane::Chart, look);
    if let Some(chart) = &chart {
        frame.render_widget(chart, inside);
    }
}

/// Draws the names and values of the metrics, scrolled so that the chosen metric is visible.
fn draw_metrics(
    frame: &mut Frame<'_>,
    area: Rect,
    model: &Model,
    screen: &Screen,
    look: &Look<'_>,
) {
    let inside = framed(frame, area, Line::from("metrics"), false, look);
    let names = model.metric_names();
    let rows = usize::from(inside.height);
    let chosen = names.iter().position(|name| **name == screen.metric);
    let first = chosen.unwrap_or(0).saturating_sub(rows / 2);
    let first = first.min(names.len().saturating_sub(rows));
    let lines = names
        .iter()
        .enumerate()
        .skip(first)
        .take(rows)
        .map(|(at, name)| {
            let value = model.value(name).map(|value| metric_value(name, value));
            let value = value.unwrap_or_default();
            let room = usize::from(inside.width).saturating_sub(value.chars().count() + 3);
            let name = tables::clipped_left(name, room);
            let (mark, style) = match Some(at) == chosen {
                true => ("▸ ", look.theme.focus),
                false => ("  ", Style::new()),
            };
            Line::styled(format!("{mark}{name:<room$} {value}"), style)
        });
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), inside);
}

/// Formats a metric's value with the unit that its name implies.
pub(super) fn metric_value(metric: &str, value: f64) -> String {
    match metric {
        _ if !value.is_finite() => number::value(value),
        _ if metric.ends_with("_secs") => number::latency(value),
        _ if metric.ends_with("_bytes") && value >= 0.0 => number::bytes(value as u64),
        _ if let Some(metric) = metric.strip_suffix("_per_sec") => {
            format!("{}/s", metric_value(metric, value))
        }
        _ if metric.ends_with("_per_second") => format!("{}/s", number::count(value)),
        _ if metric.ends_with("_percent") => format!("{value:.0} %"),
        _ => number::value(value),
    }
}

const HELP: [(&str, &str); 11] = [
    ("Tab", "next pane; Shift-Tab goes back"),
    ("← →", "choose the metric"),
    ("↑ ↓", "scroll; in the chart, choose the metric"),
    ("l", "linear or logarithmic axis"),
    ("m", "averages or every point"),
    ("c", "write a checkpoint now"),
    ("e", "evaluate now"),
    ("p", "pause or continue"),
    ("s", "stop, with a checkpoint"),
    ("q", "quit; the run continues"),
    ("?", "help; any key closes it"),
];

fn draw_help(frame: &mut Frame<'_>, look: &Look<'_>) {
    let area = frame.area();
    let width = 50.min(area.width);
    let height = (HELP.len() as u16 + 2).min(area.height);
    let popup = Rect {
        x: (area.width - width) / 2,
        y: (area.height - height) / 2,
        width,
        height,
    };
    let lines = HELP.iter().map(|(key, does)| {
        Line::from(vec![
            Span::styled(format!(" {key:<5}"), look.theme.focus),
            Span::raw(*does),
        ])
    });
    frame.render_widget(Clear, popup);
    let block = Block::bordered().title(" keys ");
    frame.render_widget(
        Paragraph::new(lines.collect::<Vec<_>>()).block(block),
        popup,
    );
}

#[cfg(test)]
pub(super) mod tests;
