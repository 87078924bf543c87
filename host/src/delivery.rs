//! Delivers complete checkpoints to the sinks, with a queue and a worker thread for each sink.
//!
//! A sink receives its checkpoints in order. After a temporary failure, a delivery is retried at growing
//! intervals while the run lasts, and a few more times at the end. A failure stops the training only if the
//! sink's policy is `fail`.

mod backlog;
mod courier;
mod custody;
mod queue;

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use host_core::{
    CheckpointDir, CheckpointSink, Control, Emitter, Error, ErrorKind, QueuePolicy, Result,
    RunName, Step, Supervised,
};

use backlog::Owed;
pub(crate) use backlog::{Backlog, Wanted};
use courier::Courier;
use custody::Holders;
use queue::Queue;

use crate::runs::run_dir::RunDir;

/// How long to wait for workers to stop after cancelling them.
const GRACE: Duration = Duration::from_secs(5);

/// Shorter waits are not reported.
const SHORT: Duration = Duration::from_millis(500);

/// The reason for not delivering a checkpoint whose folder no longer exists.
const GONE: &str = "its folder is missing from the run folder";

/// The reason for not delivering a checkpoint that was removed.
const NO_ROOM: &str =
    "it was removed from the run folder to free disk space for the next checkpoint";

/// How failed deliveries are retried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Retry {
    /// The sink's policy counts this number of consecutive failed attempts as one failure. Also, at the end
    /// of the run, a sink's worker stops after this number of failed attempts to deliver the same checkpoint.
    pub(crate) tries: u32,
    /// The first wait. Each following wait is twice as long.
    pub(crate) first_wait: Duration,
    /// The longest wait.
    pub(crate) longest_wait: Duration,
}

impl Retry {
    /// Returns the wait after this number of consecutive failures. Lengthens the wait by up to a tenth, so
    /// that runs with the same server do not all retry at the same moment.
    fn wait(&self, failures: u32) -> Duration {
        let doubled = 2u32.saturating_pow(failures.saturating_sub(1));
        let wait = self.first_wait.saturating_mul(doubled);
        let wait = wait.min(self.longest_wait);
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH);
        let chance = nanos.map_or(0, |time| time.subsec_nanos() % 1000);
        wait + wait.saturating_mul(chance) / 10_000
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            tries: 5,
            first_wait: Duration::from_secs(1),
            longest_wait: Duration::from_secs(60),
        }
    }
}

/// A sink of a run. The sink's label appears in the sink's events, and is the name of the sink's state
/// folder.
pub(crate) struct Destination {
    /// The sink's state folder, which exists.
    pub(crate) state_dir: PathBuf,
    /// The policy of the sink's queue.
    pub(crate) queue: QueuePolicy,
    /// The sink itself.
    pub(crate) sink: Supervised<dyn CheckpointSink>,
}

impl Destination {
    /// Returns the sinks of a run, and creates their state folders.
    ///
    /// # Errors
    /// Returns an error if a folder cannot be created.
    pub(crate) fn all(
        dir: &RunDir,
        sinks: Vec<(Supervised<dyn CheckpointSink>, QueuePolicy)>,
    ) -> Result<Vec<Self>> {
        sinks
            .into_iter()
            .map(|(sink, queue)| {
                let state_dir = dir.sink_state(sink.label());
                std::fs::create_dir_all(&state_dir)
                    .map_err(|e| Error::io("create the sink's folder", &state_dir, &e))?;
                Ok(Self {
                    state_dir,
                    queue,
                    sink,
                })
            })
            .collect()
    }
}

/// The deliveries of a run. `[any]`, except for `start`, `take_up` and `drain`.
pub(crate) struct Deliveries {
    workers: Vec<Worker>,
    /// Queues of sinks that the run no longer has. These queues have no worker. They record the checkpoints
    /// that the sinks did not receive.
    removed: Vec<Queue>,
}

struct Worker {
    queue: Arc<Queue>,
    /// None after the thread was joined.
    thread: Option<JoinHandle<()>>,
}

