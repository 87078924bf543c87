use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Why a document, or what is left of a file, does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Unreadable,
    Changed,
    Damaged,
    NotUtf8,
    NotJson,
    NoText,
    Empty,
    TooLong,
    NotTokenized,
}

impl Reason {
    const ALL: [Self; 9] = [
        Self::Unreadable,
        Self::Changed,
        Self::Damaged,
        Self::NotUtf8,
        Self::NotJson,
        Self::NoText,
        Self::Empty,
        Self::TooLong,
        Self::NotTokenized,
    ];

    /// The reason of a read that failed: what the file says is wrong, or the file is out of reach.
    pub(crate) fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::InvalidData
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::Other => Self::Damaged,
            _ => Self::Unreadable,
        }
    }

    /// As part of a sentence about the documents.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Unreadable => "cannot be read",
            Self::Changed => "changed since the start",
            Self::Damaged => "damaged or cut short",
            Self::NotUtf8 => "not UTF-8",
            Self::NotJson => "not a JSON object",
            Self::NoText => "without the text column",
            Self::Empty => "empty",
            Self::TooLong => "longer than 64 MiB",
            Self::NotTokenized => "refused by the tokenizer",
        }
    }
}

/// Counts what is left out, for one reader of data. `[any]`: the reading thread counts, others ask.
///
/// A document that is left out in each epoch counts once: of several epochs the worst counts.
#[derive(Debug, Default)]
pub(crate) struct LeftOut {
    streams: Mutex<Vec<Stream>>,
}

#[derive(Clone, Debug, Default)]
struct Stream {
    epoch: u64,
    now: [u64; Reason::ALL.len()],
    most: [u64; Reason::ALL.len()],
    first: [Option<PathBuf>; Reason::ALL.len()],
}

impl LeftOut {
    /// Counts a document of this file in this epoch of the stream.
    pub(crate) fn note(&self, stream: usize, epoch: u64, reason: Reason, path: &Path) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if streams.len() <= stream {
            streams.resize(stream + 1, Stream::default());
        }
        let stream = &mut streams[stream];
        if stream.epoch != epoch {
            stream.epoch = epoch;
            stream.now = [0; Reason::ALL.len()];
        }
        let index = reason as usize;
        stream.now[index] += 1;
        stream.most[index] = stream.most[index].max(stream.now[index]);
        stream.first[index].get_or_insert_with(|| path.to_owned());
    }

    /// How many documents.
    pub(crate) fn count(&self) -> u64 {
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.iter().flat_map(|stream| stream.most).sum()
    }

    /// A sentence that says how many were left out of `what` and why; none if nothing was.
    pub(crate) fn message(&self, what: &str) -> Option<String> {
        let total = self.count();
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let mut reasons = Vec::new();
        for reason in Reason::ALL {
            let index = reason as usize;
            let count: u64 = streams.iter().map(|stream| stream.most[index]).sum();
            let first = streams
                .iter()
                .find_map(|stream| stream.first[index].as_ref());
            if let (1.., Some(first)) = (count, first) {
                let words = reason.words();
                reasons.push(format!("{count} {words} (first: {})", first.display()));
            }
        }
        let (documents, were) = match total {
            0 => return None,
            1 => ("document", "was"),
            _ => ("documents", "were"),
        };
        Some(format!(
            "{total} {documents} of the {what} {were} left out: {}",
            reasons.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_epoch_counts_anew_and_the_worst_is_told() {
        let left_out = LeftOut::default();
        assert_eq!(left_out.message("training data"), None);
        let note =
            |stream, epoch, reason, path| left_out.note(stream, epoch, reason, Path::new(path));
        note(0, 0, Reason::NotUtf8, "a");
        assert_eq!(
            left_out.message("training data").expect("a sentence"),
            "1 document of the training data was left out: 1 not UTF-8 (first: a)"
        );
        note(0, 0, Reason::NotUtf8, "b");
        note(1, 0, Reason::NotJson, "c");
        for _ in 0..3 {
            note(0, 1, Reason::NotUtf8, "d");
        }
        note(0, 2, Reason::NotUtf8, "e");
        assert_eq!(left_out.count(), 4);
        assert_eq!(
            left_out.message("data").expect("a sentence"),
            "4 documents of the data were left out: 3 not UTF-8 (first: a), 1 not a JSON object (first: c)"
        );
    }

    #[test]
    fn the_reasons_are_in_the_order_of_their_numbers() {
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
    }
}
