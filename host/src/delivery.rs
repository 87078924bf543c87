//! The way of complete checkpoints to the sinks: a queue and a worker thread for each sink.
//!
//! A sink gets its checkpoints in order. One that fails for a while keeps its place: it is tried
//! again when the next checkpoint comes and at the end. The training ends by it only where the sink's
//! policy says so.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use host_core::{
    CheckpointDir, CheckpointSink, Control, DeliveryState, Emitter, Error, EventBody, Kind,
    Publish, Receipt, Result, RunName, SinkError, Step, Supervised, Verdict,
};

/// Checkpoints that may wait for one sink. They are folders on the disk, so a place costs little.
const CAPACITY: usize = 1024;

/// How long workers may take to notice that they were cancelled.
const GRACE: Duration = Duration::from_secs(5);

/// A wait that nobody needs to be told of.
const SHORT: Duration = Duration::from_millis(500);

/// How often a delivery is tried, and how long is waited in between: twice as long each time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Retry {
    /// Tries in a row.
    pub(crate) tries: u32,
    /// The first wait.
    pub(crate) first_wait: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            tries: 5,
            first_wait: Duration::from_secs(1),
        }
    }
}

/// A sink, under the label that its events and its state folder have.
pub(crate) struct Destination {
    /// Its own folder, which exists.
    pub(crate) state_dir: PathBuf,
    /// The port.
    pub(crate) sink: Supervised<dyn CheckpointSink>,
}

/// The deliveries of a run. `[any]` but for starting and draining.
pub(crate) struct Deliveries {
    workers: Vec<Worker>,
}

struct Worker {
    queue: Arc<Queue>,
    /// None once it was joined.
    thread: Option<JoinHandle<()>>,
}

/// What did not reach a sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Undelivered {
    /// The sink's label.
    pub(crate) sink: String,
    /// The checkpoints.
    pub(crate) steps: Vec<Step>,
    /// Why the last try failed.
    pub(crate) reason: String,
}

impl Deliveries {
    /// Starts a worker for each sink. One whose failure ends the run says so to `control`.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn start(
        run: &RunName,
        destinations: Vec<Destination>,
        retry: Retry,
        emitter: &Emitter,
        control: &Control,
    ) -> Result<Self> {
        let mut workers = Vec::new();
        for destination in destinations {
            let queue = Arc::new(Queue::new(
                destination.sink.label().to_owned(),
                destination.sink.port().canceller(),
                emitter.clone(),
            ));
            let courier = Courier {
                run: run.clone(),
                destination,
                retry,
                queue: Arc::clone(&queue),
                control: control.clone(),
            };
            let thread = std::thread::Builder::new()
                .name(format!("sink {}", queue.label))
                .spawn(move || courier.work())
                .map_err(|e| Error::new(Kind::System, format!("cannot start a thread: {e}")))?;
            workers.push(Worker {
                queue,
                thread: Some(thread),
            });
        }
        Ok(Self { workers })
    }

    /// Queues a checkpoint for every sink. Returns at once.
    pub(crate) fn offer(&self, checkpoint: CheckpointDir) {
        let checkpoint = Arc::new(checkpoint);
        for Worker { queue, .. } in &self.workers {
            // The event goes first: the worker's own must come after it.
            queue.tell(checkpoint.step, DeliveryState::Queued, "");
            if !queue.push(Arc::clone(&checkpoint)) {
                let reason = format!("{CAPACITY} checkpoints wait for this sink already");
                queue.tell(checkpoint.step, DeliveryState::Failed, &reason);
            }
        }
    }

    /// Whether a sink still waits for the checkpoint of this step.
    pub(crate) fn is_needed(&self, step: Step) -> bool {
        self.workers
            .iter()
            .any(|worker| worker.queue.lock().waiting.iter().any(|c| c.step == step))
    }

    /// How many checkpoints wait for each sink.
    pub(crate) fn waiting(&self) -> Vec<(String, usize)> {
        let waiting = |Worker { queue, .. }: &Worker| {
            let depth = queue.lock().waiting.len();
            (queue.label.clone(), depth)
        };
        self.workers.iter().map(waiting).collect()
    }

    /// What ends all deliveries soon. `[any]`, and good for longer than `self`.
    pub(crate) fn canceller(&self) -> impl Fn() + Send + Sync + 'static {
        let queues: Vec<Arc<Queue>> = self.workers.iter().map(|w| Arc::clone(&w.queue)).collect();
        move || queues.iter().for_each(|queue| queue.cancel())
    }

    /// Waits until every sink has what it can get, at most for `patience`, and says in half a
    /// sentence what it waits for whenever that changes. Returns what did not arrive.
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
            let waits: Vec<String> = at_work.filter_map(Worker::waits).collect();
            let waits = waits.join(", ");
            let is_long = begun.elapsed() >= SHORT || Instant::now() >= deadline;
            if is_long && !waits.is_empty() && waits != said {
                say(&format!("waiting for {waits}"));
                said = waits;
            }
            if Instant::now() >= deadline {
                if cancelled {
                    // A sink that does not listen keeps its thread until the process ends.
                    break;
                }
                self.canceller()();
                cancelled = true;
                deadline = Instant::now() + GRACE;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // The store waits for the last emitter to go, and a canceller may keep a queue for longer.
        self.workers.iter().for_each(|worker| worker.queue.mute());
        let undelivered = |worker: &Worker| worker.queue.undelivered();
        let undelivered = self.workers.iter().filter_map(undelivered).collect();
        for worker in &mut self.workers {
            let ended = worker.thread.take_if(|thread| thread.is_finished());
            // A panic in a worker is a bug of ours; its checkpoints count as not delivered.
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
        let waiting = self.queue.lock().waiting.len();
        match waiting {
            0 => None,
            1 => Some(format!("{} (1 checkpoint)", self.queue.label)),
            n => Some(format!("{} ({n} checkpoints)", self.queue.label)),
        }
    }
}

