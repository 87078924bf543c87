//! Colors, and their replacements on terminals without colors.

use ratatui::style::{Color, Modifier, Style};

use super::model::Weight;

/// The styles. They use the terminal's own sixteen colors, which suit its background.
#[derive(Clone, Copy, Debug)]
pub(super) struct Theme {
    /// The pane with the keyboard focus.
    pub(super) focus: Style,
    /// The first and the second curve of a chart.
    pub(super) curves: [Style; 2],
    /// Labels and frames.
    pub(super) label: Style,
    pub(super) good: Style,
    pub(super) warning: Style,
    pub(super) bold: Style,
    pub(super) has_colors: bool,
}

impl Theme {
    /// Returns the theme for this environment. A non-empty `NO_COLOR` disables colors.
    pub(super) fn choose() -> Self {
        let is_set = |value: std::ffi::OsString| !value.is_empty();
        match std::env::var_os("NO_COLOR").is_some_and(is_set) {
            true => Self::plain(),
            false => Self::colored(),
        }
    }

    pub(super) fn colored() -> Self {
        let color = |color| Style::new().fg(color);
        Self {
            focus: color(Color::Cyan).add_modifier(Modifier::BOLD),
            curves: [color(Color::Cyan), color(Color::Yellow)],
            label: Style::new().add_modifier(Modifier::DIM),
            good: color(Color::Green),
            warning: color(Color::Red),
            bold: Style::new().add_modifier(Modifier::BOLD),
            has_colors: true,
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
            has_colors: false,
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
