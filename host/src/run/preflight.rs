//! The preflight runs before the first step. It checks whether checkpoints can be delivered. All sinks are
//! checked in parallel, each on its own thread. The free space on the run folder's disk is checked at the
//! same time.

use std::fs;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use host_core::{
    CheckpointSink, Dtype, Error, ErrorKind, ParamInfo, Preflight, QueuePolicy, Result, RunName,
    SinkError, Supervised,
};

use crate::config::PreflightPolicy;
use crate::runs::run_dir::RunDir;
use crate::show::number;
use crate::show::progress::Progress;

/// A sink and the policy of its queue.
pub(crate) type Sink = (Supervised<dyn CheckpointSink>, QueuePolicy);

/// How long to wait for the answers of the sinks.
const LIMIT: Duration = Duration::from_secs(30);

/// How long to wait for a cancelled sink to stop. A sink in a separate process is killed sooner.
const GRACE: Duration = Duration::from_secs(5);

/// A wait for a sink is reported to the user only after this time.
const SHORT: Duration = Duration::from_secs(2);

/// Number of checkpoints that the run folder must have room for. There must be room for two, because the
/// previous checkpoint is kept until the next one is complete.
const CHECKPOINTS: u64 = 2;

/// Estimated size in bytes of a checkpoint's small files: tokenizer, configuration and the trainer's scalar
/// state.
const SMALL_FILES: u64 = 2 << 20;

/// Approximate size of a checkpoint in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CheckpointSize {
    /// All files.
    all: u64,
    /// All files except those that only a resume needs.
    model: u64,
}

/// A reason why checkpoints cannot be delivered.
struct Fault {
    /// A sink's label, or the run folder.
    of: String,
    reason: String,
    kind: ErrorKind,
}

/// A sink whose preflight is running.
struct Asked {
    label: String,
    cancel: Box<dyn Fn() + Send + Sync>,
    answer: Receiver<(Sink, Result<Option<String>, SinkError>)>,
}

impl CheckpointSize {
    /// Estimates the size. A checkpoint contains the weights and two AdamW moments for each weight. Only a
    /// resume needs the moments.
    pub(crate) fn of(params: &[ParamInfo]) -> Self {
        let bytes = |param: &ParamInfo| {
            let size = match param.dtype {
                Dtype::Bf16 => 2,
                Dtype::F32 => 4,
                Dtype::F64 | Dtype::I64 => 8,
            };
            param.numel().max(0).cast_unsigned().saturating_mul(size)
        };
        let weights = params.iter().map(bytes).sum::<u64>();
        Self {
            all: weights.saturating_mul(3) + SMALL_FILES,
            model: weights + SMALL_FILES,
        }
    }
}

/// Checks whether checkpoints can be delivered. Returns the sinks and the warnings.
///
/// # Errors
/// Returns an error if a sink does not answer in time and does not stop when it is cancelled. Under
/// `PreflightPolicy::Fail`, also returns an error if a check fails. The error lists all failed checks.
pub(crate) fn check(
    policy: PreflightPolicy,
    dir: &RunDir,
    size: CheckpointSize,
    sinks: Vec<Sink>,
    progress: &Progress,
) -> Result<(Vec<Sink>, Vec<String>)> {
    if policy == PreflightPolicy::Off {
        return Ok((sinks, Vec::new()));
    }
    let begun = Instant::now();
    let asked = sinks
        .into_iter()
        .map(|sink| ask(dir, size, sink))
        .collect::<Result<Vec<Asked>>>()?;
    let mut faults = Vec::new();
    faults.extend(check_room(dir.path(), size.all)?);
    let mut sinks = Vec::with_capacity(asked.len());
    for Asked {
        label,
        cancel,
        answer,
    } in asked
    {
        let (sink, outcome) = wait(&label, &answer, &*cancel, (begun, LIMIT), progress)?;
        sinks.push(sink);
        let reason = match outcome {
            Ok(None) => continue,
            Ok(Some(found)) => {
                progress.say(&format!("{label} is ready: {found}"));
                continue;
            }
            Err(SinkError::Temporary(reason) | SinkError::Permanent(reason)) => reason,
            Err(SinkError::Cancelled) => no_answer(),
        };
        faults.push(Fault {
            of: label,
            reason,
            kind: ErrorKind::Plugin,
        });
    }
    match policy {
        _ if faults.is_empty() => Ok((sinks, Vec::new())),
        PreflightPolicy::Warn => Ok((sinks, faults.iter().map(Fault::line).collect())),
        PreflightPolicy::Fail | PreflightPolicy::Off => Err(error(&faults)),
    }
}

