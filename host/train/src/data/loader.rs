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

/// Sequences that wait between the packing thread and the loop.
const AHEAD: usize = 256;

/// Where the loader is, apart from the buffer's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LoaderCursor {
    position: StreamCursor,
    /// How far the buffer's random numbers were used.
    random: u64,
    pub(crate) sequences: u64,
}

impl LoaderCursor {
    /// Whether it is a place in these sources.
    pub(crate) fn fits(&self, sources: &[Source]) -> bool {
        self.sequences <= MOST && self.position.fits(sources)
    }
}

/// More sequences than anybody trains on: what is computed with their number fits into 64 bits.
const MOST: u64 = 1 << 40;

/// Training batches: sequences that a thread packs ahead of the loop, through a shuffle buffer.
///
/// The buffer belongs to the loop's side of the queue, so what the thread did ahead of the loop is
/// no part of the loader's state.
pub(crate) struct Loader {
    /// None when the loader ends, which ends the thread.
    packed: Option<Receiver<Result<Packed>>>,
    thread: Option<JoinHandle<()>>,
    left_out: Arc<LeftOut>,
    buffer: Vec<Box<[u32]>>,
    capacity: usize,
    random: ChaCha8Rng,
    cursor: LoaderCursor,
    /// How long the loop waited for sequences.
    pub(crate) waited: Duration,
}

/// The first source's files are shuffled by streams 0, 1, …: one an epoch; another's begin at a
/// multiple of 2^32. The buffer has the last.
const BUFFER_STREAM: u64 = u64::MAX;

impl Loader {
    /// A loader that begins at the packer's place, or that goes on with a cursor and a buffer, to
    /// whose place the packer was set.
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

    /// The place that a packer must be set to so that a loader can go on from `cursor`.
    pub(crate) fn position(cursor: &LoaderCursor) -> StreamCursor {
        cursor.position.clone()
    }

    /// The next `n` sequences of this share, each drawn at random from the buffer. The others' are drawn as
    /// well, so that one cursor describes the place of all.
    ///
    /// The buffer grows to its capacity while training runs, by two sequences for each that is
    /// drawn, so that the first batch need not wait for all of it.
    pub(crate) fn next(&mut self, n: usize, share: Share) -> Result<Vec<Box<[u32]>>> {
        let mut batch = Vec::with_capacity(n);
        for piece in 0..n * share.of {
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
            if share.has(piece) {
                batch.push(sequence);
            }
        }
        self.cursor.sequences += (n * share.of) as u64;
        self.cursor.random = self.random.get_word_pos() as u64;
        Ok(batch)
    }

    /// Where the loader is.
    pub(crate) fn cursor(&self) -> LoaderCursor {
        self.cursor.clone()
    }

    /// What was left out of the data so far, what the thread read ahead included.
    pub(crate) fn left_out(&self) -> &Arc<LeftOut> {
        &self.left_out
    }

    /// The sequences that wait to be drawn.
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

/// The thread ends when the loader is dropped, or after an error, which it hands on.
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
