//! From files to batches: find, split, read, tokenise, pack, shuffle.
//!
//! ```text
//! files -> reader -> workers (tokenise) -> stream -> packer -> loader (shuffle buffer) -> the loop
//!          '------------------ the "data" thread ----------'
//! ```
//!
//! A document is one file of text, one JSON line or one row of Parquet; a token file has documents that are
//! tokenised already, in its own order.
//!
//! **Memory** does not grow with the files. A reader takes, beside a few passages of 256 KiB:
//!
//! | of | at most |
//! |---|---|
//! | text, token files | 24 MiB |
//! | JSON lines | 384 MiB: a line, of 64 MiB, and its text while it is unescaped |
//! | Parquet | one page as it stands in the file, three times what it holds, and one row; pages of more than 512 MiB and rows of more than 64 MiB are left out |
//! | Zstandard | its window besides, 8 MiB where none was asked for and 2 GiB at most |
//!
//! `memory.rs` tests this. A document that is longer than 256 KiB is tokenised in passages, each of which
//! has memory of its own. Passages that wait for the tokenizer have 8 MiB together, and a thread that
//! tokenises one takes about a hundred times its size.
//!
//! **What is wrong with the data** either refuses the training before it begins or is left out and
//! counted, in documents; it never ends a training. Refused is what is wrong from the start: a path that
//! is not there, a folder without files, a file of records in a codec that is not read, a first file of
//! records without any text in its first ten thousand (records whose text is null or empty are no reason:
//! then the next file is looked at), a token file that is not whole or of another tokenizer, data of which
//! nothing counts. Left out, while the rest of the file counts, are a line that is not a JSON object, a
//! record without the text column or with an empty one, a record that is not UTF-8 or longer than 64 MiB.
//! Left out with the rest of its file is a text from the passage on that is not UTF-8, and what comes after
//! the place at which a file is damaged or cut short: the documents before it count. Left out as a whole
//! is a file that vanished, cannot be read or has another size than at the start. The count, with a reason
//! and the first place for each, becomes a `Warning` with the next checkpoint and at the end. A file
//! without a document, in whatever format, is as if it were not there. A folder that cannot be read and a
//! link that leads to no file become a `Warning` at the start.

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
