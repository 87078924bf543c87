//! From files to batches: find, split, read, tokenize, pack, shuffle.
//!
//! ```text
//! files -> reader -> workers (tokenize) -> stream -> packer -> loader (shuffle buffer) -> the loop
//!          '------------------ the "data" thread ----------'
//! ```
//!
//! A document is one file of text, one JSON line or one row of Parquet. A token file contains documents that
//! are already tokenized, in the order in which they are used.
//!
//! **Memory** use does not grow with the size of the files. In addition to a few passages of 256 KiB, a
//! reader uses:
//!
//! | format | at most |
//! |---|---|
//! | text, token files | 24 MiB |
//! | JSON lines | 384 MiB: a line of up to 64 MiB, and its text while it is unescaped |
//! | Parquet | one page as stored in the file, three times its uncompressed size, and one row; pages over 512 MiB and rows over 64 MiB are left out |
//! | Zstandard | in addition, the window: 8 MiB by default, at most 2 GiB |
//!
//! `memory.rs` tests these limits. A document longer than 256 KiB is tokenized in passages. Each passage has
//! its own memory, so a waiting passage does not keep its whole document in memory. The passages waiting for
//! the tokenizer use 8 MiB in total, and a thread that tokenizes a passage uses about a hundred times the
//! passage's size.
//!
//! **Faulty data** is either rejected before training begins, or left out. The documents left out are
//! counted. A run that has started ends only if an epoch has no usable document, or if the tokenizer rejects
//! 1000 passages in a row.
//!
//! The following is rejected: a path that does not exist; a folder without files; a file of records (JSON
//! lines or Parquet) in an unsupported codec; a file of records whose first ten thousand records are all
//! faulty (in this check, a null or empty text is not a fault, and files after the first one with a text are
//! not checked); a token file that is incomplete or belongs to another tokenizer; data without a usable
//! document.
//!
//! Each of the following causes a single document to be left out: a line is not a JSON object; the text
//! column of a record is missing or empty; a record is not UTF-8; a record is longer than 64 MiB. If a
//! passage of a text is not UTF-8, this passage and the rest of the text are left out. If a file is damaged
//! or truncated, the rest of the file is left out. A whole file is left out if it vanished, cannot be read,
//! or has a different size than at the start.
//!
//! The counts, each with the reason and the place of the first occurrence, are emitted as a `Warning` with
//! the next checkpoint and at the end. A file without a document is ignored, in any format. Unreadable
//! folders and broken links are reported by a `Warning` at the start.

mod batch;
mod corpus;
mod exclude;
mod files;
mod fingerprint;
mod format;
mod json_lines;
mod left_out;
mod loader;
#[cfg(test)]
mod memory;
mod memory_map;
mod packed;
mod parquet_pages;
mod parquet_rows;
mod passage;
mod reader;
mod stream;
mod text;
mod token_file;
mod validation;
mod walk;
mod workers;

#[cfg(test)]
mod tests;

pub(crate) use batch::Batch;
pub(crate) use corpus::{Corpus, Source};
pub(crate) use files::{Found, SourceFile, find};
pub(crate) use fingerprint::Fingerprint;
pub(crate) use format::{Compression, Format};
pub(crate) use left_out::LeftOut;
pub(crate) use loader::{Loader, LoaderCursor};
pub(crate) use packed::{Packer, PassageId, StreamCursor};
pub(crate) use passage::Content;
pub(crate) use reader::Reader;
pub(crate) use stream::{Order, Stream};
pub(crate) use token_file::{TokenHeader, TokenWriter};
pub(crate) use validation::Validation;
pub(crate) use workers::Workers;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Returns a random number generator for one purpose. Each purpose uses its own stream of the seed.
fn random(seed: i64, stream: u64) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(seed.cast_unsigned());
    random.set_stream(stream);
    random
}

/// Returns a number below `n`. The bias of the multiplication is below n / 2^64.
fn below(random: &mut ChaCha8Rng, n: usize) -> usize {
    ((u128::from(random.next_u64()) * n as u128) >> 64) as usize
}
