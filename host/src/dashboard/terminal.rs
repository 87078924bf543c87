//! The terminal while the dashboard has it, and how it is given back.

use std::io::{BufWriter, Stdout, stdout};

use host_core::{Error, ErrorKind, Result};
use procfs::process::Process;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use signal_hook::consts::SIGTSTP;
use signal_hook::low_level::emulate_default_handler;

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
        let opened = take().and_then(|()| screen());
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

    /// Gives the terminal back and stops the process, as Ctrl-Z does; takes the terminal again when the
    /// process is continued.
    ///
    /// # Errors
    /// The terminal is gone.
    pub(super) fn suspend(&mut self) -> Result<()> {
        restore();
        emulate_default_handler(SIGTSTP)
            .and_then(|()| take())
            .map_err(|e| refused(&e))?;
        self.clear()
    }

    /// Takes the terminal again: its modes may have changed meanwhile.
    ///
    /// # Errors
    /// The terminal is gone.
    pub(super) fn retake(&mut self) -> Result<()> {
        restore();
        take().map_err(|e| refused(&e))?;
        self.clear()
    }

    /// Draws everything again at the next occasion.
    ///
    /// # Errors
    /// The terminal is gone.
    pub(super) fn clear(&mut self) -> Result<()> {
        // A new one knows nothing of what is on the screen. The old one's `clear` asks the terminal where
        // the cursor is, and the answer would go to the thread that reads keys.
        let cleared = execute!(stdout(), Clear(ClearType::All)).and_then(|()| screen());
        self.0 = cleared.map_err(|e| refused(&e))?;
        Ok(())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        restore();
    }
}

fn screen() -> std::io::Result<ratatui::Terminal<Backend>> {
    let out = BufWriter::with_capacity(64 << 10, stdout());
    ratatui::Terminal::new(CrosstermBackend::new(out))
}

fn take() -> std::io::Result<()> {
    enable_raw_mode()?;
    execute!(stdout(), EnterAlternateScreen)
}

/// Whether there is a shell that can continue this process once it is stopped: a parent of its session
/// that is in another group. Without one a stop would be for ever.
pub(super) fn has_job_control() -> bool {
    let shell = || {
        let me = Process::myself().ok()?.stat().ok()?;
        let mut parent = me.ppid;
        loop {
            let stat = Process::new(parent).ok()?.stat().ok()?;
            if stat.session != me.session {
                return None;
            }
            if stat.pgrp != me.pgrp {
                return Some(());
            }
            parent = stat.ppid;
        }
    };
    shell().is_some()
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
        ErrorKind::System,
        format!("cannot draw on the terminal: {error}"),
    )
    .hint("--plain shows the run in lines")
}
