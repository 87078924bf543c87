use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Ask, Error, ErrorKind, Event, EventBody, Request, Result, Step};

/// A request with its source and its reason.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    /// The source of the request: a plugin's id, or `client:NAME`.
    pub by: String,
    /// What is requested.
    pub request: Request,
    /// Why, for people.
    pub reason: String,
}

/// When a request was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CarriedOut {
    /// The sequence number of the request's event.
    pub seq: u64,
    /// The number of optimizer steps finished by then.
    pub step: Step,
}

/// A client that waits for its request to be carried out. If training ends first, the `Asker` is dropped
/// without an answer.
pub trait Asker: Send {
    /// Returns whether the client still waits. If not, its request is not carried out.
    fn waits(&self) -> bool;

    /// Reports that the request was carried out and its event is committed. Must not block. `[any]`
    fn answer(self: Box<Self>, at: CarriedOut);
}

/// A bounded queue of clients' requests to the loop, in the order of their arrival. `[any]`
///
/// A request is answered after its event is committed, so that the client can then read the event.
#[derive(Clone, Debug, Default)]
pub struct RequestQueue(Arc<Shared>);

/// The training loop's side of a [`RequestQueue`]. Dropping it closes the queue.
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
    /// Requests whose events have been emitted but not yet committed, in the order of the events.
    emitted: VecDeque<(Asked, Box<dyn Asker>)>,
}

/// The prefix of a client's name in [`Asked::by`]. Plugin ids do not contain a colon.
const CLIENT: &str = "client";

impl RequestQueue {
    /// The maximum number of waiting requests.
    pub const CAPACITY: usize = 64;

    /// Creates a queue and the training loop's side of it.
    pub fn new() -> (Self, Requests) {
        let queue = Self::default();
        (queue.clone(), Requests(queue))
    }

    /// Returns the recorded source ([`Asked::by`]) for a client with this name.
    pub fn client(name: &str) -> String {
        match name {
            "" => CLIENT.to_owned(),
            name => format!("{CLIENT}:{name}"),
        }
    }

    /// Appends a request to the queue. Returns `false` if the queue is full.
    ///
    /// # Errors
    /// Returns an error if the request is invalid or training has ended.
    pub fn ask(&self, by: String, ask: Ask, asker: Box<dyn Asker>) -> Result<bool> {
        let Ask { request, reason } = ask;
        request.check()?;
        let mut state = self.state();
        if state.is_closed {
            return Err(Error::new(ErrorKind::System, "the training has ended"));
        }
        // Drops the requests whose clients no longer wait, to make space.
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

    /// If a client's request caused this committed event, answers the client. Must be called for all events
    /// in their order.
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
        // Ignores poisoning, because a panic cannot leave the state inconsistent.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Requests {
    /// Removes and returns the next request whose client still waits. The caller must emit the request's
    /// event before it takes the next request.
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

    /// Puts a request back at the front of the queue. The request was carried out, but its effect was lost.
    /// No client waits for it.
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

    /// Waits until there is a request, but not longer than `at_most`.
    pub fn wait(&self, at_most: Duration) {
        let state = self.0.state();
        let is_empty = |state: &mut State| state.waiting.is_empty();
        // The result is ignored, because the caller checks whether there is a request.
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
    fn a_request_is_answered_when_its_own_event_is_committed() {
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
        assert!(answers.try_recv().is_err(), "another source's event");
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
    fn a_request_whose_client_left_is_dropped_and_frees_its_place() {
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
    fn requests_are_not_answered_when_training_ends() {
        let (queue, requests) = RequestQueue::new();
        let (sender, answers) = sync_channel(4);
        let asker = Box::new(Waiting(sender, true));
        let asked = queue.ask(RequestQueue::client("a"), ask(Request::Evaluate), asker);
        assert!(asked.expect("it trains"));
        drop(requests);
        // The request was dropped, together with the only sender.
        assert!(answers.recv().is_err());
    }
}
