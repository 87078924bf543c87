use std::sync::Arc;

use host_core::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

use super::files::SourceFile;
use super::{below, random};
use crate::tokenizer::Tokenizer;

/// A place in the endless stream of tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    /// How often all files were read.
    pub(crate) epoch: u64,
    /// How many files of this epoch were read.
    pub(crate) document: usize,
    /// How many tokens of the next file were taken.
    pub(crate) token: usize,
}

/// Some tokens of constant length, and the place after them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Packed {
    pub(crate) tokens: Box<[u32]>,
    pub(crate) after: Position,
}

/// Turns files into sequences of constant length: the files' tokens one after the other, each file
/// followed by the end-of-text token, cut without regard to files, as CodeParrot's
/// `ConstantLengthDataset`. A file that is not UTF-8 or cannot be read is left out and counted.
#[derive(Debug)]
pub(crate) struct Packer {
    files: Arc<[SourceFile]>,
    tokenizer: Arc<Tokenizer>,
    seq_length: usize,
    /// Shuffles the files anew in each epoch; none keeps their order and ends after one.
    seed: Option<i64>,
    position: Position,
    order: Vec<usize>,
    /// Tokens of the file that `position` is in; read when first needed.
    document: Option<Vec<u32>>,
    /// Files left out so far.
    pub(crate) skipped: u64,
}

impl Packer {
    /// An endless stream that begins at `position` and meets the files in another order each epoch.
    pub(crate) fn endless(
        files: Arc<[SourceFile]>,
        tokenizer: Arc<Tokenizer>,
        seq_length: usize,
        seed: i64,
        position: Position,
    ) -> Self {
        Self::new(files, tokenizer, seq_length, Some(seed), position)
    }

    /// One pass in the files' own order; what is left at the end is too short and dropped.
    pub(crate) fn once(
        files: Arc<[SourceFile]>,
        tokenizer: Arc<Tokenizer>,
        seq_length: usize,
    ) -> Self {
        Self::new(files, tokenizer, seq_length, None, Position::default())
    }

    fn new(
        files: Arc<[SourceFile]>,
        tokenizer: Arc<Tokenizer>,
        seq_length: usize,
        seed: Option<i64>,
        position: Position,
    ) -> Self {
        let mut packer = Self {
            files,
            tokenizer,
            seq_length,
            seed,
            position,
            order: Vec::new(),
            document: None,
            skipped: 0,
        };
        packer.shuffle();
        packer
    }

    /// The next sequence, or none at the end of a single pass.
    ///
    /// # Errors
    /// An epoch in which no file had a token.
    pub(crate) fn next(&mut self) -> Result<Option<Packed>> {
        let mut tokens = Vec::with_capacity(self.seq_length);
        let mut barren = 0;
        while tokens.len() < self.seq_length {
            if self.position.document == self.order.len() {
                if self.seed.is_none() {
                    return Ok(None);
                }
                self.position = Position {
                    epoch: self.position.epoch + 1,
                    ..Position::default()
                };
                self.shuffle();
            }
            if self.document.is_none() {
                self.document = self.read();
            }
            let Some(document) = &self.document else {
                barren += 1;
                if barren > self.order.len() {
                    return Err(Error::new(
                        Kind::Config,
                        "none of the data files can be read as UTF-8 text",
                    )
                    .hint("choose the files by --extensions"));
                }
                self.position.document += 1;
                continue;
            };
            let rest = &document[self.position.token.min(document.len())..];
            let taken = rest.len().min(self.seq_length - tokens.len());
            tokens.extend_from_slice(&rest[..taken]);
            if taken == rest.len() {
                self.position.document += 1;
                self.position.token = 0;
                self.document = None;
            } else {
                self.position.token += taken;
            }
        }
        Ok(Some(Packed {
            tokens: tokens.into_boxed_slice(),
            after: self.position,
        }))
    }

    /// The tokens of the file at `position`, the end-of-text token included.
    fn read(&mut self) -> Option<Vec<u32>> {
        let file = &self.files[self.order[self.position.document]];
        let text = std::fs::read(&file.path)
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok());
        let Some(mut tokens) = text.and_then(|text| self.tokenizer.encode(&text)) else {
            self.skipped += 1;
            return None;
        };
        tokens.push(self.tokenizer.end_of_text());
        Some(tokens)
    }

    fn shuffle(&mut self) {
        self.order = (0..self.files.len()).collect();
        if let Some(seed) = self.seed {
            let mut random = random(seed, self.position.epoch);
            for last in (1..self.order.len()).rev() {
                self.order.swap(last, below(&mut random, last + 1));
            }
        }
    }
}
