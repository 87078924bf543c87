//! The colours, or without them what tells things apart.

use ratatui::style::{Color, Modifier, Style};

use super::model::Weight;

/// How each kind of thing looks. Colours are the terminal's own sixteen, so they fit its background.
#[derive(Clone, Copy, Debug)]
pub(super) struct Theme {
    /// What has the keys' focus.
    pub(super) focus: Style,
    /// The curves, in order.
    pub(super) curves: [Style; 2],
    /// What a value is called, and what frames it.
    pub(super) label: Style,
    pub(super) good: Style,
    pub(super) warning: Style,
    pub(super) bold: Style,
    pub(super) has_colours: bool,
}

impl Theme {
    /// The theme for this environment: `NO_COLOR`, not empty, takes the colours away.
    pub(super) fn choose() -> Self {
        let is_set = |value: std::ffi::OsString| !value.is_empty();
        match std::env::var_os("NO_COLOR").is_some_and(is_set) {
            true => Self::plain(),
            false => Self::coloured(),
        }
    }

    pub(super) fn coloured() -> Self {
        let colour = |colour| Style::new().fg(colour);
        Self {
            focus: colour(Color::Cyan).add_modifier(Modifier::BOLD),
            curves: [colour(Color::Cyan), colour(Color::Yellow)],
            label: Style::new().add_modifier(Modifier::DIM),
            good: colour(Color::Green),
            warning: colour(Color::Red),
            bold: Style::new().add_modifier(Modifier::BOLD),
            has_colours: true,
        }
    }

    pub(super) fn plain() -> Self {
        let bold = Style::new().add_modifier(Modifier::BOLD);
        Self {
            focus: bold,
            curves: [Style::new(); 2],
            label: Style::new().add_modifier(Modifier::DIM),
            good: Style::new(),
            warning: bold,
            bold,
            has_colours: false,
        }
    }

    pub(super) fn of(&self, weight: Weight) -> Style {
        match weight {
            Weight::Plain => Style::new(),
            Weight::Good => self.good,
            Weight::Warning => self.warning,
        }
    }
}
