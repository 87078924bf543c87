//! The terminal while the dashboard has it, and how it is given back.

use std::io::{BufWriter, Stdout, stdout};

use host_core::{Error, Kind, Result};
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};

/// A screen is one write.
type Backend = CrosstermBackend<BufWriter<Stdout>>;

/// The terminal, in raw mode and on its other screen until this is dropped, whatever ends it.
pub(super) struct Terminal(ratatui::Terminal<Backend>);

impl Terminal {
    /// Takes the terminal.
    ///
    /// # Errors
    /// The system refuses.
    pub(super) fn open() -> Result<Self> {
        restore_on_panic();
        let opened = enable_raw_mode()
            .and_then(|()| execute!(stdout(), EnterAlternateScreen))
            .and_then(|()| {
                let out = BufWriter::with_capacity(64 << 10, stdout());
                ratatui::Terminal::new(CrosstermBackend::new(out))
            });
        opened.map(Self).map_err(|e| {
            restore();
            refused(&e)
        })
    }

    /// Draws a screen; what is as it was is not written again.
    ///
    /// # Errors
    /// The terminal is gone.
    pub(super) fn draw(&mut self, draw: impl FnOnce(&mut ratatui::Frame<'_>)) -> Result<()> {
        self.0.draw(draw).map(|_| ()).map_err(|e| refused(&e))
    }

    /// Draws everything again at the next occasion.
    ///
    /// # Errors
    /// The terminal is gone.
    pub(super) fn clear(&mut self) -> Result<()> {
        self.0.clear().map_err(|e| refused(&e))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal back as it was. More than once does no harm. `[any]`
pub(super) fn restore() {
    let _ = disable_raw_mode();
    let _ = execute!(stdout(), LeaveAlternateScreen, Show);
}

/// What a panic says must be readable, and whoever panicked, nobody is left to draw or to read keys.
fn restore_on_panic() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        restore();
        before(panic);
        if std::thread::current().name() != Some("main") {
            std::process::exit(101);
        }
    }));
}

fn refused(error: &std::io::Error) -> Error {
    Error::new(
        Kind::System,
        format!("cannot draw on the terminal: {error}"),
    )
    .hint("--plain shows the run in lines")
}
