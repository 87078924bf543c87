use std::sync::Arc;

use host_core::{Error, ErrorKind, Result};

use super::files::SourceFile;
use super::left_out::LeftOut;
use super::packed::Packer;
use super::workers::Workers;

/// The evaluation sequences, the same in every evaluation. They are kept in memory, four bytes per token.
#[derive(Debug)]
pub(crate) struct Validation {
    pub(crate) sequences: Vec<Box<[u32]>>,
    pub(crate) left_out: Arc<LeftOut>,
}

impl Validation {
    /// Packs the files into at most `limit` sequences.
    ///
    /// # Errors
    /// Returns an error if the files have fewer tokens than one sequence.
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
                format!("the evaluation data has fewer than {seq_length} tokens, the length of one sequence"),
            )
            .hint("add more with --valid-data, hold out more with a smaller --valid-every, or use a smaller --seq-length"));
        }
        Ok(Self {
            sequences,
            left_out: packer.left_out().clone(),
        })
    }
}
