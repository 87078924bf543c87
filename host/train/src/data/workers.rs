use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use host_core::{Error, ErrorKind, Result};

use super::passage::{Content, Passage};
use crate::tokenizer::Tokenizer;

/// Threads that tokenize. Each submitted passage has its own reply, so the order of results does not
/// depend on the number of threads or their scheduling.
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

/// The tokens of a passage, ready or still being computed.
#[derive(Debug)]
pub(crate) enum Pending {
    Ready(Vec<u32>),
    Coming(Receiver<Option<Vec<u32>>>),
}

impl Pending {
    /// Waits for the tokens. `None` if the tokenizer failed on the text.
    pub(crate) fn wait(self) -> Option<Vec<u32>> {
        match self {
            Self::Ready(tokens) => Some(tokens),
            Self::Coming(reply) => reply.recv().ok().flatten(),
        }
    }
}

impl Workers {
    /// Starts `count` threads, at least one.
    ///
    /// # Errors
    /// Returns an error if the system cannot start a thread.
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

    /// Returns the default number of threads. It is low, because the run itself uses all cores, and one core
    /// tokenizes about a million tokens per second.
    pub(crate) fn default_count() -> usize {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        (cores / 2).clamp(1, 8)
    }

    /// Submits a passage. Blocks while the queue is full.
    pub(crate) fn submit(&self, passage: Passage) -> Pending {
        let ends_document = passage.ends_document;
        let text = match passage.content {
            Content::Ids(ids) => return Pending::Ready(ids),
            Content::Text(text) => text,
        };
        let (reply, pending) = sync_channel(1);
        if let Some(jobs) = &self.jobs {
            // If no thread is left, the reply channel is closed, and `wait` returns `None`.
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

/// Tokenizes passages until the workers are dropped.
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
