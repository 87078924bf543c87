use std::collections::VecDeque;
use std::sync::Arc;

use host_core::{Error, ErrorKind, Result};

use super::files::SourceFile;
use super::left_out::{LeftOut, Missing, Reason};
use super::packed::PassageId;
use super::reader::Reader;
use super::workers::{Pending, Workers};
use super::{below, random};

/// Passages that are read and tokenised ahead of the one that is asked for.
const AHEAD: usize = 64;
/// Bytes of text in them: beyond that there is at most one more passage.
const BYTES_AHEAD: usize = 8 << 20;
/// Passages in a row that the tokenizer may refuse.
const PATIENCE: usize = 1000;

/// The order in which files are met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Once, as they are.
    Once,
    /// Once, shuffled by the seed as the first epoch of `Endless`.
    Shuffled(i64),
    /// Again and again, shuffled anew by the seed in each epoch.
    Endless(i64),
}

/// The tokens of files, passage by passage; the workers tokenise ahead. `[any]`, one thread at a time,
/// which reads the files.
pub(crate) struct Stream {
    number: usize,
    files: Arc<[SourceFile]>,
    workers: Arc<Workers>,
    left_out: Arc<LeftOut>,
    order: Order,
    /// The files of the epoch by their numbers.
    sequence: Vec<usize>,
    /// Where reading is, which is ahead of what was handed out.
    place: PassageId,
    reader: Option<Reader>,
    /// Whether this epoch had a passage, or was not read from its beginning.
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

/// The tokens of a passage, that of the end of the text included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tokens {
    pub(crate) tokens: Vec<u32>,
    /// Where the passage stands.
    pub(crate) place: PassageId,
    pub(crate) ends_document: bool,
}

impl Stream {
    /// The stream of some files that begins at `place`. It counts what it leaves out under its number.
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

    /// The next passage's tokens; none after the end.
    ///
    /// # Errors
    /// An epoch of which nothing counts.
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

    /// Reads a passage and has it tokenised.
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

    /// The end of an epoch.
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
        // Every source its own order: 2^32 epochs are enough for each.
        let mut random = random(seed, ((self.number as u64) << 32) + self.place.epoch);
        for last in (1..self.sequence.len()).rev() {
            self.sequence.swap(last, below(&mut random, last + 1));
        }
    }

    fn leave_out(&self, place: PassageId, missing: &Missing) {
        // A file's number in a past epoch's order is not known any more: any file of it will do.
        let file = self.sequence.get(place.file).copied().unwrap_or(0);
        self.left_out
            .note(self.number, place.epoch, missing, &self.files[file].path);
    }

    fn nothing(&self) -> Error {
        let why = self.left_out.message("data");
        let why = why.unwrap_or_else(|| "there is no document in its files".to_owned());
        Error::new(ErrorKind::Config, format!("nothing of the data can be used: {why}"))
            .hint("choose the files of a folder by --extensions, and the field of records by --text-column")
    }
}
