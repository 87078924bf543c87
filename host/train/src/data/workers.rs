use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use host_core::{Error, ErrorKind, Result};

use super::passage::{Content, Passage};
use crate::tokenizer::Tokenizer;

/// Threads that tokenise. Whoever submits passages gets each one's tokens by itself, so the order of
/// results does not depend on how many threads there are or how they are scheduled.
#[derive(Debug)]
pub(crate) struct Workers {
    jobs: Option<SyncSender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Job {
    text: String,
    ends_document: bool,
    reply: SyncSender<Option<Vec<u32>>>,
}

/// The tokens of a passage, at hand or to come.
#[derive(Debug)]
pub(crate) enum Pending {
    Ready(Vec<u32>),
    Coming(Receiver<Option<Vec<u32>>>),
}

impl Pending {
    /// Waits for them. None: the tokenizer could not take the text.
    pub(crate) fn wait(self) -> Option<Vec<u32>> {
        match self {
            Self::Ready(tokens) => Some(tokens),
            Self::Coming(reply) => reply.recv().ok().flatten(),
        }
    }
}

impl Workers {
    /// Starts so many threads, but at least one.
    ///
    /// # Errors
    /// A thread that the system does not give.
    pub(crate) fn start(tokenizer: &Arc<Tokenizer>, count: usize) -> Result<Self> {
        let count = count.max(1);
        let (jobs, incoming) = sync_channel::<Job>(2 * count);
        let incoming = Arc::new(Mutex::new(incoming));
        let mut workers = Self {
            jobs: Some(jobs),
            threads: Vec::with_capacity(count),
        };
        for number in 0..count {
            let (incoming, tokenizer) = (incoming.clone(), tokenizer.clone());
            let thread = thread::Builder::new()
                .name(format!("tokenize-{number}"))
                .spawn(move || work(&incoming, &tokenizer))
                .map_err(|error| {
                    let message = format!("cannot start a tokenizing thread: {error}");
                    Error::new(ErrorKind::System, message)
                })?;
            workers.threads.push(thread);
        }
        Ok(workers)
    }

    /// As many threads as serve a training that uses all cores itself: tokenizing keeps one core busy
    /// for every million tokens a second or so.
    pub(crate) fn default_count() -> usize {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        (cores / 2).clamp(1, 8)
    }

    /// Hands over a passage. Waits while the threads have enough to do.
    pub(crate) fn submit(&self, passage: Passage) -> Pending {
        let ends_document = passage.ends_document;
        let text = match passage.content {
            Content::Ids(ids) => return Pending::Ready(ids),
            Content::Text(text) => text,
        };
        let (reply, pending) = sync_channel(1);
        if let Some(jobs) = &self.jobs {
            // If no thread takes it, nobody replies, and whoever waits learns that.
            let _ = jobs.send(Job {
                text,
                ends_document,
                reply,
            });
        }
        Pending::Coming(pending)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Until there is nobody to submit any more.
fn work(incoming: &Mutex<Receiver<Job>>, tokenizer: &Tokenizer) {
    loop {
        let job = incoming
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recv();
        let Ok(job) = job else {
            return;
        };
        let encode = AssertUnwindSafe(|| tokens_of(&job, tokenizer));
        let _ = job.reply.send(catch_unwind(encode).unwrap_or_default());
    }
}

fn tokens_of(job: &Job, tokenizer: &Tokenizer) -> Option<Vec<u32>> {
    let mut tokens = tokenizer.encode(&job.text)?;
    if job.ends_document {
        tokens.push(tokenizer.end_of_text());
    }
    Some(tokens)
}
