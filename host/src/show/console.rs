//! What people read of a command that trains or delivers.

use crate::show::progress::{Progress, Style};
use crate::show::warnings::Warnings;

/// The progress and the warnings. When this goes away, the bar does, and later warnings are for the terminal
/// alone.
pub(crate) struct Console {
    pub(crate) progress: Progress,
    pub(crate) warnings: Warnings,
}

impl Console {
    /// Of a training that comes to step `last_step`, or of a command without steps.
    pub(crate) fn new(json: bool, last_step: u64) -> Self {
        let progress = Progress::new(Style::choose(json), last_step);
        let warnings = Warnings::new(&progress);
        Self { progress, warnings }
    }

    /// Ends it; what is warned of later is shown at once.
    pub(crate) fn end(self) -> Warnings {
        self.warnings.clone()
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.progress.end();
        self.warnings.end();
    }
}
