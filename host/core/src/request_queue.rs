use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Ask, Error, ErrorKind, Event, EventBody, Request, Result, Step};

/// A request, who makes it, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    /// A plugin's id, or `client:NAME`.
    pub by: String,
    /// What for.
    pub request: Request,
    /// Why, for people.
    pub reason: String,
}

/// When a request was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CarriedOut {
    /// Place of its event in the run's order.
    pub seq: u64,
    /// The optimizer steps finished by then.
    pub step: Step,
}

/// Who waits for a request to be carried out. Dropped unanswered when the training ends before.
pub trait Asker: Send {
    /// Whether it still waits: what nobody waits for any more is not carried out.
    fn waits(&self) -> bool;

    /// The loop has carried it out, and its event is on record. `[any]`, and may not block.
    fn answer(self: Box<Self>, at: CarriedOut);
}

/// The way of clients' requests to the loop: bounded, in the order in which they came. `[any]`
///
/// A request is answered when its event was committed, so that whoever hears of it can read of it.
#[derive(Clone, Debug, Default)]
pub struct RequestQueue(Arc<Shared>);

/// The loop's end of a [`RequestQueue`]. When it is dropped, the queue is closed.
#[derive(Debug)]
pub struct Requests(RequestQueue);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    news: Condvar,
}

#[derive(Default)]
struct State {
    is_closed: bool,
    waiting: VecDeque<(Asked, Box<dyn Asker>)>,
    /// Carried out, in the order of their events, which are on their way to the store.
    emitted: VecDeque<(Asked, Box<dyn Asker>)>,
}

/// What a client's name follows in [`Asked::by`]. No plugin's id has a colon.
const CLIENT: &str = "client";

impl RequestQueue {
    /// How many requests wait at most.
    pub const CAPACITY: usize = 64;

    /// A queue, and the end of it that the loop takes from.
    pub fn new() -> (Self, Requests) {
        let queue = Self::default();
        (queue.clone(), Requests(queue))
    }

    /// Who asks, as it is recorded, for a client of this name.
    pub fn client(name: &str) -> String {
        match name {
            "" => CLIENT.to_owned(),
            name => format!("{CLIENT}:{name}"),
        }
    }

    /// Puts a request behind the others. `false` if there are too many.
    ///
    /// # Errors
    /// One that cannot be carried out, or the training has ended.
    pub fn ask(&self, by: String, ask: Ask, asker: Box<dyn Asker>) -> Result<bool> {
        let Ask { request, reason } = ask;
        request.check()?;
        let mut state = self.state();
        if state.is_closed {
            return Err(Error::new(ErrorKind::System, "the training has ended"));
        }
        // Those who went away leave their places.
        state.waiting.retain(|(_, asker)| asker.waits());
        if state.waiting.len() >= Self::CAPACITY {
            return Ok(false);
        }
        let asked = Asked {
            by,
            request,
            reason,
        };
        state.waiting.push_back((asked, asker));
        self.0.news.notify_all();
        Ok(true)
    }

