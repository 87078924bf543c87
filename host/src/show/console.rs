//! The output of a command that trains or delivers.

use crate::show::progress::{Progress, Style};
use crate::show::warnings::Warnings;

/// The progress bar and the warnings. Dropping a `Console` removes the progress bar. Later warnings are shown
/// in the terminal but not recorded.
pub(crate) struct Console {
    pub(crate) progress: Progress,
    pub(crate) warnings: Warnings,
}

impl Console {
    /// Creates the output of a training that ends at step `last_step`, or of a command without steps.
    pub(crate) fn new(json: bool, last_step: u64) -> Self {
        let progress = Progress::new(Style::choose(json), last_step);
        let warnings = Warnings::new(&progress);
        Self { progress, warnings }
    }

    /// Creates the output of a rank other than the lead: plain lines that begin with its number.
    pub(crate) fn of_rank(rank: usize) -> Self {
        let progress = Progress::new(Style::Lines, 0).of_rank(rank);
        let warnings = Warnings::new(&progress);
        Self { progress, warnings }
    }

    /// Ends the output. Later warnings are shown immediately.
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
