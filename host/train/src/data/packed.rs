use std::sync::Arc;

use host_core::Result;
use serde::{Deserialize, Serialize};

use super::corpus::Source;
use super::files::SourceFile;
use super::left_out::LeftOut;
use super::stream::{Order, Stream, Tokens};
use super::workers::Workers;

/// A place in the endless stream of tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StreamCursor {
    /// Of each source.
    sources: Vec<SourceCursor>,
    /// The source that has begun a document and goes on until its end.
    current: Option<usize>,
}

impl StreamCursor {
    /// Whether it is a place in these sources, with numbers that can be counted on.
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
        // A position before the first token has no sources yet.
        (self.sources.is_empty() || self.sources.len() == sources.len())
            && self.sources.iter().zip(sources).all(fits)
            && self.current.is_none_or(|current| current < sources.len())
    }
}

/// How far a source was used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct SourceCursor {
    place: PassageId,
    /// How many tokens of the passage at the place were taken.
    token: usize,
    /// Tokens taken in all, by which the weights are kept.
    tokens: u64,
}

/// The place of a passage in a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PassageId {
    /// How often all files were read.
    pub(crate) epoch: u64,
    /// How many files of this epoch were read.
    pub(crate) file: usize,
    /// How many passages of this file were read, those that do not count included.
    pub(crate) passage: u64,
}

/// Some tokens of constant length, and the place after them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packed {
    pub(crate) tokens: Box<[u32]>,
    pub(crate) after: StreamCursor,
}

/// Turns documents into sequences of constant length: the documents' tokens one after the other, each
/// document followed by the end-of-text token, cut without regard to documents, as CodeParrot's
/// `ConstantLengthDataset`.
///
/// Of several sources the next document comes from the one that is furthest behind its share of the
/// tokens, the first of equals. No chance is involved, so that the shares hold at any time to within a
/// document.
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
    /// The passage at the place; read when first needed.
    passage: Option<Tokens>,
}

impl Packer {
    /// An endless stream that begins at `position` and meets the files in another order each epoch.
    pub(crate) fn endless(
        sources: &[Source],
        workers: &Arc<Workers>,
        seq_length: usize,
        seed: i64,
        position: StreamCursor,
    ) -> Self {
        Self::new(sources, workers, seq_length, Order::Endless(seed), position)
    }

    /// One pass in the files' own order; what is left at the end is too short and dropped.
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

    /// What was left out so far, reading ahead included.
    pub(crate) fn left_out(&self) -> &Arc<LeftOut> {
        &self.left_out
    }

    /// The next sequence; none at the end of a single pass.
    ///
    /// # Errors
    /// An epoch in which no document had a token.
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
