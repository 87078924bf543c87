use std::collections::VecDeque;
use std::sync::Arc;

use host_core::{Error, ErrorKind, Result};

use super::files::SourceFile;
use super::left_out::{LeftOut, Missing, Reason};
use super::packed::PassageId;
use super::reader::Reader;
use super::workers::{Pending, Workers};
use super::{below, random};

/// Maximum number of passages that are read and tokenized before they are requested.
const AHEAD: usize = 64;
/// Maximum number of bytes of text that are read ahead. The last passage that is read can exceed this limit.
const BYTES_AHEAD: usize = 8 << 20;
/// If the tokenizer rejects this number of passages in a row, an error is returned.
const PATIENCE: usize = 1000;

/// The order in which files are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Once, in the given order.
    Once,
    /// Once, in the order of the first epoch of `Endless` with the same seed.
    Shuffled(i64),
    /// Again and again, reshuffled by the seed in each epoch.
    Endless(i64),
}

/// Reads files and returns their tokens passage by passage. Workers tokenize passages before they are
/// requested. `[any]`, but only one thread at a time can use a stream. That thread reads the files.
pub(crate) struct Stream {
    number: usize,
    files: Arc<[SourceFile]>,
    workers: Arc<Workers>,
    left_out: Arc<LeftOut>,
    order: Order,
    /// The indices of the files, in the order of this epoch.
    sequence: Vec<usize>,
    /// The position up to which the files were read. It is ahead of the passages that were returned.
    place: PassageId,
    reader: Option<Reader>,
    /// Set if this epoch had a passage. Also set if the stream began in the middle of this epoch, because the
    /// passages before that place are not read.
    fruitful: bool,
    ended: bool,
    barren: bool,
    ahead: VecDeque<Ahead>,
    bytes_ahead: usize,
}

struct Ahead {
    place: PassageId,
    ends_document: bool,
    bytes: usize,
    tokens: Pending,
}

/// The tokens of a passage, including the end-of-text token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tokens {
    pub(crate) tokens: Vec<u32>,
    /// The passage's position.
    pub(crate) place: PassageId,
    pub(crate) ends_document: bool,
}

impl Stream {
    /// Creates a stream that begins at `place`. The documents that it leaves out are counted for the source
    /// with this `number`.
    pub(crate) fn new(
        number: usize,
        files: Arc<[SourceFile]>,
        workers: Arc<Workers>,
        left_out: Arc<LeftOut>,
        order: Order,
        place: PassageId,
    ) -> Self {
        let mut stream = Self {
            number,
            files,
            workers,
            left_out,
            order,
            sequence: Vec::new(),
            place,
            reader: None,
            fruitful: place != PassageId::default(),
            ended: false,
            barren: false,
            ahead: VecDeque::new(),
            bytes_ahead: 0,
        };
        stream.shuffle();
        stream
    }

    /// Returns the next passage's tokens; `None` after the end.
    ///
    /// # Errors
    /// Returns an error if an epoch has no usable document, or the tokenizer rejects too many passages in a
    /// row.
    pub(crate) fn next(&mut self) -> Result<Option<Tokens>> {
        for _ in 0..PATIENCE {
            while self.ahead.len() < AHEAD
                && self.bytes_ahead < BYTES_AHEAD
                && let Some(next) = self.read()
            {
                self.bytes_ahead += next.bytes;
                self.ahead.push_back(next);
            }
            let Some(next) = self.ahead.pop_front() else {
                return if self.barren {
                    Err(self.nothing())
                } else {
                    Ok(None)
                };
            };
            self.bytes_ahead -= next.bytes;
            match next.tokens.wait() {
                Some(tokens) => {
                    return Ok(Some(Tokens {
                        tokens,
                        place: next.place,
                        ends_document: next.ends_document,
                    }));
                }
                None => self.leave_out(next.place, &Reason::NotTokenized.into()),
            }
        }
        Err(self.nothing())
    }

    /// Reads a passage and submits it for tokenization. `None` at the end.
    fn read(&mut self) -> Option<Ahead> {
        while !self.ended {
            if self.place.file == self.sequence.len() {
                self.turn();
                continue;
            }
            let reader = match &mut self.reader {
                Some(reader) => reader,
                None => match Reader::open(&self.files[self.sequence[self.place.file]]) {
                    Ok(mut reader) => {
                        reader.skip(self.place.passage);
                        self.reader.insert(reader)
                    }
                    Err(missing) => {
                        self.leave_out(self.place, &missing);
                        self.end_file();
                        continue;
                    }
                },
            };
            let place = self.place;
            match reader.next() {
                None => self.end_file(),
                Some(Err(missing)) => {
                    self.place.passage += 1;
                    self.leave_out(place, &missing);
                }
                Some(Ok(passage)) => {
                    self.place.passage += 1;
                    self.fruitful = true;
                    return Some(Ahead {
                        place,
                        ends_document: passage.ends_document,
                        bytes: passage.bytes(),
                        tokens: self.workers.submit(passage),
                    });
                }
            }
        }
        None
    }

    fn end_file(&mut self) {
        self.reader = None;
        self.place.file += 1;
        self.place.passage = 0;
    }

    /// Ends an epoch, and begins the next if the stream is endless.
    fn turn(&mut self) {
        self.barren = !self.fruitful;
        self.ended = self.barren || !matches!(self.order, Order::Endless(_));
        self.fruitful = false;
        if !self.ended {
            self.place = PassageId {
                epoch: self.place.epoch + 1,
                ..PassageId::default()
            };
            self.shuffle();
        }
    }

    fn shuffle(&mut self) {
        self.sequence = (0..self.files.len()).collect();
        let (Order::Shuffled(seed) | Order::Endless(seed)) = self.order else {
            return;
        };
        // Each epoch of each source has its own stream of random numbers. A source can have up to 2^32
        // epochs.
        let mut random = random(seed, ((self.number as u64) << 32) + self.place.epoch);
        for last in (1..self.sequence.len()).rev() {
            self.sequence.swap(last, below(&mut random, last + 1));
        }
    }

    fn leave_out(&self, place: PassageId, missing: &Missing) {
        // If the place is in a past epoch, the reported path can be wrong, because the order of that epoch is
        // no longer known.
        let file = self.sequence.get(place.file).copied().unwrap_or(0);
        self.left_out
            .note(self.number, place.epoch, missing, &self.files[file].path);
    }

    fn nothing(&self) -> Error {
        let why = self.left_out.message("data");
        let why = why.unwrap_or_else(|| "the files contain no documents".to_owned());
        Error::new(ErrorKind::Config, format!("no usable data: {why}"))
            .hint("select the files of a folder with --extensions, and the field of records with --text-column")
    }
}
