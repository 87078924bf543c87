//! From files to batches: find, split, read, tokenise, pack, shuffle.
//!
//! ```text
//! files -> reader -> workers (tokenise) -> stream -> packer -> loader (shuffle buffer) -> the loop
//!          '------------------ the "data" thread ----------'
//! ```
//!
//! A document is one file of text, one JSON line or one row of Parquet; a token file has documents that are
//! tokenised already, in its own order. Files are streamed: memory does not grow with
//! them, and a document that is longer than 256 KiB is tokenised in passages.
//!
//! **What is wrong with the data** either refuses the training before it begins or is left out and
//! counted; it never ends a training. Refused is what is wrong from the start: a path that is not
//! there, a folder without files, a first file of records in whose first hundred there is no text,
//! a
//! token file that is not whole or of another tokenizer, data of which nothing counts. Left out, while the rest of the file counts, are a line that is not
//! a JSON object, a record without the text column or with an empty one, a record that is not UTF-8
//! or longer than 64 MiB. Left out with the rest of its file is a text from the passage on that is
//! not UTF-8, and what comes after the place at which a compressed file is damaged or cut short: the
//! documents before it count. Left out as a whole is a file that vanished, cannot be read, is empty or
//! has another size than at the start. The count, with a reason and the first file for each, becomes a
//! `Warning` with the next checkpoint and at the end.

mod corpus;
mod files;
mod format;
mod json_lines;
mod left_out;
mod loader;
mod memory_map;
mod packed;
mod parquet_rows;
mod passage;
mod reader;
mod stream;
mod text;
mod token_file;
mod validation;
mod workers;

#[cfg(test)]
mod tests;

pub(crate) use corpus::{Corpus, Source};
pub(crate) use files::{SourceFile, find, hex};
pub(crate) use format::{Compression, Format};
pub(crate) use left_out::LeftOut;
pub(crate) use loader::{Cursor, Loader};
pub(crate) use packed::{Packer, Place, Position};
pub(crate) use reader::sample_records;
pub(crate) use stream::{Order, Stream};
pub(crate) use token_file::{TokenHeader, TokenWriter};
pub(crate) use validation::Validation;
pub(crate) use workers::Workers;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Random numbers for one purpose: another stream of the seed for each.
fn random(seed: i64, stream: u64) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(seed.cast_unsigned());
    random.set_stream(stream);
    random
}

/// A number below `n`. The bias of the multiplication is below n / 2^64.
fn below(random: &mut ChaCha8Rng, n: usize) -> usize {
    ((u128::from(random.next_u64()) * n as u128) >> 64) as usize
}