/// Checkpoints that were not delivered to a sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Undelivered {
    /// The sink's label.
    pub(crate) sink: String,
    /// The checkpoints' steps.
    pub(crate) steps: Vec<Step>,
    /// Why the last attempt failed, or why the checkpoints are lost.
    pub(crate) reason: String,
    /// Whether the checkpoints can never be delivered.
    pub(crate) is_lost: bool,
}

impl Deliveries {
    /// Starts a worker for each sink. If a sink fails and its policy is `fail`, the worker ends the run
    /// through `control`.
    ///
    /// # Errors
    /// Returns an error if a thread cannot be started.
    pub(crate) fn start(
        run: &RunName,
        destinations: Vec<Destination>,
        retry: Retry,
        emitter: &Emitter,
        control: &Control,
    ) -> Result<Self> {
        let mut workers = Vec::new();
        let holders = Holders::default();
        for destination in destinations {
            let queue = Arc::new(Queue::new(
                destination.sink.label().to_owned(),
                destination.queue,
                retry,
                destination.sink.port().canceller(),
                emitter.clone(),
            ));
            let courier = Courier {
                run: run.clone(),
                destination,
                retry,
                queue: Arc::clone(&queue),
                control: control.clone(),
                holders: holders.clone(),
                last: None,
            };
            let thread = std::thread::Builder::new()
                .name(format!("sink {}", queue.label))
                .spawn(move || courier.work())
                .map_err(|e| {
                    Error::new(ErrorKind::System, format!("cannot start a thread: {e}"))
                })?;
            workers.push(Worker {
                queue,
                thread: Some(thread),
            });
        }
        Ok(Self {
            workers,
            removed: Vec::new(),
        })
    }

    /// Queues a checkpoint for every sink. Returns at once.
    pub(crate) fn offer(&self, checkpoint: CheckpointDir) {
        let checkpoint = Arc::new(checkpoint);
        for Worker { queue, .. } in &self.workers {
            queue.offer(Arc::clone(&checkpoint));
        }
    }

    /// Queues the checkpoints that an earlier process of the run left undelivered. Must be called before
    /// [`Self::offer`].
    pub(crate) fn take_up(&mut self, backlog: &Backlog, emitter: &Emitter) {
        for Worker { queue, .. } in &self.workers {
            for owed in backlog.of(&queue.label) {
                match owed {
                    Owed::Queued(checkpoint) => queue.push(Arc::clone(checkpoint)),
                    Owed::Again(checkpoint) => queue.offer(Arc::clone(checkpoint)),
                    Owed::Damaged(step, reason) => queue.refuse(*step, reason),
                    Owed::Gone(step) => queue.lose(*step, GONE),
                }
            }
        }
        let removed = backlog.removed_sinks().map(|(sink, steps)| {
            let policy = QueuePolicy::default();
            let no_sink = Box::new(|| ());
            let queue = Queue::new(
                sink.to_owned(),
                policy,
                Retry::default(),
                no_sink,
                emitter.clone(),
            );
            queue.lacks(steps);
            queue
        });
        self.removed.extend(removed);
    }

    /// Whether the checkpoint of this step must stay in the run folder, because a sink has not received it.
    pub(crate) fn is_needed(&self, step: Step) -> bool {
        self.queues().any(|queue| queue.needs(step))
    }

    /// Gives up a checkpoint that a sink still needs. Called if the run folder's disk has no room for the
    /// next checkpoint. If a sink is sending the checkpoint, does nothing and returns false.
    pub(crate) fn give_up(&self, step: Step) -> bool {
        let queues: Vec<&Queue> = self.queues().collect();
        queue::give_up(&queues, step, NO_ROOM)
    }

    fn queues(&self) -> impl Iterator<Item = &Queue> {
        let workers = self.workers.iter().map(|worker| &*worker.queue);
        workers.chain(&self.removed)
    }

