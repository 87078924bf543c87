use host_core::{DeliveryState, Event, EventBody, Request, Step, StopReason};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{KeyCode, KeyEvent};
use ratatui::style::Color;

use super::super::model::Connection;
use super::super::model::tests::{event, metrics, row};
use super::super::screen::Answer;
use super::*;

/// Returns a buffer's text.
pub(in crate::dashboard) fn text(buf: &Buffer) -> String {
    let rows = buf.content().chunks(usize::from(buf.area.width).max(1));
    rows.map(|row| {
        let line: String = row.iter().map(ratatui::buffer::Cell::symbol).collect();
        line.trim_end().to_owned() + "\n"
    })
    .collect()
}

/// Compares the text with `golden/NAME.txt`. With `BLESS=1`, rewrites the file.
#[track_caller]
pub(in crate::dashboard) fn assert_golden(name: &str, actual: &str) {
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/dashboard/golden")
        .join(name)
        .with_extension("txt");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&golden, actual).expect("written");
    }
    let expected = std::fs::read_to_string(&golden).expect("a golden screen");
    assert!(
        actual == expected,
        "{name} differs:\n{actual}\nand should be:\n{expected}"
    );
}

/// Creates a training at step 900 of 2000, with a failing sink.
fn training() -> Model {
    let mut model = Model::new(&row(), "127.0.0.1:41233".to_owned());
    let mut seq = 0;
    let mut note = |step: u64, body: EventBody| {
        seq += 1;
        let time_us = (step * 120_000 + seq) as i64;
        model.note(&Event {
            time_us,
            ..event(seq, step, body)
        });
    };
    note(0, EventBody::RunStarted { generation: 0 });
    for step in 1..=900 {
        let falling = 2.1 + 6.0 * (-(step as f64) / 160.0).exp();
        let noise = ((step * 7919) % 101) as f64 / 101.0 * 0.3;
        note(
            step,
            metrics(&[
                ("loss/train", falling + noise),
                ("lr", 1e-3 * (step as f64 / 100.0).min(1.0)),
                ("tokens_per_second", 17_000.0),
                ("step_secs", 0.118),
                ("grad_norm", 1.0 / falling),
            ]),
        );
        if step % 100 == 0 {
            let values = [
                ("loss/eval", falling + 0.3),
                ("perplexity", (falling + 0.3).exp()),
            ];
            note(step, metrics(&values));
        }
    }
    let written = |step: u64| EventBody::CheckpointWritten {
        name: format!("step-{step:06}"),
        bytes: 52_000_000,
        stall_secs: 0.01,
        write_secs: 0.4,
    };
    let delivery = |sink: &str, step, state, detail: &str, retry| EventBody::Delivery {
        sink: sink.to_owned(),
        checkpoint: Step(step),
        state,
        detail: detail.to_owned(),
        retry_time_us: retry,
    };
    use DeliveryState::{Delivered, Failed, Sending};
    note(400, written(400));
    let path = r#"{"path":"/data/checkpoints/rust-4m/step-000400"}"#;
    note(400, delivery("local-disk", 400, Delivered, path, None));
    let commit = r#"{"commit":"0123456789abcdef0123456789abcdef01234567","branch":"main"}"#;
    note(400, delivery("hub-git", 400, Delivered, commit, None));
    note(800, written(800));
    note(800, delivery("local-disk", 800, Sending, "", None));
    let reason = "could not resolve host: hub";
    note(
        800,
        delivery("hub-git", 800, Failed, reason, Some(120_000_000)),
    );
    note(
        900,
        EventBody::Warning {
            message: "the device is hot".to_owned(),
        },
    );
    note(
        900,
        metrics(&[
            ("plugin/perplexity/calls", 72.0),
            ("plugin/perplexity/failures", 0.0),
            ("plugin/perplexity/p50_secs", 4.2e-6),
            ("plugin/perplexity/p99_secs", 1.9e-5),
            ("plugin/perplexity/step_share", 0.0004),
            ("plugin/hub-git/calls", 3.0),
            ("plugin/hub-git/failures", 1.0),
            ("plugin/hub-git/p50_secs", 2.4),
            ("plugin/hub-git/p99_secs", 31.0),
            ("plugin/hub-git/queue_depth", 1.0),
            ("plugin/hub-git/restarts", 0.0),
            ("system/cpu_percent", 187.0),
            ("system/memory_bytes", 1.9e9),
            ("system/disk_read_bytes_per_sec", 3.5e6),
        ]),
    );
    model
}

