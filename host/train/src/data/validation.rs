use std::sync::Arc;

use host_core::{Error, ErrorKind, Result};

use super::files::SourceFile;
use super::left_out::LeftOut;
use super::packed::Packer;
use super::workers::Workers;

/// The evaluation's sequences, the same in every evaluation. They stay in memory, four bytes a token.
#[derive(Debug)]
pub(crate) struct Validation {
    pub(crate) sequences: Vec<Box<[u32]>>,
    pub(crate) left_out: Arc<LeftOut>,
}

impl Validation {
    /// Packs the files, as many sequences as `limit` says.
    ///
    /// # Errors
    /// Fewer tokens than one sequence has.
    pub(crate) fn read(
        files: Arc<[SourceFile]>,
        workers: &Arc<Workers>,
        seq_length: usize,
        limit: Option<usize>,
    ) -> Result<Self> {
        let mut packer = Packer::once(files, workers, seq_length);
        let mut sequences = Vec::new();
        while limit.is_none_or(|limit| sequences.len() < limit) {
            match packer.next()? {
                Some(packed) => sequences.push(packed.tokens),
                None => break,
            }
        }
        if sequences.is_empty() {
            return Err(Error::new(
                ErrorKind::Config,
                format!("the evaluation data has fewer tokens than one sequence of {seq_length}"),
            )
            .hint("give more of it by --valid-data, hold out more by a smaller --valid-every, or use a smaller --seq-length"));
        }
        Ok(Self {
            sequences,
            left_out: packer.left_out().clone(),
        })
    }
}
