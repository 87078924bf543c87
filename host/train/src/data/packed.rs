use std::sync::Arc;

use host_core::Result;
use serde::{Deserialize, Serialize};

use super::corpus::Source;
use super::files::SourceFile;
use super::left_out::LeftOut;
use super::stream::{Order, Stream, Tokens};
use super::workers::Workers;

/// A position in the endless stream of tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StreamCursor {
    /// The position in each source.
    sources: Vec<SourceCursor>,
    /// If only part of a document has been taken so far, the source of this document.
    current: Option<usize>,
}

impl StreamCursor {
    /// Whether this is a valid position in these sources. The numbers of a valid position are too small to
    /// cause an overflow.
    pub(crate) fn fits(&self, sources: &[Source]) -> bool {
        let fits = |(progress, source): (&SourceCursor, &Source)| {
            let PassageId {
                epoch,
                file,
                passage,
            } = progress.place;
            epoch < 1 << 31
                && file <= source.files.len()
                && passage < 1 << 48
                && progress.token < 1 << 48
                && progress.tokens < 1 << 56
        };
        // The position before the first token does not list the sources yet.
        (self.sources.is_empty() || self.sources.len() == sources.len())
            && self.sources.iter().zip(sources).all(fits)
            && self.current.is_none_or(|current| current < sources.len())
    }
}

/// The position in a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct SourceCursor {
    place: PassageId,
    /// Number of tokens taken from the passage at `place`.
    token: usize,
    /// Total number of tokens taken from the source. Divided by the source's weight, it determines which
    /// source is next.
    tokens: u64,
}

/// The position of a passage in a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PassageId {
    /// Number of times all files were read.
    pub(crate) epoch: u64,
    /// Number of files that are finished in this epoch.
    pub(crate) file: usize,
    /// Number of passages that were read from the current file, including those left out.
    pub(crate) passage: u64,
}

/// A sequence of constant length, and the position after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packed {
    pub(crate) tokens: Box<[u32]>,
    pub(crate) after: StreamCursor,
}

/// Packs documents into sequences of constant length, like CodeParrot's `ConstantLengthDataset`. The tokens
/// of all documents are joined, with the end-of-text token after each document. The result is cut without
/// regard to document boundaries.
///
/// With several sources, the next document is taken from the source that is furthest behind its share of the
/// tokens. If there is a tie, the first of these sources is used. This choice is deterministic, so the shares
/// are always exact to within a document.
pub(crate) struct Packer {
    sources: Vec<Feed>,
    current: Option<usize>,
    seq_length: usize,
    left_out: Arc<LeftOut>,
}

struct Feed {
    stream: Stream,
    weight: f64,
    progress: SourceCursor,
    /// The passage at `progress.place`; read when first needed.
    passage: Option<Tokens>,
}

impl Packer {
    /// Packs an endless stream. The stream begins at `position`, and reads the files in a new order in each
    /// epoch.
    pub(crate) fn endless(
        sources: &[Source],
        workers: &Arc<Workers>,
        seq_length: usize,
        seed: i64,
        position: StreamCursor,
    ) -> Self {
        Self::new(sources, workers, seq_length, Order::Endless(seed), position)
    }

    /// Packs one pass over the files in their order. An incomplete last sequence is dropped.
    pub(crate) fn once(
        files: Arc<[SourceFile]>,
        workers: &Arc<Workers>,
        seq_length: usize,
    ) -> Self {
        let source = Source { files, weight: 1.0 };
        Self::new(
            &[source],
            workers,
            seq_length,
            Order::Once,
            StreamCursor::default(),
        )
    }

    fn new(
        sources: &[Source],
        workers: &Arc<Workers>,
        seq_length: usize,
        order: Order,
        position: StreamCursor,
    ) -> Self {
        let left_out = Arc::new(LeftOut::default());
        let feed = |(number, source): (usize, &Source)| {
            let progress = position.sources.get(number).copied().unwrap_or_default();
            Feed {
                stream: Stream::new(
                    number,
                    source.files.clone(),
                    workers.clone(),
                    left_out.clone(),
                    order,
                    progress.place,
                ),
                weight: source.weight,
                progress,
                passage: None,
            }
        };
        Self {
            sources: sources.iter().enumerate().map(feed).collect(),
            current: position.current.filter(|&current| current < sources.len()),
            seq_length,
            left_out,
        }
    }

    /// Returns the documents that were left out so far. They include documents that were read ahead.
    pub(crate) fn left_out(&self) -> &Arc<LeftOut> {
        &self.left_out
    }

    /// Returns the next sequence; `None` at the end of a single pass.
    ///
    /// # Errors
    /// Returns an error if an epoch has no usable document, or the tokenizer rejects too many passages in a
    /// row.
    pub(crate) fn next(&mut self) -> Result<Option<Packed>> {
        let mut tokens = Vec::with_capacity(self.seq_length);
        while tokens.len() < self.seq_length {
            let current = self.current.unwrap_or_else(|| self.furthest_behind());
            let feed = &mut self.sources[current];
            let passage = match &mut feed.passage {
                Some(passage) => passage,
                None => {
                    let Some(next) = feed.stream.next()? else {
                        return Ok(None);
                    };
                    if next.place != feed.progress.place {
                        feed.progress.place = next.place;
                        feed.progress.token = 0;
                    }
                    feed.passage.insert(next)
                }
            };
            let progress = &mut feed.progress;
            let rest = &passage.tokens[progress.token.min(passage.tokens.len())..];
            let taken = rest.len().min(self.seq_length - tokens.len());
            tokens.extend_from_slice(&rest[..taken]);
            progress.tokens += taken as u64;
            if taken < rest.len() {
                progress.token += taken;
                self.current = Some(current);
            } else {
                progress.place.passage += 1;
                progress.token = 0;
                self.current = Some(current).filter(|_| !passage.ends_document);
                feed.passage = None;
            }
        }
        Ok(Some(Packed {
            tokens: tokens.into_boxed_slice(),
            after: StreamCursor {
                sources: self.sources.iter().map(|feed| feed.progress).collect(),
                current: self.current,
            },
        }))
    }

    fn furthest_behind(&self) -> usize {
        let share = |feed: &Feed| feed.progress.tokens as f64 / feed.weight;
        let shares = self.sources.iter().map(share).enumerate();
        shares
            .min_by(|(_, a), (_, b)| a.total_cmp(b))
            .map_or(0, |(number, _)| number)
    }
}
