//! The text panes: plugins, deliveries and log. Each function returns how far the pane can be scrolled.

use host_core::DeliveryState;
use host_store::Delivery;
use jiff::tz::TimeZone;
use ratatui::Frame;
use ratatui::layout::{Constraint, Rect};
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table};

use super::model::{LogLine, Model};
use super::view::Look;
use crate::show::event_line::one_line;
use crate::show::number;

/// Width that the table of plugins needs for all columns except the last.
pub(super) const PLUGINS: u16 = 58;

/// Width of the time in the log.
const CLOCK: usize = 10;

/// Below this width, deliveries in the log are shown in the shortest form.
const BRIEF: usize = 50;

/// Draws the cost of the plugins.
pub(super) fn draw_plugins(
    frame: &mut Frame<'_>,
    area: Rect,
    model: &Model,
    scroll: usize,
    look: &Look<'_>,
) -> usize {
    let plugins = model.plugins();
    if plugins.is_empty() {
        return nothing(frame, area, "no plugin calls yet", look);
    }
    let theme = &look.theme;
    let room = usize::from(area.height.saturating_sub(1));
    let furthest = plugins.len().saturating_sub(room);
    let right = |text: String| Cell::from(Line::raw(text).right_aligned());
    let count = |value: Option<f64>| right(value.map(number::count).unwrap_or_default());
    let latency = |value: Option<f64>| right(value.map(number::latency).unwrap_or_default());
    let rows = plugins.iter().skip(scroll.min(furthest)).map(|plugin| {
        let failures = count(plugin.failures);
        let has_failed = plugin.failures.is_some_and(|failures| failures > 0.0);
        let share = plugin
            .step_share
            .map(|share| format!("{:.1} %", share * 100.0));
        Row::new([
            Cell::from(plugin.label.clone()),
            count(plugin.calls),
            if has_failed {
                failures.style(theme.warning)
            } else {
                failures
            },
            latency(plugin.p50_secs),
            latency(plugin.p99_secs),
            right(share.unwrap_or_default()),
            count(plugin.queue_depth),
            count(plugin.restarts),
        ])
    });
    let names = [
        "plugin", "calls", "failed", "p50", "p99", "share", "queue", "restarts",
    ];
    let header = names.into_iter().enumerate().map(|(n, name)| match n {
        0 => Cell::from(name),
        _ => right(name.to_owned()),
    });
    let widths = [
        Constraint::Fill(1),
        Constraint::Length(6),
        Constraint::Length(6),
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Length(6),
        Constraint::Length(5),
        Constraint::Length(8),
    ];
    // The rightmost columns are the least important, and are dropped first.
    let fits = match area.width {
        0..45 => 4,
        45..PLUGINS => 6,
        PLUGINS..68 => 7,
        _ => widths.len(),
    };
    let table = Table::new(rows, widths[..fits].to_vec())
        .header(Row::new(header.take(fits)).style(theme.label));
    frame.render_widget(table, area);
    furthest
}

/// Draws the delivery ledger.
pub(super) fn draw_deliveries(
    frame: &mut Frame<'_>,
    area: Rect,
    model: &Model,
    scroll: usize,
    look: &Look<'_>,
) -> usize {
    let entries = model.ledger().entries();
    if entries.is_empty() {
        return nothing(frame, area, "no deliveries yet", look);
    }
    let theme = &look.theme;
    let room = usize::from(area.height.saturating_sub(1));
    let furthest = entries.len().saturating_sub(room);
    let longest = entries.iter().map(|entry| entry.sink.chars().count()).max();
    let sink_width = (longest.unwrap_or(4) as u16).clamp(4, (area.width / 4).max(4));
    let other = [7, 9, 6];
    let left = area
        .width
        .saturating_sub(sink_width + other.iter().sum::<u16>() + 4);
    let rows = entries.iter().skip(scroll.min(furthest)).map(|entry| {
        let style = match entry.state {
            DeliveryState::Delivered => theme.good,
            DeliveryState::Failed => theme.warning,
            _ => Style::new(),
        };
        let age = age(look.now_us, entry.time_us);
        Row::new([
            Cell::from(entry.sink.clone()),
            Cell::from(Line::raw(entry.checkpoint.to_string()).right_aligned()),
            Cell::from(state_word(entry.state)).style(style),
            Cell::from(Line::raw(age).right_aligned()),
            Cell::from(fate(entry, look.now_us, left.into())),
        ])
    });
    let header = ["sink", "step", "state", "age", ""].into_iter().enumerate();
    let header = header.map(|(n, name)| match n {
        1 | 3 => Cell::from(Line::raw(name).right_aligned()),
        _ => Cell::from(name),
    });
    let widths = [
        Constraint::Length(sink_width),
        Constraint::Length(other[0]),
        Constraint::Length(other[1]),
        Constraint::Length(other[2]),
        Constraint::Fill(1),
    ];
    let table = Table::new(rows, widths).header(Row::new(header).style(theme.label));
    frame.render_widget(table, area);
    furthest
}

