use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::{EventBody, Step};

/// An event on its way to the store, which gives it its place in the order.
#[derive(Clone, Debug, PartialEq)]
pub struct Draft {
    /// When, in microseconds since the Unix epoch.
    pub time_us: i64,
    /// The optimizer steps finished by then.
    pub step: Step,
    /// What happened.
    pub body: EventBody,
}

/// The way events take out of the rooms: a bounded queue that the store's writer empties. `[any]`
///
/// Emitting costs one bounded send. Only when the queue is full does the caller wait, and that wait
/// is counted; nothing is dropped.
#[derive(Clone, Debug)]
pub struct Emitter {
    queue: SyncSender<Draft>,
    emitted: Arc<AtomicU64>,
    waits: Arc<AtomicU64>,
    inbox: Option<Inbox>,
}

/// What was emitted and not yet taken out: the observers' copy of the events, in the order in which
/// they were emitted. `[any]`
///
/// The loop takes them out after every step, so only what the other threads emit within one step
/// gathers. Beyond [`Inbox::CAPACITY`] the oldest are lost, and counted.
#[derive(Clone, Debug, Default)]
pub struct Inbox(Arc<Mutex<Received>>);

#[derive(Debug, Default)]
struct Received {
    events: VecDeque<(Step, EventBody)>,
    lost: u64,
}

impl Inbox {
    /// How many events it holds at most.
    pub const CAPACITY: usize = 65_536;

    /// Takes the events out, and how many were lost before them.
    pub fn take(&self) -> (VecDeque<(Step, EventBody)>, u64) {
        let mut received = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let received = std::mem::take(&mut *received);
        (received.events, received.lost)
    }

    fn put(&self, step: Step, body: EventBody) {
        let mut received = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if received.events.len() == Self::CAPACITY {
            received.events.pop_front();
            received.lost += 1;
        }
        received.events.push_back((step, body));
    }
}

impl Emitter {
    /// An emitter, and the end of its queue that the writer reads. The queue holds `capacity` events.
    pub fn new(capacity: usize) -> (Self, Receiver<Draft>) {
        let (queue, drafts) = sync_channel(capacity);
        let emitter = Self {
            queue,
            emitted: Arc::default(),
            waits: Arc::default(),
            inbox: None,
        };
        (emitter, drafts)
    }

    /// Also puts each event into `inbox`: those emitted by this emitter and its later clones.
    #[must_use]
    pub fn with_inbox(mut self, inbox: Inbox) -> Self {
        self.inbox = Some(inbox);
        self
    }

    /// Sends an event. If the writer is gone, which it reports by itself, the event goes nowhere.
    pub fn emit(&self, step: Step, body: EventBody) {
        if let Some(inbox) = &self.inbox {
            inbox.put(step, body.clone());
        }
        let draft = Draft {
            time_us: now_us(),
            step,
            body,
        };
        // Counted first, so that no event is in the queue and not in the count.
        self.emitted.fetch_add(1, Ordering::SeqCst);
        if let Err(TrySendError::Full(draft)) = self.queue.try_send(draft) {
            self.waits.fetch_add(1, Ordering::Relaxed);
            let _ = self.queue.send(draft);
        }
    }

    /// How many events were emitted, by all clones, those on their way into the queue included.
    pub fn emitted(&self) -> u64 {
        self.emitted.load(Ordering::SeqCst)
    }

    /// How often `emit` found the queue full and waited.
    pub fn waits(&self) -> u64 {
        self.waits.load(Ordering::Relaxed)
    }
}

fn now_us() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inbox_has_the_events_in_their_order_and_loses_the_oldest() {
        let (emitter, drafts) = Emitter::new(Inbox::CAPACITY + 10);
        let inbox = Inbox::default();
        let emitter = emitter.with_inbox(inbox.clone());
        let started = EventBody::RunStarted { generation: 0 };
        for n in 0..Inbox::CAPACITY as u64 + 3 {
            emitter.emit(Step(n), started.clone());
        }
        let (events, lost) = inbox.take();
        assert_eq!((events.len(), lost), (Inbox::CAPACITY, 3));
        assert_eq!(events[0], (Step(3), started));
        assert_eq!(inbox.take(), (VecDeque::new(), 0));
        drop(emitter);
        assert_eq!(drafts.iter().count(), Inbox::CAPACITY + 3);
    }

    #[test]
    fn a_full_queue_makes_the_caller_wait_and_loses_nothing() {
        let (emitter, drafts) = Emitter::new(1);
        let sender = emitter.clone();
        let thread = std::thread::Builder::new()
            .name("sender".to_owned())
            .spawn(move || {
                for n in 0..100 {
                    sender.emit(Step(n), EventBody::RunStarted { generation: 0 });
                }
            });
        while emitter.waits() == 0 {
            std::thread::yield_now();
        }
        assert!(emitter.emitted() >= 2);
        drop(emitter);
        let steps: Vec<u64> = drafts.iter().map(|draft| draft.step.0).collect();
        thread.expect("started").join().expect("the sender");
        assert_eq!(steps, (0..100).collect::<Vec<_>>());
    }
}
