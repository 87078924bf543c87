use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use host_core::{Error, ErrorKind, Result};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::corpus::Source;
use super::left_out::LeftOut;
use super::packed::{Packed, Packer, StreamCursor};
use super::{below, random};
use crate::collective::Share;

/// Maximum number of sequences queued between the packing thread and the training loop.
const AHEAD: usize = 256;

/// The position of a loader, without the content of its buffer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LoaderCursor {
    position: StreamCursor,
    /// The position in the random numbers that the buffer uses.
    random: u64,
    pub(crate) sequences: u64,
}

impl LoaderCursor {
    /// Whether this is a valid position in these sources.
    pub(crate) fn fits(&self, sources: &[Source]) -> bool {
        self.sequences <= MOST && self.position.fits(sources)
    }
}

/// Maximum value of `LoaderCursor::sequences`. With this limit, calculations fit in 64 bits. No run needs
/// more sequences.
const MOST: u64 = 1 << 40;

/// Training batches, drawn at random from a shuffle buffer. A thread packs sequences ahead of the training
/// loop.
///
/// The training loop itself moves sequences from the queue to the buffer. The sequences in the queue are
/// therefore not part of the loader's state.
pub(crate) struct Loader {
    /// `None` when the loader is dropped, which ends the thread.
    packed: Option<Receiver<Result<Packed>>>,
    thread: Option<JoinHandle<()>>,
    left_out: Arc<LeftOut>,
    buffer: Vec<Box<[u32]>>,
    capacity: usize,
    random: ChaCha8Rng,
    cursor: LoaderCursor,
    /// How long the loop has waited for sequences.
    pub(crate) waited: Duration,
}

/// Number of the random stream that the buffer uses. It is the highest number. Lower streams shuffle the
/// files of the sources, with one stream per epoch. The first source begins at stream 0, and each other
/// source at a multiple of 2^32.
const BUFFER_STREAM: u64 = u64::MAX;

impl Loader {
    /// Creates a loader at the packer's position. For a resume, `resume` contains a cursor and the sequences
    /// of the buffer at that cursor. The packer must then be at the cursor's [`position`](Self::position).
    pub(crate) fn new(
        packer: Packer,
        capacity: usize,
        seed: i64,
        resume: Option<(LoaderCursor, Vec<Box<[u32]>>)>,
    ) -> Result<Self> {
        let mut random = random(seed, BUFFER_STREAM);
        let (cursor, buffer) = resume.unwrap_or((
            LoaderCursor {
                position: StreamCursor::default(),
                random: 0,
                sequences: 0,
            },
            Vec::new(),
        ));
        random.set_word_pos(u128::from(cursor.random));
        let left_out = packer.left_out().clone();
        let (packed, thread) = spawn(packer)?;
        Ok(Self {
            packed: Some(packed),
            thread: Some(thread),
            left_out,
            buffer,
            capacity: capacity.max(1),
            random,
            cursor,
            waited: Duration::ZERO,
        })
    }

    /// Returns the position at which the packer must begin when a loader resumes from `cursor`.
    pub(crate) fn position(cursor: &LoaderCursor) -> StreamCursor {
        cursor.position.clone()
    }

    /// Returns the next `n` sequences of this share, drawn at random from the buffer. The sequences of the
    /// other shares are drawn as well, so that one cursor describes the position of all shares. A share is a block
    /// of `n` consecutive sequences, so that it equals a batch that a single process draws.
    ///
    /// The first batch does not wait for a full buffer. The buffer grows to its capacity during training: for
    /// each sequence drawn, it receives two.
    pub(crate) fn next(&mut self, n: usize, share: Share) -> Result<Vec<Box<[u32]>>> {
        let mut batch = Vec::with_capacity(n);
        for piece in 0..n * share.of {
            let block = piece / n;
            let wanted = (self.capacity / 16)
                .max(self.buffer.len() + 2)
                .min(self.capacity);
            while self.buffer.len() < wanted {
                let packed = self.receive()?;
                self.cursor.position = packed.after;
                self.buffer.push(packed.tokens);
            }
            let drawn = below(&mut self.random, self.buffer.len());
            let sequence = self.buffer.swap_remove(drawn);
            if share.has(block) {
                batch.push(sequence);
            }
        }
        self.cursor.sequences += (n * share.of) as u64;
        self.cursor.random = self.random.get_word_pos() as u64;
        Ok(batch)
    }

    /// Returns the loader's position.
    pub(crate) fn cursor(&self) -> LoaderCursor {
        self.cursor.clone()
    }

    /// Returns the documents left out so far. They include documents that the thread found while reading
    /// ahead.
    pub(crate) fn left_out(&self) -> &Arc<LeftOut> {
        &self.left_out
    }

    /// Returns the sequences in the buffer.
    pub(crate) fn buffer(&self) -> &[Box<[u32]>] {
        &self.buffer
    }

    fn receive(&mut self) -> Result<Packed> {
        let begin = Instant::now();
        let packed = self.packed.as_ref().and_then(|packed| packed.recv().ok());
        self.waited += begin.elapsed();
        packed.unwrap_or_else(|| Err(Error::new(ErrorKind::System, "the data thread ended")))
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.packed = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Starts the packing thread. The thread ends when the loader is dropped, or after the thread has sent an
/// error.
fn spawn(mut packer: Packer) -> Result<(Receiver<Result<Packed>>, JoinHandle<()>)> {
    let (sender, receiver) = sync_channel(AHEAD);
    let thread = thread::Builder::new()
        .name("data".to_owned())
        .spawn(move || {
            while let Some(packed) = packer.next().transpose() {
                let failed = packed.is_err();
                if sender.send(packed).is_err() || failed {
                    break;
                }
            }
        })
        .map_err(|error| {
            Error::new(
                ErrorKind::System,
                format!("cannot start the data thread: {error}"),
            )
        })?;
    Ok((receiver, thread))
}