fn state_word(state: DeliveryState) -> &'static str {
    match state {
        DeliveryState::Queued => "queued",
        DeliveryState::Sending => "sending",
        DeliveryState::Delivered => "delivered",
        DeliveryState::Failed => "failed",
        DeliveryState::Dropped => "dropped",
    }
}

/// Formats the outcome of a delivery. After a success, this is the location, shortened to `room` columns.
/// After a failure, it is the reason, preceded by the time until the retry if there will be one.
fn fate(entry: &Delivery, now_us: i64, room: usize) -> String {
    match entry.state {
        DeliveryState::Queued | DeliveryState::Sending => String::new(),
        DeliveryState::Delivered => {
            let place = entry.location();
            place.map(|place| short(&place, room)).unwrap_or_default()
        }
        DeliveryState::Failed | DeliveryState::Dropped => {
            let reason = one_line(&entry.detail);
            match entry.retry_time_us {
                Some(at) => {
                    let left = (at - now_us).max(0) as f64 / 1e6;
                    format!("retry in {}: {reason}", number::duration(left.ceil()))
                }
                None => reason,
            }
        }
    }
}

/// Shortens a location. If it is a commit id, keeps the beginning, as git does. If it is a path, keeps the
/// end.
fn short(location: &str, room: usize) -> String {
    let location = one_line(location);
    let is_id = location.len() >= 40 && location.bytes().all(|b| b.is_ascii_hexdigit());
    match is_id {
        true => clipped_right(&location[..12], room),
        false => clipped_left(&location, room),
    }
}

fn age(now_us: i64, time_us: i64) -> String {
    number::duration(((now_us - time_us).max(0) / 1_000_000) as f64).replace(".0s", "s")
}

/// Draws the log, newest line last.
pub(super) fn draw_log(
    frame: &mut Frame<'_>,
    area: Rect,
    model: &Model,
    scroll: usize,
    look: &Look<'_>,
) -> usize {
    let log = model.log();
    if log.is_empty() {
        return nothing(frame, area, "no events yet", look);
    }
    let room = usize::from(area.height);
    let furthest = log.len().saturating_sub(room);
    let first = furthest - scroll.min(furthest);
    let columns = usize::from(area.width).saturating_sub(CLOCK);
    let lines = log.iter().skip(first).take(room).map(|line| {
        Line::from(vec![
            Span::styled(clock(line.time_us, look.zone), look.theme.label),
            Span::raw("  "),
            Span::styled(fitted(line, columns), look.theme.of(line.weight)),
        ])
    });
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), area);
    furthest
}

/// Fits a log line into `room` columns. A delivery is shortened so that the end of its location stays
/// visible.
fn fitted(line: &LogLine, room: usize) -> String {
    if line.text.chars().count() <= room {
        return line.text.clone();
    }
    let Some(entry) = &line.delivery else {
        return clipped_right(&line.text, room);
    };
    let (step, sink) = (entry.checkpoint, &entry.sink);
    let Some(place) = entry.location() else {
        let brief = format!("{step} failed for {sink}: {}", one_line(&entry.detail));
        let is_brief = room < BRIEF && entry.state == DeliveryState::Failed;
        return clipped_right(if is_brief { &brief } else { &line.text }, room);
    };
    let says = match room {
        0..BRIEF => format!("{step} at {sink} "),
        _ => format!("step {step:<6}  delivered to {sink}: "),
    };
    let left = room.saturating_sub(says.chars().count());
    says + &short(&place, left)
}

fn clock(time_us: i64, zone: &TimeZone) -> String {
    match jiff::Timestamp::from_microsecond(time_us) {
        Ok(time) => time
            .to_zoned_datetime(zone.clone())
            .strftime("%H:%M:%S")
            .to_string(),
        Err(_) => "        ".to_owned(),
    }
}

fn nothing(frame: &mut Frame<'_>, area: Rect, text: &str, look: &Look<'_>) -> usize {
    frame.render_widget(Line::styled(text, look.theme.label), area);
    0
}

/// Truncates a long text at its end, and adds an ellipsis.
pub(super) fn clipped_right(text: &str, room: usize) -> String {
    if text.chars().count() <= room {
        return text.to_owned();
    }
    let kept = text.chars().take(room.saturating_sub(1));
    kept.chain(std::iter::once('…').take(room)).collect()
}

/// Removes the start of a long text, and adds an ellipsis. Suitable for paths and metric names, because they
/// differ at their ends.
pub(super) fn clipped_left(text: &str, room: usize) -> String {
    let length = text.chars().count();
    if length <= room {
        return text.to_owned();
    }
    let kept = room.saturating_sub(1);
    std::iter::once('…')
        .take(room)
        .chain(text.chars().skip(length - kept))
        .collect()
}
