use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::{EventBody, Step};

/// An event that the store has not numbered yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Draft {
    /// When it was emitted, in microseconds since the Unix epoch.
    pub time_us: i64,
    /// The number of optimizer steps finished by then.
    pub step: Step,
    /// What happened.
    pub body: EventBody,
}

/// Sends events to the store's writer through a bounded queue. `[any]`
///
/// Emitting an event is one send to the queue. If the queue is full, the caller blocks until there is space,
/// and the wait is counted. No event is dropped.
#[derive(Clone, Debug)]
pub struct Emitter {
    queue: SyncSender<Draft>,
    emitted: Arc<AtomicU64>,
    waits: Arc<AtomicU64>,
    inbox: Option<Inbox>,
}

/// Copies of the emitted events for the observers, in the order in which the events were emitted. `[any]`
///
/// The training loop empties the inbox after every step, so it holds only the events of one step. If it
/// exceeds [`Inbox::CAPACITY`], the oldest events are dropped and counted.
#[derive(Clone, Debug, Default)]
pub struct Inbox(Arc<Mutex<Received>>);

#[derive(Debug, Default)]
struct Received {
    events: VecDeque<(Step, EventBody)>,
    lost: u64,
}

impl Inbox {
    /// The maximum number of events in the inbox.
    pub const CAPACITY: usize = 65_536;

    /// Removes and returns all events, and the number of events that were dropped before them.
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
    /// Creates an emitter and the receiver for the writer. The queue between them holds `capacity` events.
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

    /// Sets the inbox. It receives a copy of every event from this emitter. Clones that are made later use
    /// the same inbox.
    #[must_use]
    pub fn with_inbox(mut self, inbox: Inbox) -> Self {
        self.inbox = Some(inbox);
        self
    }

    /// Sends an event. If the writer has ended, the event is discarded without an error: the writer reports
    /// why it ended.
    pub fn emit(&self, step: Step, body: EventBody) {
        if let Some(inbox) = &self.inbox {
            inbox.put(step, body.clone());
        }
        let draft = Draft {
            time_us: now_us(),
            step,
            body,
        };
        // The event is counted before it is sent, so that the count includes every event in the queue.
        self.emitted.fetch_add(1, Ordering::SeqCst);
        if let Err(TrySendError::Full(draft)) = self.queue.try_send(draft) {
            self.waits.fetch_add(1, Ordering::Relaxed);
            let _ = self.queue.send(draft);
        }
    }

    /// Returns the number of events that all clones have emitted, including events that still wait for space
    /// in the queue.
    pub fn emitted(&self) -> u64 {
        self.emitted.load(Ordering::SeqCst)
    }

    /// Returns how often `emit` found the queue full and waited.
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
    fn an_inbox_keeps_the_order_and_drops_the_oldest_events() {
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
    fn a_full_queue_blocks_the_caller_and_drops_nothing() {
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