struct Shown {
    screen: Screen,
    theme: Theme,
}

impl Shown {
    fn new() -> Self {
        Self {
            screen: Screen::new(),
            theme: Theme::colored(),
        }
    }

    fn press(mut self, model: &Model, keys: impl IntoIterator<Item = KeyCode>) -> Self {
        for key in keys {
            self.screen.press(KeyEvent::from(key), model);
        }
        self
    }

    fn buffer(&mut self, model: &Model, width: u16, height: u16) -> Buffer {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        let look = Look {
            theme: self.theme,
            zone: &TimeZone::UTC,
            now_us: 110_000_000,
        };
        terminal
            .draw(|frame| draw(frame, model, &mut self.screen, &look))
            .expect("drawn");
        terminal.backend().buffer().clone()
    }

    fn at(&mut self, model: &Model, width: u16, height: u16) -> String {
        text(&self.buffer(model, width, height))
    }
}

#[test]
fn a_large_terminal_shows_everything_at_once() {
    assert_golden("large", &Shown::new().at(&training(), 140, 40));
}

#[test]
fn a_terminal_of_80_by_24_shows_the_curves_and_the_log() {
    assert_golden("80x24", &Shown::new().at(&training(), 80, 24));
}

#[test]
fn a_small_terminal_shows_the_pane_that_has_the_focus() {
    let model = training();
    assert_golden("40x12", &Shown::new().at(&model, 40, 12));
    let mut plugins = Shown::new().press(&model, [KeyCode::Tab]);
    assert_golden("40x12-plugins", &plugins.at(&model, 40, 12));
    let mut log = Shown::new().press(&model, [KeyCode::BackTab]);
    assert_golden("40x12-log", &log.at(&model, 40, 12));
}

#[test]
fn a_long_address_is_clipped_at_its_start() {
    let model = Model::new(&row(), "/tmp/of/somebody/runs/rust-4m".to_owned());
    let screen = Shown::new().at(&model, 40, 12);
    let title = screen.lines().next().expect("a title");
    assert!(title.ends_with("  …ebody/runs/rust-4m"), "{screen}");
}

#[test]
fn the_chosen_curve_is_bold() {
    let model = training();
    for (theme, key, bold, plain) in [
        (Theme::colored(), KeyCode::Esc, "loss/train", "loss/eval"),
        (Theme::colored(), KeyCode::Right, "loss/eval", "loss/train"),
        (Theme::plain(), KeyCode::Right, "loss/eval", "loss/train"),
    ] {
        let mut shown = Shown::new().press(&model, [key]);
        shown.theme = theme;
        let buffer = shown.buffer(&model, 80, 24);
        let title: Vec<_> = (0..80).map(|x| &buffer[(x, 4)]).collect();
        let is_bold = |name: &str| {
            let symbols: Vec<&str> = title.iter().map(|cell| cell.symbol()).collect();
            let length = name.chars().count();
            let at = symbols
                .windows(length)
                .position(|part| part.concat() == name);
            title[at.expect("the name")]
                .modifier
                .contains(Modifier::BOLD)
        };
        assert!(is_bold(bold) && !is_bold(plain), "{bold}");
    }
}

#[test]
fn display_options_are_shown_and_kept_for_the_next_curve() {
    let model = training();
    let mut shown = Shown::new();
    let mut title = |keys: &[KeyCode], width| {
        for key in keys {
            shown.screen.press(KeyEvent::from(*key), &model);
        }
        let screen = shown.at(&model, width, 24);
        screen.lines().nth(4).expect("a title").to_owned()
    };
    assert!(title(&[], 80).contains("  1/21 ──"));
    let both = [KeyCode::Char('l'), KeyCode::Char('m')];
    let first = title(&both, 80);
    assert!(first.contains("  1/21  log  every point ─"), "{first}");
    let other = title(&[KeyCode::Right], 80);
    assert!(other.contains("  2/21  log  every point ─"), "{other}");
    let narrow = title(&[], 44);
    assert!(
        narrow.contains(" loss/eval 2.4216  log  every point ─"),
        "{narrow}"
    );
    let neither = title(&both, 80);
    assert!(neither.contains("  2/21 ──"), "{neither}");
}