fn ask(dir: &RunDir, size: CheckpointSize, sink: Sink) -> Result<Asked> {
    let (mut sink, queue) = sink;
    let label = sink.label().to_owned();
    let cancel = sink.port().canceller();
    let state_dir = dir.sink_state(&label);
    fs::create_dir_all(&state_dir)
        .map_err(|e| Error::io("create the sink's folder", &state_dir, &e))?;
    let run: RunName = dir.name().clone();
    let (tell, answer) = sync_channel(1);
    let work = move || {
        let outcome = match sink.active() {
            Some(port) => port.preflight(Preflight {
                run: &run,
                state_dir: &state_dir,
                checkpoint_bytes: size.all,
                model_bytes: size.model,
            }),
            None => Ok(None),
        };
        // Fails if the sink took so long that the receiver is gone.
        let _ = tell.send(((sink, queue), outcome));
    };
    std::thread::Builder::new()
        .name(format!("preflight {label}"))
        .spawn(work)
        .map_err(|e| Error::new(ErrorKind::System, format!("cannot start a thread: {e}")))?;
    Ok(Asked {
        label,
        cancel,
        answer,
    })
}

/// Waits for a sink's answer, and cancels the sink if it takes longer than `limit`. Returns the sink and its
/// answer.
fn wait(
    label: &str,
    answer: &Receiver<(Sink, Result<Option<String>, SinkError>)>,
    cancel: &(dyn Fn() + Send + Sync),
    (begun, limit): (Instant, Duration),
    progress: &Progress,
) -> Result<(Sink, Result<Option<String>, SinkError>)> {
    let left = |limit: Duration| limit.saturating_sub(begun.elapsed());
    let mut outcome = answer.recv_timeout(left(SHORT.min(limit)));
    if matches!(outcome, Err(RecvTimeoutError::Timeout)) {
        progress.busy(&format!(
            "waiting up to {} s for the preflight of {label}",
            limit.as_secs()
        ));
        outcome = answer.recv_timeout(left(limit));
    }
    if matches!(outcome, Err(RecvTimeoutError::Timeout)) {
        cancel();
        outcome = answer.recv_timeout(GRACE);
    }
    outcome.map_err(|_| {
        let message = format!(
            "plugin {label} failed in preflight: {}, and it did not stop when it was cancelled",
            no_answer()
        );
        Error::new(ErrorKind::Plugin, message)
            .hint("remove mode=in_process so that the plugin can be killed, or skip the check with --preflight off")
    })
}

fn no_answer() -> String {
    format!("no answer within {} s", LIMIT.as_secs())
}

/// Checks whether the run folder's disk has room for the checkpoints that exist at the same time.
fn check_room(run_dir: &Path, checkpoint_bytes: u64) -> Result<Option<Fault>> {
    let disk = rustix::fs::statvfs(run_dir).map_err(|e| {
        Error::io(
            "determine the free space on the run's disk",
            run_dir,
            &e.into(),
        )
    })?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let needed = checkpoint_bytes.saturating_mul(CHECKPOINTS);
    Ok((free < needed).then(|| Fault {
        of: "the run folder".to_owned(),
        reason: format!(
            "{} are free, but {CHECKPOINTS} checkpoints need {}: {}",
            number::bytes(free),
            number::bytes(needed),
            run_dir.display()
        ),
        kind: ErrorKind::System,
    }))
}

impl Fault {
    fn line(&self) -> String {
        format!("{} is not ready: {}", self.of, self.reason)
    }
}

