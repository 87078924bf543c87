use std::fs;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use host_core::{Emitter, Error, ErrorKind, EventBody, Result};

use super::folder::Layout;
use super::snapshot::{CheckpointView, Snapshot};
use crate::ports::CheckpointPorts;

/// The training loop's side of the checkpoint writer.
pub(crate) struct CheckpointWriter<'scope> {
    snapshots: SyncSender<Snapshot>,
    /// Receives each snapshot after it was written. The snapshot is then used again.
    returned: Receiver<Snapshot>,
    /// The only set of buffers; `None` while the thread has it.
    buffers: Option<Snapshot>,
    /// Returns the result of the last checkpoint.
    thread: ScopedJoinHandle<'scope, Result<()>>,
}

impl<'scope> CheckpointWriter<'scope> {
    /// Starts the thread. Allocates the buffers by copying the state once. After each new checkpoint, the
    /// thread prunes excess checkpoints. If the disk is full, the thread removes the oldest checkpoint that
    /// `give_up` allows, and tries again.
    pub(crate) fn spawn<'env>(
        scope: &'scope Scope<'scope, 'env>,
        mut layout: Layout,
        emitter: Emitter,
        ports: CheckpointPorts<'env>,
        reserve: CheckpointView<'_>,
    ) -> Result<Self> {
        let CheckpointPorts {
            await_events,
            mut on_checkpoint,
            is_needed,
            give_up,
            ..
        } = ports;
        fs::create_dir_all(&layout.folder)
            .map_err(|error| Error::io("create the checkpoint folder", &layout.folder, &error))?;
        let step = reserve.state.step;
        let warn = |emitter: &Emitter, step, warnings: Vec<String>| {
            for message in warnings {
                emitter.emit(step, EventBody::Warning { message });
            }
        };
        warn(&emitter, step, layout.sweep());
        let (snapshots, incoming) = sync_channel::<Snapshot>(1);
        let (back, returned) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("checkpoint".to_owned())
            .spawn_scoped(scope, move || {
                let mut last = Ok(());
                for snapshot in incoming {
                    let begin = Instant::now();
                    let step = snapshot.state.step;
                    let mut written = snapshot.write(&mut layout, &*await_events);
                    while written.as_ref().is_err_and(Error::is_disk_full) {
                        let Some(warnings) = layout.make_room(&*give_up) else {
                            break;
                        };
                        warn(&emitter, step, warnings);
                        written = snapshot.write(&mut layout, &*await_events);
                    }
                    last = match written {
                        Ok((dir, warnings)) => {
                            warn(&emitter, step, warnings);
                            emitter.emit(
                                step,
                                EventBody::CheckpointWritten {
                                    name: step.checkpoint_name(),
                                    bytes: dir.manifest.total_bytes(),
                                    stall_secs: snapshot.stall.as_secs_f64(),
                                    write_secs: begin.elapsed().as_secs_f64(),
                                },
                            );
                            on_checkpoint(dir);
                            warn(&emitter, step, layout.prune(step, &*is_needed));
                            Ok(())
                        }
                        Err(error) => {
                            let reason = error.to_string();
                            emitter.emit(step, EventBody::CheckpointFailed { reason });
                            Err(error)
                        }
                    };
                    // This fails if the training loop has ended, which does no harm.
                    let _ = back.send(snapshot);
                }
                last
            })
            .map_err(|error| {
                Error::new(
                    ErrorKind::System,
                    format!("cannot start the checkpoint thread: {error}"),
                )
            })?;
        Ok(Self {
            snapshots,
            returned,
            buffers: Some(Snapshot::copy_of(reserve)?),
            thread,
        })
    }

    /// Waits until the previous checkpoint is written or has failed, then copies the state and sends the copy
    /// to the thread. Returns the durations of the wait and of the copying.
    pub(crate) fn save(&mut self, view: CheckpointView<'_>) -> Result<(Duration, Duration)> {
        let begin = Instant::now();
        self.settle()?;
        let mut snapshot = self.buffers.take().expect("settle put the buffers back");
        let waited = begin.elapsed();
        snapshot.refresh(view)?;
        snapshot.stall = begin.elapsed();
        let copied = snapshot.stall - waited;
        self.snapshots
            .send(snapshot)
            .map_err(|_| Error::new(ErrorKind::System, "the checkpoint thread ended"))?;
        Ok((waited, copied))
    }

    /// Waits until the last snapshot is written or has failed.
    pub(crate) fn settle(&mut self) -> Result<()> {
        if self.buffers.is_none() {
            let ended = |_| Error::new(ErrorKind::System, "the checkpoint thread ended");
            self.buffers = Some(self.returned.recv().map_err(ended)?);
        }
        Ok(())
    }

    /// Waits until the last checkpoint is written.
    ///
    /// # Errors
    /// Returns an error if the last checkpoint could not be written. Failures of earlier checkpoints are not
    /// returned, because a later checkpoint replaces them.
    pub(crate) fn finish(self) -> Result<()> {
        drop(self.snapshots);
        let last = self.thread.join();
        last.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            .map_err(|error| {
                let message = format!("the last checkpoint was not written: {}", error.message());
                let way_out = "`host resume` then continues from the previous checkpoint";
                Error::new(error.kind(), message).hint(match error.hint_text() {
                    Some(hint) => format!("{hint}; {way_out}"),
                    None => format!("check the folder; {way_out}"),
                })
            })
    }
}
