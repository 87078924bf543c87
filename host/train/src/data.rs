//! From source files to batches: find, split, tokenise, pack, shuffle.

mod files;
mod loader;
mod packed;
mod validation;

pub(crate) use files::{Corpus, SourceFile, hex};
pub(crate) use loader::{Cursor, Loader};
pub(crate) use packed::{Packer, Position};
pub(crate) use validation::Validation;

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
