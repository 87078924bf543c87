//! Takes over the terminal for the dashboard, and restores it.

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

/// Buffered, so that a frame is one write.
type Backend = CrosstermBackend<BufWriter<Stdout>>;

/// The terminal in raw mode and on its alternate screen. Dropping it restores the terminal.
pub(super) struct Terminal(ratatui::Terminal<Backend>);

impl Terminal {
    /// Takes over the terminal.
    ///
    /// # Errors
    /// Returns an error if the modes of the terminal cannot be set.
    pub(super) fn open() -> Result<Self> {
        restore_on_panic();
        let opened = take().and_then(|()| screen());
        opened.map(Self).map_err(|e| {
            restore();
            refused(&e)
        })
    }

    /// Draws a frame. Only changes are written.
    ///
    /// # Errors
    /// Returns an error if the terminal cannot be accessed.
    pub(super) fn draw(&mut self, draw: impl FnOnce(&mut ratatui::Frame<'_>)) -> Result<()> {
        self.0.draw(draw).map(|_| ()).map_err(|e| refused(&e))
    }

    /// Restores the terminal and stops the process, as Ctrl-Z does. Takes over the terminal again when the
    /// process is continued.
    ///
    /// # Errors
    /// Returns an error if the terminal cannot be accessed.
    pub(super) fn suspend(&mut self) -> Result<()> {
        restore();
        emulate_default_handler(SIGTSTP)
            .and_then(|()| take())
            .map_err(|e| refused(&e))?;
        self.clear()
    }

    /// Takes over the terminal again after the process was stopped and continued. Other programs may have
    /// changed the modes of the terminal in the meantime.
    ///
    /// # Errors
    /// Returns an error if the terminal cannot be accessed.
    pub(super) fn retake(&mut self) -> Result<()> {
        restore();
        take().map_err(|e| refused(&e))?;
        self.clear()
    }

    /// Clears the screen, so that the next frame is drawn completely.
    ///
    /// # Errors
    /// Returns an error if the terminal cannot be accessed.
    pub(super) fn clear(&mut self) -> Result<()> {
        // Creates a new `ratatui::Terminal`, which assumes an empty screen. Calling `clear` on the old one
        // would query the cursor position, and the thread that reads keys would receive the reply.
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

/// Returns true if a shell can continue this process after a stop. Such a shell is an ancestor in the same
/// session but in another process group. Without it, the process would stay stopped forever.
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

/// Restores the terminal. Can be called more than once. `[any]`
pub(super) fn restore() {
    let _ = disable_raw_mode();
    let _ = execute!(stdout(), LeaveAlternateScreen, Show);
}

/// Restores the terminal on a panic, so that the message is readable. A panic in any thread other than `main`
/// ends the process, because the dashboard cannot work without that thread.
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
    .hint("use --plain to print lines instead")
}