/// Returns one error that lists all faults.
fn error(faults: &[Fault]) -> Error {
    let is_plugin = |fault: &&Fault| fault.kind == ErrorKind::Plugin;
    let kind = match faults.iter().find(is_plugin) {
        Some(_) => ErrorKind::Plugin,
        None => ErrorKind::System,
    };
    let lines: Vec<String> = faults.iter().map(Fault::line).collect();
    let names: Vec<&str> = faults.iter().map(|fault| &*fault.of).collect();
    Error::new(kind, lines.join("; ")).hint(format!(
        "fix the problems with {}, or start anyway with --preflight warn: checkpoints then wait in the run folder",
        names.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::SyncSender;

    use host_core::{OnError, Publish, Receipt};

    use super::*;
    use crate::show::progress::Style;

    fn fault(of: &str, kind: ErrorKind) -> Fault {
        Fault {
            of: of.to_owned(),
            reason: "no".to_owned(),
            kind,
        }
    }

    #[test]
    fn one_error_lists_all_faults() {
        let faults = [
            fault("the run folder", ErrorKind::System),
            fault("hub-git", ErrorKind::Plugin),
        ];
        let both = error(&faults);
        assert_eq!(both.kind(), ErrorKind::Plugin);
        assert_eq!(
            both.message(),
            "the run folder is not ready: no; hub-git is not ready: no"
        );
        let hint = both.hint_text().expect("a hint");
        assert!(hint.contains("with the run folder, hub-git,"), "{hint}");
        assert_eq!(error(&faults[..1]).kind(), ErrorKind::System);
    }

    #[test]
    fn a_checkpoint_has_the_weights_and_two_moments_of_each() {
        let param = |shape: &[i64], dtype| ParamInfo {
            name: "w".to_owned(),
            shape: shape.to_vec(),
            dtype,
        };
        let params = [param(&[10, 10], Dtype::F32), param(&[5], Dtype::F64)];
        let size = CheckpointSize::of(&params);
        assert_eq!(size.model, 440 + SMALL_FILES);
        assert_eq!(size.all, 3 * 440 + SMALL_FILES);
    }

    /// A sink that does not answer until it is cancelled.
    struct Hanging(Receiver<()>, SyncSender<()>);

    impl CheckpointSink for Hanging {
        fn id(&self) -> &str {
            "hanging"
        }
        fn publish(&mut self, _: Publish<'_>) -> Result<Receipt, SinkError> {
            Err(SinkError::Cancelled)
        }
        fn preflight(&mut self, _: Preflight<'_>) -> Result<Option<String>, SinkError> {
            self.0.recv().expect("the canceller lives");
            Err(SinkError::Cancelled)
        }
        fn canceller(&self) -> Box<dyn Fn() + Send + Sync> {
            let cancel = self.1.clone();
            Box::new(move || {
                let _ = cancel.try_send(());
            })
        }
    }

    #[test]
    fn a_sink_that_does_not_answer_is_cancelled_and_returned() {
        let runs = tempfile::tempdir().expect("a folder");
        let name = "run".parse().expect("a name");
        let dir = RunDir::create(runs.path(), Some(&name), "tiny").expect("made");
        let (cancel, cancelled) = sync_channel(1);
        let port = Box::new(Hanging(cancelled, cancel)) as Box<dyn CheckpointSink>;
        let sink = Supervised::new("hanging", OnError::default(), port);
        let size = CheckpointSize::of(&[]);
        let asked = ask(&dir, size, (sink, QueuePolicy::default())).expect("asked");
        assert!(dir.sink_state("hanging").is_dir());
        let limits = (Instant::now(), Duration::ZERO);
        let progress = Progress::new(Style::Lines, 0);
        let waited = wait(
            &asked.label,
            &asked.answer,
            &*asked.cancel,
            limits,
            &progress,
        );
        let ((sink, _), outcome) = waited.expect("it came back");
        assert_eq!(sink.label(), "hanging");
        assert_eq!(outcome, Err(SinkError::Cancelled));
    }

    #[test]
    fn no_disk_has_room_for_everything() {
        let dir = tempfile::tempdir().expect("a folder");
        assert!(check_room(dir.path(), 0).expect("asked").is_none());
        let fault = check_room(dir.path(), u64::MAX).expect("asked");
        let line = fault.expect("no room").line();
        assert!(line.starts_with("the run folder is not ready: "), "{line}");
        assert!(check_room(&dir.path().join("gone"), 0).is_err());
    }
}