#[test]
fn deliveries_show_locations_and_retry_times() {
    let model = training();
    let mut shown = Shown::new().press(&model, [KeyCode::Tab, KeyCode::Tab]);
    let screen = shown.at(&model, 80, 24);
    let line = |part: &str| {
        let found = screen.lines().find(|line| line.contains(part));
        found
            .unwrap_or_else(|| panic!("no {part}:\n{screen}"))
            .to_owned()
    };
    assert!(
        line("failed").contains("retry in 10s: could not resolve"),
        "{screen}"
    );
    assert!(line("0123456789ab").contains("hub-git"), "{screen}");
    assert!(line("/step-000400").contains("delivered"), "{screen}");
}

#[test]
fn a_run_without_events_has_a_screen() {
    let model = Model::new(&row(), "127.0.0.1:41233".to_owned());
    assert_golden("empty", &Shown::new().at(&model, 80, 24));
}

#[test]
fn the_end_of_a_run_a_lost_connection_and_an_answer_are_shown() {
    let mut model = training();
    let lost = Connection::Lost {
        reason: "connection refused".to_owned(),
        tries: 3,
    };
    model.connect(lost, None);
    let screen = Shown::new().at(&model, 80, 24);
    assert!(
        screen.contains("reconnecting, attempt 3: connection refused"),
        "{screen}"
    );

    let mut shown = Shown::new().press(&model, [KeyCode::Char('s')]);
    let screen = shown.at(&model, 80, 24);
    assert!(
        screen.contains("stop rust-4m, after a checkpoint? y/n"),
        "{screen}"
    );

    let body = EventBody::Request {
        by: "client:ann".to_owned(),
        request: Request::Pause,
        reason: String::new(),
    };
    model.note(&event(5000, 900, body));
    shown.screen.pending = None;
    let refusal = || Answer::refusal("the token is not known here".to_owned());
    shown.screen.answer = Some(refusal());
    let screen = shown.at(&model, 80, 24);
    assert!(
        screen.contains("paused") && !screen.contains(" left"),
        "{screen}"
    );
    let last = screen.lines().last().expect("a line");
    assert!(last.starts_with("q quit  ? help  Tab pane"), "{screen}");
    assert!(last.ends_with("  the token is not known here"), "{screen}");
    shown.screen.answer = Some(refusal());
    let screen = shown.at(&model, 40, 12);
    let narrow = "q quit  ? help  the token is not known …";
    assert_eq!(screen.lines().last(), Some(narrow), "{screen}");

    let (reason, message) = (StopReason::Requested, String::new());
    model.note(&event(
        5001,
        900,
        EventBody::RunFinished { reason, message },
    ));
    let screen = Shown::new().at(&model, 80, 24);
    assert!(screen.contains("rust-4m  stopped as requested"), "{screen}");
    assert!(!screen.contains("s stop"), "{screen}");
}

#[test]
fn every_metric_has_a_chart_and_the_help_every_key() {
    let model = training();
    let mut shown = Shown::new();
    let mut titles = std::collections::BTreeSet::new();
    for _ in model.metric_names() {
        let screen = shown.at(&model, 80, 24);
        titles.insert(screen.lines().nth(4).expect("a title").to_owned());
        shown = shown.press(&model, [KeyCode::Right]);
    }
    assert_eq!(titles.len(), model.metric_names().len());
    let mut shown = Shown::new().press(&model, [KeyCode::Char('?')]);
    let screen = shown.at(&model, 80, 24);
    assert!(screen.contains("quit; the run continues"), "{screen}");
}

#[test]
fn without_colors_the_curves_still_differ() {
    let model = training();
    let mut shown = Shown::new();
    shown.theme = Theme::plain();
    let buffer = shown.buffer(&model, 140, 40);
    let has_color =
        |cell: &ratatui::buffer::Cell| cell.fg != Color::Reset || cell.bg != Color::Reset;
    assert!(!buffer.content().iter().any(has_color));
    assert!(text(&buffer).contains('•'), "{}", text(&buffer));
    shown.theme = Theme::colored();
    assert!(
        shown
            .buffer(&model, 140, 40)
            .content()
            .iter()
            .any(has_color)
    );
}

#[test]
fn panes_can_be_drawn_at_any_size() {
    let model = training();
    for (width, height) in [
        (1, 1),
        (2, 5),
        (20, 3),
        (40, 12),
        (110, 17),
        (10, 60),
        (300, 100),
    ] {
        let mut shown = Shown::new().press(&model, [KeyCode::Char('?')]);
        for _ in 0..5 {
            shown.at(&model, width, height);
            shown = shown.press(&model, [KeyCode::Esc, KeyCode::Tab, KeyCode::PageDown]);
        }
    }
}