    /// Answers whoever waits for this event, which was committed. Events come in their order.
    pub fn committed(&self, event: &Event) {
        let EventBody::Request {
            by,
            request,
            reason,
        } = &event.body
        else {
            return;
        };
        let mut state = self.state();
        let is_next = state.emitted.front().is_some_and(|(asked, _)| {
            (&asked.by, &asked.request, &asked.reason) == (by, request, reason)
        });
        let next = is_next.then(|| state.emitted.pop_front()).flatten();
        drop(state);
        if let Some((_, asker)) = next {
            asker.answer(CarriedOut {
                seq: event.seq,
                step: event.step,
            });
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What it holds is whole at every moment, whoever panicked.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Requests {
    /// The next request that somebody waits for. The caller emits its event before the one of any
    /// other that it takes.
    pub fn take(&mut self) -> Option<Asked> {
        let mut state = self.0.state();
        while let Some((asked, asker)) = state.waiting.pop_front() {
            if asker.waits() {
                state.emitted.push_back((asked.clone(), asker));
                return Some(asked);
            }
        }
        None
    }

    /// Puts one first that was carried out before and whose effect was lost. Nobody waits for it.
    pub fn again(&mut self, asked: Asked) {
        struct Nobody;
        impl Asker for Nobody {
            fn waits(&self) -> bool {
                true
            }

            fn answer(self: Box<Self>, _: CarriedOut) {}
        }
        self.0.state().waiting.push_front((asked, Box::new(Nobody)));
    }

    /// Waits until there is a request, but no longer than this.
    pub fn wait(&self, at_most: Duration) {
        let state = self.0.state();
        let is_empty = |state: &mut State| state.waiting.is_empty();
        // Whether it was the request or the time, the caller looks.
        drop(self.0.0.news.wait_timeout_while(state, at_most, is_empty));
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.is_closed = true;
        let unanswered = std::mem::take(&mut state.waiting);
        drop(state);
        drop(unanswered);
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("is_closed", &self.is_closed)
            .field("waiting", &self.waiting.len())
            .field("emitted", &self.emitted.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{SyncSender, sync_channel};

    use super::*;

    struct Waiting(SyncSender<CarriedOut>, bool);

    impl Asker for Waiting {
        fn waits(&self) -> bool {
            self.1
        }

        fn answer(self: Box<Self>, at: CarriedOut) {
            self.0.send(at).expect("it waits");
        }
    }

    fn ask(request: Request) -> Ask {
        let reason = "r".to_owned();
        Ask { request, reason }
    }

    fn event(seq: u64, by: &str, request: Request) -> Event {
        let (by, reason) = (by.to_owned(), "r".to_owned());
        Event {
            seq,
            time_us: 0,
            step: Step(7),
            body: EventBody::Request {
                by,
                request,
                reason,
            },
        }
    }

    #[test]
    fn a_request_is_answered_when_its_own_event_is_on_record() {
        let (queue, mut requests) = RequestQueue::new();
        let (sender, answers) = sync_channel(4);
        let by = RequestQueue::client("ann");
        for request in [Request::Pause, Request::Continue] {
            let asker = Box::new(Waiting(sender.clone(), true));
            assert!(
                queue
                    .ask(by.clone(), ask(request), asker)
                    .expect("it trains")
            );
        }
        let taken: Vec<Request> = std::iter::from_fn(|| requests.take())
            .map(|asked| asked.request)
            .collect();
        assert_eq!(taken, [Request::Pause, Request::Continue]);
        queue.committed(&event(4, "loss-guard", Request::Pause));
        assert!(answers.try_recv().is_err(), "another's");
        queue.committed(&event(5, &by, Request::Pause));
        queue.committed(&event(6, &by, Request::Continue));
        let step = Step(7);
        let given: Vec<CarriedOut> = answers.try_iter().collect();
        assert_eq!(
            given,
            [CarriedOut { seq: 5, step }, CarriedOut { seq: 6, step }]
        );
    }

    #[test]
    fn what_nobody_waits_for_is_not_carried_out_and_takes_no_place() {
        let (queue, mut requests) = RequestQueue::new();
        let (sender, _answers) = sync_channel(4);
        let put = |waits| {
            let asker = Box::new(Waiting(sender.clone(), waits));
            queue.ask(RequestQueue::client(""), ask(Request::Stop), asker)
        };
        for _ in 0..2 * RequestQueue::CAPACITY {
            assert!(put(false).expect("it trains"));
        }
        assert_eq!(requests.take(), None);
        for _ in 0..RequestQueue::CAPACITY {
            assert!(put(true).expect("it trains"));
        }
        assert!(!put(true).expect("it trains"), "full");
        drop(requests);
        assert!(put(true).is_err(), "closed");
    }

    #[test]
    fn the_end_of_the_training_answers_nobody() {
        let (queue, requests) = RequestQueue::new();
        let (sender, answers) = sync_channel(4);
        let asker = Box::new(Waiting(sender, true));
        let asked = queue.ask(RequestQueue::client("a"), ask(Request::Evaluate), asker);
        assert!(asked.expect("it trains"));
        drop(requests);
        // The only sender was the asker's.
        assert!(answers.recv().is_err());
    }
}
