//! Sends the user's requests to the run. This happens on a separate thread, because an answer can take as
//! long as a step or an evaluation.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use host_core::{Ask, Request, Result};
use host_serve::Client;

use super::Message;
use super::feed::spawn;
use super::heading::request_word;
use super::screen::Answer;

/// Maximum number of queued requests.
const WAITING: usize = 4;

/// Sends requests to the run, one after another.
pub(super) struct Requests(SyncSender<(Arc<Client>, Request)>);

impl Requests {
    /// Starts a thread that sends requests in the name of `by`. The thread ends when the returned value is
    /// dropped.
    ///
    /// # Errors
    /// Returns an error if the thread cannot be started.
    pub(super) fn start(run: String, by: String, messages: SyncSender<Message>) -> Result<Self> {
        let (sender, receiver): (_, Receiver<(Arc<Client>, Request)>) = sync_channel(WAITING);
        spawn("requests", move || {
            for (client, request) in receiver {
                let ask = Ask {
                    request,
                    reason: String::new(),
                };
                let answer = answer(request, client.ask(&run, &by, ask));
                if messages.send(Message::Answer(answer)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self(sender))
    }

    /// Queues a request. Returns the text to show until the answer arrives. If the request cannot be queued,
    /// returns the reason.
    pub(super) fn ask(&self, client: Option<&Arc<Client>>, request: Request) -> Answer {
        let word = request_word(request);
        let refused = |why: &str| Answer::refusal(format!("{word}: {why}"));
        let Some(client) = client else {
            return refused("not connected");
        };
        match self.0.try_send((Arc::clone(client), request)) {
            Ok(()) => Answer::done(format!("{word}: requested for the next step")),
            Err(_) => refused("earlier requests have no answer yet"),
        }
    }
}

fn answer(request: Request, outcome: Result<host_core::CarriedOut>) -> Answer {
    let word = request_word(request);
    match outcome {
        Ok(at) => Answer::done(format!("{word}: carried out at step {}", at.step)),
        Err(error) => {
            let hint = error.hint_text().map(|hint| format!(" ({hint})"));
            let hint = hint.unwrap_or_default();
            Answer::refusal(format!("{word}: {}{hint}", error.message()))
        }
    }
}
