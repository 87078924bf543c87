use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use host_core::{Emitter, EventBody, Step};

use crate::data::LeftOut;
use crate::ports::CheckpointPorts;

/// Reports how much of the training data was skipped, if the amount has grown. `[any]`
pub(crate) struct SkippedData {
    left_out: Arc<LeftOut>,
    emitter: Emitter,
    /// The amount of skipped data at the last report.
    reported: AtomicU64,
}

impl SkippedData {
    pub(crate) fn new(left_out: Arc<LeftOut>, emitter: Emitter) -> Self {
        Self {
            left_out,
            emitter,
            reported: AtomicU64::new(0),
        }
    }

    /// Returns `ports`, changed so that each checkpoint also causes a report.
    pub(crate) fn report_with<'a>(
        self: &Arc<Self>,
        ports: CheckpointPorts<'a>,
    ) -> CheckpointPorts<'a> {
        let skipped = Arc::clone(self);
        let mut on_checkpoint = ports.on_checkpoint;
        CheckpointPorts {
            on_checkpoint: Box::new(move |checkpoint| {
                skipped.report(checkpoint.step);
                on_checkpoint(checkpoint);
            }),
            ..ports
        }
    }

    /// Emits a warning if more data was skipped since the last report.
    pub(crate) fn report(&self, step: Step) {
        let count = self.left_out.count();
        if self.reported.swap(count, Ordering::Relaxed) == count {
            return;
        }
        if let Some(message) = self.left_out.message("training data") {
            self.emitter.emit(step, EventBody::Warning { message });
        }
    }
}