/// What waits for one sink.
struct Queue {
    label: String,
    cancel_sink: Box<dyn Fn() + Send + Sync>,
    emitter: Mutex<Option<Emitter>>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// In order; the worker is at the first and removes it when it is done with it.
    waiting: VecDeque<Arc<CheckpointDir>>,
    /// The first has failed for now and waits for news.
    stalled: bool,
    /// Something came, or the end, since the worker last looked.
    news: bool,
    /// No more will come.
    closed: bool,
    cancelled: bool,
    /// Checkpoints that the sink refused for good.
    refused: Vec<Step>,
    last_reason: String,
}

impl Queue {
    fn new(label: String, cancel_sink: Box<dyn Fn() + Send + Sync>, emitter: Emitter) -> Self {
        Self {
            label,
            cancel_sink,
            emitter: Mutex::new(Some(emitter)),
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole between any two statements, so a panic elsewhere leaves it usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn emit(&self, step: Step, body: EventBody) {
        let emitter = self.emitter.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(emitter) = emitter.as_ref() {
            emitter.emit(step, body);
        }
    }

    /// A delivery's events stand at the checkpoint's step, so that a run which goes back behind it
    /// takes them back as well.
    fn tell(&self, step: Step, state: DeliveryState, detail: &str) {
        let body = EventBody::Delivery {
            sink: self.label.clone(),
            checkpoint: step,
            state,
            detail: detail.to_owned(),
        };
        self.emit(step, body);
    }

    fn mute(&self) {
        *self.emitter.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// False if there is no place.
    fn push(&self, checkpoint: Arc<CheckpointDir>) -> bool {
        let mut state = self.lock();
        if state.waiting.len() >= CAPACITY {
            return false;
        }
        state.waiting.push_back(checkpoint);
        state.news = true;
        self.changed.notify_all();
        true
    }

    fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.news = true;
        self.changed.notify_all();
    }

    fn cancel(&self) {
        self.lock().cancelled = true;
        self.changed.notify_all();
        (self.cancel_sink)();
    }

    /// The next to deliver; blocks until there is one. None when there will be none.
    fn next(&self) -> Option<Arc<CheckpointDir>> {
        let mut state = self.lock();
        loop {
            if state.cancelled {
                return None;
            }
            match state.waiting.front().cloned() {
                Some(checkpoint) if !state.stalled || state.news => {
                    state.stalled = false;
                    state.news = false;
                    return Some(checkpoint);
                }
                _ if state.closed => return None,
                _ => {
                    state = self
                        .changed
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// Waits; false if everything was cancelled meanwhile.
    fn sleep(&self, time: Duration) -> bool {
        let (state, _) = self
            .changed
            .wait_timeout_while(self.lock(), time, |state| !state.cancelled)
            .unwrap_or_else(PoisonError::into_inner);
        !state.cancelled
    }

    fn undelivered(&self) -> Option<Undelivered> {
        let state = self.lock();
        let waiting = state.waiting.iter().map(|checkpoint| checkpoint.step);
        let steps: Vec<Step> = state.refused.iter().copied().chain(waiting).collect();
        (!steps.is_empty()).then(|| Undelivered {
            sink: self.label.clone(),
            steps,
            reason: if state.last_reason.is_empty() {
                "there was no time left".to_owned()
            } else {
                state.last_reason.clone()
            },
        })
    }
}

/// The worker of one sink. `[worker]`
struct Courier {
    run: RunName,
    destination: Destination,
    retry: Retry,
    queue: Arc<Queue>,
    control: Control,
}

/// How a delivery ended.
enum Ending {
    Delivered(Receipt),
    /// The sink will never take it.
    Refused(String),
    /// It may go well later.
    Postponed(String),
    /// Everything ends.
    Cancelled,
}

impl Courier {
    fn work(mut self) {
        while let Some(checkpoint) = self.queue.next() {
            let step = checkpoint.step;
            self.queue.tell(step, DeliveryState::Sending, "");
            let ending = self.deliver(&checkpoint);
            // The queue changes before the event goes out, so that whoever sees the event finds the
            // checkpoint no longer needed.
            let mut state = self.queue.lock();
            let (result, detail) = match &ending {
                Ending::Delivered(Receipt(receipt)) => {
                    state.waiting.pop_front();
                    (DeliveryState::Delivered, receipt.as_str())
                }
                Ending::Refused(reason) => {
                    state.waiting.pop_front();
                    state.refused.push(step);
                    state.last_reason.clone_from(reason);
                    (DeliveryState::Failed, reason.as_str())
                }
                Ending::Postponed(reason) => {
                    state.stalled = true;
                    state.last_reason.clone_from(reason);
                    (DeliveryState::Failed, reason.as_str())
                }
                Ending::Cancelled => {
                    state.stalled = true;
                    state.last_reason = "it was cancelled".to_owned();
                    (DeliveryState::Failed, "it was cancelled")
                }
            };
            drop(state);
            self.queue.tell(step, result, detail);
            match ending {
                Ending::Delivered(_) => self.destination.sink.succeeded(),
                Ending::Cancelled => {}
                Ending::Refused(reason) | Ending::Postponed(reason) => self.failed(step, &reason),
            }
            if self.destination.sink.active().is_none() {
                // What waits goes on waiting, and so does what is still to come.
                return;
            }
        }
    }

    fn deliver(&mut self, checkpoint: &CheckpointDir) -> Ending {
        let mut wait = self.retry.first_wait;
        let mut tries = 0;
        loop {
            tries += 1;
            let sink = self.destination.sink.active().expect("it is at work");
            let outcome = sink.publish(Publish {
                run: &self.run,
                checkpoint,
                state_dir: &self.destination.state_dir,
            });
            match outcome {
                Ok(receipt) => return Ending::Delivered(receipt),
                Err(SinkError::Cancelled) => return Ending::Cancelled,
                Err(SinkError::Permanent(reason)) => {
                    self.fault(checkpoint.step, &reason);
                    return Ending::Refused(reason);
                }
                Err(SinkError::Temporary(reason)) => {
                    self.fault(checkpoint.step, &reason);
                    if tries >= self.retry.tries || !self.queue.sleep(wait) {
                        return Ending::Postponed(reason);
                    }
                    wait = wait.saturating_mul(2);
                }
            }
        }
    }

    fn fault(&self, step: Step, reason: &str) {
        let fault = self.destination.sink.fault("publish", reason);
        self.queue.emit(step, fault);
    }

    /// A delivery has failed, its tries included: the policy says what comes of it.
    fn failed(&mut self, step: Step, reason: &str) {
        let label = &self.queue.label;
        let message = format!("plugin {label} failed in publish: {reason}");
        let lost = self.destination.sink.port().lost();
        let error = Error::new(Kind::Plugin, message);
        match self.destination.sink.failed(error, lost) {
            Verdict::GoOn => {}
            Verdict::Disable(why) => {
                let first = self.queue.lock().waiting.front().map(|c| c.step);
                let which = match first {
                    Some(step) => format!("the checkpoints from step {step} on"),
                    None => "the next checkpoints".to_owned(),
                };
                let message = format!("{why}; {which} stay queued in the run folder");
                self.queue.emit(step, EventBody::Warning { message });
            }
            Verdict::End(error) => self.control.fail(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use host_core::{Draft, Manifest, OnError, StopReason};

    /// Answers as the script says, then with receipts; tells what it was given.
    struct Scripted {
        answers: VecDeque<SinkError>,
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
            match self.answers.pop_front() {
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
        let (emitter, drafts) = Emitter::new(1000);
        let (seen_sender, seen) = sync_channel(1000);
        let (open, gate) = sync_channel(1000);
        let sink = Scripted {
            answers: answers.into(),
            seen: seen_sender,
            gate: blocks.then_some(gate),
            cancel: Arc::new(Mutex::new(Some(open))),
        };
        let destination = Destination {
            state_dir: PathBuf::from("/nowhere"),
            sink: Supervised::new("scripted", on_error, Box::new(sink)),
        };
        let retry = Retry {
            tries: 2,
            first_wait: Duration::ZERO,
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
        // The second try goes well.
        assert_eq!(seen.iter().take(2).collect::<Vec<_>>(), [10, 10]);
        while deliveries.is_needed(Step(10)) {
            std::thread::yield_now();
        }
        assert_eq!(deliveries.drain(LONG, &mut |_| ()), []);
        use DeliveryState::{Delivered, Queued, Sending};
        assert_eq!(
            states(&drafts),
            [(10, Queued), (10, Sending), (10, Delivered)]
        );
    }

    #[test]
    fn what_the_sink_refuses_does_not_keep_the_next_from_it() {
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
    fn what_failed_for_a_while_is_tried_again_before_the_next() {
        let mut scene = scene(vec![temporary(), temporary()], false);
        scene.deliveries.offer(checkpoint(10));
        assert_eq!(scene.seen.iter().take(2).count(), 2);
        scene.deliveries.offer(checkpoint(20));
        assert_eq!(scene.deliveries.drain(LONG, &mut |_| ()), []);
        assert_eq!(scene.seen.iter().collect::<Vec<_>>(), [10, 20]);
    }

    #[test]
    fn what_never_arrives_is_left_over_with_its_reason() {
        let mut scene = scene((0..100).map(|_| temporary()).collect(), false);
        scene.deliveries.offer(checkpoint(10));
        scene.deliveries.offer(checkpoint(20));
        let left = scene.deliveries.drain(LONG, &mut |_| ());
        let expected = Undelivered {
            sink: "scripted".to_owned(),
            steps: vec![Step(10), Step(20)],
            reason: "no route".to_owned(),
        };
        assert_eq!(left, [expected]);
    }

    #[test]
    fn a_sink_that_hangs_is_cancelled_when_patience_ends() {
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
        // The worker ends by itself, and takes its end of the channel with it.
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
        let start = "plugin scripted is not called any more: it failed 2 times in a row; the ";
        assert!(warning.starts_with(start), "{warning}");
        let end = " stay queued in the run folder";
        assert!(warning.ends_with(end), "{warning}");
        assert_eq!(scene.control.stop_requested(), None);
    }

    #[test]
    fn a_failure_for_good_ends_the_run_where_the_policy_says_so() {
        let answers = vec![temporary(), temporary()];
        let mut scene = scene_under(OnError::Fail, answers, false);
        scene.deliveries.offer(checkpoint(10));
        assert_eq!(scene.seen.iter().take(2).count(), 2);
        // It is tried again at the end, and then goes well; the run has failed all the same.
        assert_eq!(scene.deliveries.drain(LONG, &mut |_| ()), []);
        assert_eq!(scene.control.stop_requested(), Some(StopReason::Failed));
        let error = scene.control.take_failure().expect("an error");
        assert_eq!(
            error.message(),
            "plugin scripted failed in publish: no route"
        );
    }
}