    /// Returns the number of waiting checkpoints for each sink.
    pub(crate) fn waiting(&self) -> Vec<(String, usize)> {
        let waiting = |Worker { queue, .. }: &Worker| (queue.label.clone(), queue.depth());
        self.workers.iter().map(waiting).collect()
    }

    /// Returns a function that cancels all deliveries. `[any]`; it may outlive `self`.
    pub(crate) fn canceller(&self) -> impl Fn() + Send + Sync + 'static {
        let queues: Vec<Arc<Queue>> = self.workers.iter().map(|w| Arc::clone(&w.queue)).collect();
        move || queues.iter().for_each(|queue| queue.cancel())
    }

    /// Waits for at most `patience` until all deliveries have ended. Reports through `say` which sinks it
    /// waits for, and how many checkpoints each of them still has. Reports this again whenever it changes.
    /// Returns the checkpoints that were not delivered.
    pub(crate) fn drain(
        &mut self,
        patience: Duration,
        say: &mut dyn FnMut(&str),
    ) -> Vec<Undelivered> {
        for worker in &self.workers {
            worker.queue.close();
        }
        let begun = Instant::now();
        let mut deadline = begun + patience;
        let mut cancelled = false;
        let mut said = String::new();
        while self.workers.iter().any(Worker::is_at_work) {
            let at_work = self.workers.iter().filter(|worker| worker.is_at_work());
            let waits: Vec<String> = at_work.clone().filter_map(Worker::waits).collect();
            let waits = waits.join(", ");
            let is_long = begun.elapsed() >= SHORT || Instant::now() >= deadline;
            if is_long && !waits.is_empty() && waits != said {
                say(&format!("waiting for {waits}"));
                said = waits;
            }
            for worker in at_work.clone().filter(|worker| worker.queue.is_cancelled()) {
                // Cancels repeatedly: a sink whose call starts just after a cancellation does not notice that
                // cancellation.
                worker.queue.cancel();
            }
            if Instant::now() >= deadline {
                if cancelled {
                    // The thread of a sink that ignores the cancellation is left running.
                    break;
                }
                self.canceller()();
                cancelled = true;
                deadline = Instant::now() + GRACE;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // Drops the emitters of the queues. The store closes only after all emitters are dropped, and a
        // canceller can keep a queue alive.
        self.queues().for_each(Queue::mute);
        let undelivered = |worker: &Worker| worker.queue.undelivered();
        let undelivered = self.workers.iter().flat_map(undelivered).collect();
        for worker in &mut self.workers {
            let ended = worker.thread.take_if(|thread| thread.is_finished());
            // A worker panics only because of a bug in the host. Its checkpoints count as not delivered.
            let _ = ended.map(JoinHandle::join);
        }
        undelivered
    }
}

impl Worker {
    fn is_at_work(&self) -> bool {
        let thread = self.thread.as_ref();
        thread.is_some_and(|thread| !thread.is_finished())
    }

    fn waits(&self) -> Option<String> {
        let waiting = self.queue.depth();
        (waiting > 0).then(|| count(&self.queue.label, waiting))
    }
}

/// Formats as `hub-git (2 checkpoints)`.
fn count(sink: &str, checkpoints: usize) -> String {
    match checkpoints {
        1 => format!("{sink} (1 checkpoint)"),
        n => format!("{sink} ({n} checkpoints)"),
    }
}

/// If checkpoints were not delivered, returns an error that names their sinks. `run` is the argument with
/// which other commands find the run.
pub(crate) fn missed(undelivered: &[Undelivered], run: &str) -> Option<Error> {
    let mut sinks: Vec<&str> = undelivered.iter().map(|left| left.sink.as_str()).collect();
    sinks.dedup();
    if sinks.is_empty() {
        return None;
    }
    let message = format!("checkpoints did not reach {}", sinks.join(", "));
    let hint = match undelivered.iter().all(|left| left.is_lost) {
        true => {
            "see the lines above for the reasons; the checkpoints are lost and cannot be delivered"
                .to_owned()
        }
        false => format!(
            "see the lines above for the reasons; run `host deliver {run}` to retry what is in the run folder"
        ),
    };
    Some(Error::new(ErrorKind::Delivery, message).hint(hint))
}

/// Whether a checkpoint was dropped because a newer one replaced it. `detail` is the ledger's text about the
/// dropped checkpoint.
pub(crate) fn is_superseded(detail: &str) -> bool {
    detail.ends_with(queue::TOOK_ITS_PLACE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use host_core::{
        DeliveryState, Draft, EventBody, Manifest, OnError, Publish, Receipt, SinkError, StopReason,
    };

    /// A sink for tests. Each call sends the checkpoint's step to `seen`, and returns the next error of
    /// `answers`. If no error is left, the call returns a receipt.
    struct Scripted {
        answers: Box<dyn Iterator<Item = SinkError> + Send>,
        seen: SyncSender<u64>,
        gate: Option<Receiver<()>>,
        cancel: Arc<Mutex<Option<SyncSender<()>>>>,
    }

    impl CheckpointSink for Scripted {
        fn id(&self) -> &str {
            "scripted"
        }

        fn publish(&mut self, publish: Publish<'_>) -> Result<Receipt, SinkError> {
            let _ = self.seen.send(publish.checkpoint.step.0);
            if let Some(gate) = &self.gate {
                let _ = gate.recv();
                return Err(SinkError::Cancelled);
            }
            match self.answers.next() {
                Some(error) => Err(error),
                None => Ok(Receipt("{}".to_owned())),
            }
        }

        fn canceller(&self) -> Box<dyn Fn() + Send + Sync> {
            let gate = Arc::clone(&self.cancel);
            Box::new(move || drop(gate.lock().expect("the gate").take()))
        }
    }

    struct Scene {
        deliveries: Deliveries,
        control: Control,
        drafts: Receiver<Draft>,
        seen: Receiver<u64>,
    }

    fn scene(answers: Vec<SinkError>, blocks: bool) -> Scene {
        scene_under(OnError::Warn, answers, blocks)
    }

    fn scene_under(on_error: OnError, answers: Vec<SinkError>, blocks: bool) -> Scene {
        let answers = Box::new(answers.into_iter());
        scene_with(on_error, QueuePolicy::All, answers, blocks)
    }

    fn scene_with(
        on_error: OnError,
        queue: QueuePolicy,
        answers: Box<dyn Iterator<Item = SinkError> + Send>,
        blocks: bool,
    ) -> Scene {
        let (emitter, drafts) = Emitter::new(1000);
        let (seen_sender, seen) = sync_channel(1000);
        let (open, gate) = sync_channel(1000);
        let sink = Scripted {
            answers,
            seen: seen_sender,
            gate: blocks.then_some(gate),
            cancel: Arc::new(Mutex::new(Some(open))),
        };
        let destination = Destination {
            state_dir: PathBuf::from("/nowhere"),
            queue,
            sink: Supervised::new("scripted", on_error, Box::new(sink)),
        };
        let retry = Retry {
            tries: 2,
            first_wait: Duration::from_millis(5),
            longest_wait: Duration::from_millis(5),
        };
        let run = "r".parse().expect("a name");
        let control = Control::new();
        let deliveries = Deliveries::start(&run, vec![destination], retry, &emitter, &control);
        Scene {
            deliveries: deliveries.expect("started"),
            control,
            drafts,
            seen,
        }
    }

    fn checkpoint(step: u64) -> CheckpointDir {
        CheckpointDir {
            step: Step(step),
            path: PathBuf::from("/nowhere"),
            manifest: Manifest::default(),
            metrics: Vec::new(),
        }
    }

    fn temporary() -> SinkError {
        SinkError::Temporary("no route".to_owned())
    }

    const LONG: Duration = Duration::from_secs(60);

    fn states(drafts: &Receiver<Draft>) -> Vec<(u64, DeliveryState)> {
        drafts
            .try_iter()
            .filter_map(|draft| match draft.body {
                EventBody::Delivery {
                    checkpoint, state, ..
                } => Some((checkpoint.0, state)),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn a_checkpoint_is_needed_until_it_is_delivered() {
        let Scene {
            mut deliveries,
            drafts,
            seen,
            ..
        } = scene(vec![temporary()], false);
        deliveries.offer(checkpoint(10));
        // The second attempt succeeds.
        assert_eq!(seen.iter().take(2).collect::<Vec<_>>(), [10, 10]);
        while deliveries.is_needed(Step(10)) {
            std::thread::yield_now();
        }
        assert_eq!(deliveries.drain(LONG, &mut |_| ()), []);
        use DeliveryState::{Delivered, Failed, Queued, Sending};
        assert_eq!(
            states(&drafts),
            [
                (10, Queued),
                (10, Sending),
                (10, Failed),
                (10, Sending),
                (10, Delivered)
            ]
        );
    }

    #[test]
    fn a_failure_has_the_time_of_the_next_try_except_for_the_last() {
        let begun = jiff::Timestamp::now().as_microsecond();
        let always = Box::new(std::iter::repeat_with(temporary));
        let mut scene = scene_with(OnError::Warn, QueuePolicy::All, always, false);
        scene.deliveries.offer(checkpoint(10));
        let left = scene.deliveries.drain(LONG, &mut |_| ());
        assert_eq!(left[0].steps, [Step(10)]);
        let retries: Vec<Option<i64>> = scene
            .drafts
            .try_iter()
            .filter_map(|draft| match draft.body {
                EventBody::Delivery {
                    state: DeliveryState::Failed,
                    retry_time_us,
                    ..
                } => Some(retry_time_us),
                _ => None,
            })
            .collect();
        let [earlier @ .., None] = &retries[..] else {
            panic!("{retries:?}")
        };
        assert!(!earlier.is_empty());
        for retry in earlier {
            assert!(retry.is_some_and(|retry| retry >= begun), "{retries:?}");
        }
    }

    #[test]
    fn waits_grow_up_to_the_longest() {
        let retry = Retry::default();
        let about = |failures, secs: u64| {
            let wait = retry.wait(failures);
            let least = Duration::from_secs(secs);
            assert!(wait >= least && wait <= least.mul_f64(1.1), "{wait:?}");
        };
        for (failures, secs) in [(1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (1000, 60)] {
            about(failures, secs);
        }
    }

    #[test]
    fn the_policy_latest_keeps_the_newest_waiting_checkpoint_and_the_one_being_sent() {
        let none = Box::new(std::iter::empty());
        let mut scene = scene_with(OnError::Warn, QueuePolicy::Latest, none, true);
        scene.deliveries.offer(checkpoint(10));
        assert_eq!(scene.seen.recv().expect("it began"), 10);
        for step in [20, 30, 40] {
            scene.deliveries.offer(checkpoint(step));
        }
        assert_eq!(scene.deliveries.waiting(), [("scripted".to_owned(), 2)]);
        assert!(scene.deliveries.is_needed(Step(10)));
        assert!(!scene.deliveries.is_needed(Step(30)));
        let left = scene.deliveries.drain(Duration::ZERO, &mut |_| ());
        assert_eq!(left[0].steps, [Step(10), Step(40)]);
        let dropped: Vec<u64> = states(&scene.drafts)
            .into_iter()
            .filter(|(_, state)| *state == DeliveryState::Dropped)
            .map(|(step, _)| step)
            .collect();
        assert_eq!(dropped, [20, 30]);
    }

    #[test]
    fn a_rejected_checkpoint_does_not_block_the_next() {
        let no = SinkError::Permanent("no".to_owned());
        let mut scene = scene(vec![no], false);
        scene.deliveries.offer(checkpoint(10));
        scene.deliveries.offer(checkpoint(20));
        let left = scene.deliveries.drain(LONG, &mut |_| ());
        assert_eq!(left.len(), 1);
        assert_eq!(
            (left[0].steps.as_slice(), left[0].reason.as_str()),
            (&[Step(10)][..], "no")
        );
        assert_eq!(scene.seen.iter().collect::<Vec<_>>(), [10, 20]);
    }

    #[test]
    fn a_rejected_checkpoint_is_still_needed() {
        let mut scene = scene(vec![permanent()], false);
        scene.deliveries.offer(checkpoint(10));
        scene.deliveries.offer(checkpoint(20));
        assert_eq!(scene.seen.iter().take(2).collect::<Vec<_>>(), [10, 20]);
        while scene.deliveries.is_needed(Step(20)) {
            std::thread::yield_now();
        }
        assert!(scene.deliveries.is_needed(Step(10)));
        let left = scene.deliveries.drain(LONG, &mut |_| ());
        assert_eq!(left[0].steps, [Step(10)]);
    }

    #[test]
    fn a_checkpoint_that_is_given_up_is_recorded_as_lost_unless_it_is_being_sent() {
        let none = Box::new(std::iter::empty());
        let mut scene = scene_with(OnError::Warn, QueuePolicy::All, none, true);
        scene.deliveries.offer(checkpoint(10));
        assert_eq!(scene.seen.recv().expect("it began"), 10);
        scene.deliveries.offer(checkpoint(20));
        scene.deliveries.offer(checkpoint(30));
        assert!(!scene.deliveries.give_up(Step(10)));
        assert!(scene.deliveries.is_needed(Step(10)));
        assert!(scene.deliveries.give_up(Step(20)));
        assert!(!scene.deliveries.is_needed(Step(20)));
        let left = scene.deliveries.drain(Duration::ZERO, &mut |_| ());
        let short: Vec<_> = left
            .iter()
            .map(|left| (left.steps.as_slice(), left.is_lost))
            .collect();
        let (lost, waits) = ([Step(20)], [Step(10), Step(30)]);
        assert_eq!(short, [(&lost[..], true), (&waits[..], false)]);
        let dropped: Vec<u64> = states(&scene.drafts)
            .into_iter()
            .filter(|(_, state)| *state == DeliveryState::Dropped)
            .map(|(step, _)| step)
            .collect();
        assert_eq!(dropped, [20]);
        let hint = |left: &[Undelivered]| {
            let error = missed(left, "r").expect("an error");
            error.hint_text().unwrap_or_default().to_owned()
        };
        assert!(hint(&left).contains("host deliver r"));
        assert!(!hint(&left[..1]).contains("host deliver"));
    }

    #[test]
    fn the_policy_latest_keeps_no_older_rejected_checkpoint() {
        let always = Box::new(std::iter::repeat_with(permanent));
        let mut scene = scene_with(OnError::Warn, QueuePolicy::Latest, always, false);
        for step in [10, 20] {
            scene.deliveries.offer(checkpoint(step));
            assert_eq!(scene.seen.recv().expect("it began"), step);
        }
        let left = scene.deliveries.drain(LONG, &mut |_| ());
        assert_eq!(left[0].steps, [Step(20)]);
        let dropped = (10, DeliveryState::Dropped);
        assert!(states(&scene.drafts).contains(&dropped));
    }

    #[test]
    fn a_temporary_failure_is_retried_before_the_next_checkpoint() {
        let mut scene = scene(vec![temporary(), temporary()], false);
        scene.deliveries.offer(checkpoint(10));
        assert_eq!(scene.seen.iter().take(2).count(), 2);
        scene.deliveries.offer(checkpoint(20));
        assert_eq!(scene.deliveries.drain(LONG, &mut |_| ()), []);
        assert_eq!(scene.seen.iter().collect::<Vec<_>>(), [10, 20]);
    }

    #[test]
    fn undelivered_checkpoints_are_returned_with_the_reason() {
        let always = Box::new(std::iter::repeat_with(temporary));
        let mut scene = scene_with(OnError::Warn, QueuePolicy::All, always, false);
        scene.deliveries.offer(checkpoint(10));
        scene.deliveries.offer(checkpoint(20));
        let left = scene.deliveries.drain(LONG, &mut |_| ());
        let expected = Undelivered {
            sink: "scripted".to_owned(),
            steps: vec![Step(10), Step(20)],
            reason: "no route".to_owned(),
            is_lost: false,
        };
        assert_eq!(left, [expected]);
    }

    #[test]
    fn a_sink_that_hangs_is_cancelled_after_the_patience() {
        let mut scene = scene(Vec::new(), true);
        scene.deliveries.offer(checkpoint(10));
        assert_eq!(scene.seen.recv().expect("it began"), 10);
        let mut said = Vec::new();
        let left = scene
            .deliveries
            .drain(Duration::ZERO, &mut |line| said.push(line.to_owned()));
        assert_eq!(left[0].steps, [Step(10)]);
        assert_eq!(said, ["waiting for scripted (1 checkpoint)"]);
        let last = states(&scene.drafts).pop().expect("events");
        assert_eq!(last, (10, DeliveryState::Failed));
    }

    #[test]
    fn a_sink_that_reports_an_unrequested_cancellation_has_failed() {
        let scene = scene(vec![SinkError::Cancelled], false);
        scene.deliveries.offer(checkpoint(10));
        assert_eq!(scene.seen.iter().take(2).collect::<Vec<_>>(), [10, 10]);
        let mut deliveries = scene.deliveries;
        assert_eq!(deliveries.drain(LONG, &mut |_| ()), []);
        let fault = scene.drafts.try_iter().find_map(|draft| match draft.body {
            EventBody::PluginFault { message, .. } => Some(message),
            _ => None,
        });
        let words = "the sink reports that it was cancelled, but it was not";
        assert_eq!(fault.as_deref(), Some(words));
    }

    fn permanent() -> SinkError {
        SinkError::Permanent("no".to_owned())
    }

    #[test]
    fn a_disabled_sink_is_not_called_and_its_checkpoints_stay_queued() {
        let answers = vec![permanent(), permanent()];
        let mut scene = scene_under(OnError::DisableAfter(2), answers, false);
        for step in [10, 20, 30] {
            scene.deliveries.offer(checkpoint(step));
        }
        // The worker ends and drops its sender of the channel, so the iteration ends, too.
        assert_eq!(scene.seen.iter().collect::<Vec<_>>(), [10, 20]);
        scene.deliveries.offer(checkpoint(40));
        assert!(scene.deliveries.is_needed(Step(40)));
        let left = scene.deliveries.drain(LONG, &mut |_| ());
        assert_eq!(left[0].steps, [10, 20, 30, 40].map(Step));
        assert_eq!(scene.deliveries.waiting(), [("scripted".to_owned(), 2)]);
        let warnings: Vec<String> = scene
            .drafts
            .try_iter()
            .filter_map(|draft| match draft.body {
                EventBody::Warning { message } => Some(message),
                _ => None,
            })
            .collect();
        let [warning] = &warnings[..] else {
            panic!("{warnings:?}")
        };
        let start = "plugin scripted is disabled: it failed 2 times in a row; the ";
        assert!(warning.starts_with(start), "{warning}");
        let end = " stay queued in the run folder";
        assert!(warning.ends_with(end), "{warning}");
        assert_eq!(scene.control.stop_requested(), None);
    }

    #[test]
    fn a_failure_ends_the_run_if_the_policy_says_so() {
        let answers = vec![temporary(), temporary()];
        let mut scene = scene_under(OnError::Fail, answers, false);
        scene.deliveries.offer(checkpoint(10));
        assert_eq!(scene.seen.iter().take(2).count(), 2);
        // The retry at the end succeeds, but the run has failed anyway.
        assert_eq!(scene.deliveries.drain(LONG, &mut |_| ()), []);
        assert_eq!(scene.control.stop_requested(), Some(StopReason::Failed));
        let error = scene.control.take_failure().expect("an error");
        assert_eq!(
            error.message(),
            "plugin scripted failed in publish: no route"
        );
    }
}
