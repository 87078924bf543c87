//! What the person asks of the run, on a thread of its own: an answer may take a step, or an evaluation.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use host_core::{Ask, Request, Result};
use host_serve::Client;

use super::Message;
use super::feed::spawn;
use super::heading::request_word;
use super::screen::Answer;

/// Requests that wait for the one before.
const WAITING: usize = 4;

/// Asks the run, one request after another.
pub(super) struct Requests(SyncSender<(Arc<Client>, Request)>);

impl Requests {
    /// Asks a run as `by` on a thread of its own, which ends with this.
    ///
    /// # Errors
    /// The system refuses a thread.
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

    /// Asks for something; what there is to say until the answer comes.
    pub(super) fn ask(&self, client: Option<&Arc<Client>>, request: Request) -> Answer {
        let word = request_word(request);
        let refused = |why: &str| Answer::refusal(format!("{word}: {why}"));
        let Some(client) = client else {
            return refused("there is no connection");
        };
        match self.0.try_send((Arc::clone(client), request)) {
            Ok(()) => Answer::done(format!("{word}: asked for, at the next step")),
            Err(_) => refused("the requests before it have no answer yet"),
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
