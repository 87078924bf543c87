use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Why a document, or the rest of a file, is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Unreadable,
    Changed,
    Damaged,
    Codec,
    Utf16,
    NotUtf8,
    NotJson,
    NoText,
    Null,
    Empty,
    TooLong,
    NotTokenized,
}

impl Reason {
    const ALL: [Self; 12] = [
        Self::Unreadable,
        Self::Changed,
        Self::Damaged,
        Self::Codec,
        Self::Utf16,
        Self::NotUtf8,
        Self::NotJson,
        Self::NoText,
        Self::Null,
        Self::Empty,
        Self::TooLong,
        Self::NotTokenized,
    ];

    /// Returns the reason as part of a sentence about documents.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Unreadable => "cannot be read",
            Self::Changed => "changed since the start",
            Self::Damaged => "damaged or truncated",
            Self::Codec => "in an unsupported codec",
            Self::Utf16 => "in UTF-16, not UTF-8",
            Self::NotUtf8 => "not UTF-8",
            Self::NotJson => "not a JSON object",
            Self::NoText => "without the text column",
            Self::Null => "with null in the text column",
            Self::Empty => "empty",
            Self::TooLong => "longer than 64 MiB",
            Self::NotTokenized => "rejected by the tokenizer",
        }
    }
}

/// Documents that are left out, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Missing {
    pub(crate) reason: Reason,
    /// Number of documents; 1 if unknown.
    pub(crate) documents: u64,
    /// Line number, counted from 1, if the file is read line by line.
    pub(crate) line: Option<u64>,
    /// Details from the reader, for example the name of a codec. Empty if the reader gives no details.
    pub(crate) why: String,
}

impl From<Reason> for Missing {
    fn from(reason: Reason) -> Self {
        Self {
            reason,
            documents: 1,
            line: None,
            why: String::new(),
        }
    }
}

impl From<io::Error> for Missing {
    /// Converts the error of a failed read to a reason: an unsupported codec, a damaged file or an unreadable
    /// file.
    fn from(error: io::Error) -> Self {
        let why = error.to_string();
        match error.kind() {
            io::ErrorKind::Unsupported => Self::from(Reason::Codec).because(why),
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::InvalidData
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::Other => Self::from(Reason::Damaged).because(why),
            _ => Self::from(Reason::Unreadable).because(why),
        }
    }
}

impl Missing {
    pub(crate) fn because(self, why: impl Into<String>) -> Self {
        Self {
            why: why.into(),
            ..self
        }
    }

    pub(crate) fn in_line(self, line: u64) -> Self {
        Self {
            line: Some(line),
            ..self
        }
    }

    pub(crate) fn of_documents(self, documents: u64) -> Self {
        Self {
            documents: documents.max(1),
            ..self
        }
    }

    /// Returns the reason and its details, for an error message.
    pub(super) fn words(&self) -> String {
        let reason = self.reason.words();
        if self.why.is_empty() {
            reason.to_owned()
        } else {
            format!("{reason}: {}", self.why)
        }
    }

    /// Returns the path, with the line if there is one.
    pub(super) fn place(&self, path: &Path) -> String {
        match self.line {
            Some(line) => format!("{}:{line}", path.display()),
            None => path.display().to_string(),
        }
    }
}

/// Counts the documents that one reader of data leaves out. `[any]`: one thread counts; other threads query
/// the counts.
///
/// Each epoch has its own counts. The count of a reason is its highest count in any epoch, so a document that
/// is left out in every epoch counts once.
#[derive(Debug, Default)]
pub(crate) struct LeftOut {
    streams: Mutex<Vec<Stream>>,
}

#[derive(Clone, Debug, Default)]
struct Stream {
    epoch: u64,
    now: [u64; Reason::ALL.len()],
    most: [u64; Reason::ALL.len()],
    /// For each reason, the first place where a document was left out, with details.
    first: [Option<String>; Reason::ALL.len()],
}

impl LeftOut {
    /// Counts documents that were left out of the file `path`, in this epoch of the stream.
    pub(crate) fn note(&self, stream: usize, epoch: u64, missing: &Missing, path: &Path) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if streams.len() <= stream {
            streams.resize(stream + 1, Stream::default());
        }
        let stream = &mut streams[stream];
        if stream.epoch != epoch {
            stream.epoch = epoch;
            stream.now = [0; Reason::ALL.len()];
        }
        let index = missing.reason as usize;
        let now = stream.now[index].saturating_add(missing.documents);
        stream.now[index] = now;
        stream.most[index] = stream.most[index].max(now);
        stream.first[index].get_or_insert_with(|| {
            let place = missing.place(path);
            if missing.why.is_empty() {
                place
            } else {
                format!("{place}: {}", missing.why)
            }
        });
    }

    /// Returns the number of documents left out.
    pub(crate) fn count(&self) -> u64 {
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = streams.iter().flat_map(|stream| stream.most);
        counts.fold(0, u64::saturating_add)
    }

    /// Returns a sentence with the number of documents that were left out, and the reasons. `what` names the
    /// data. Returns `None` if no document was left out.
    pub(crate) fn message(&self, what: &str) -> Option<String> {
        let total = self.count();
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let mut reasons = Vec::new();
        for reason in Reason::ALL {
            let index = reason as usize;
            let counts = streams.iter().map(|stream| stream.most[index]);
            let count = counts.fold(0, u64::saturating_add);
            let first = streams
                .iter()
                .find_map(|stream| stream.first[index].as_ref());
            if let (1.., Some(first)) = (count, first) {
                reasons.push(format!("{count} {} (first: {first})", reason.words()));
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
    fn epochs_are_counted_separately_and_the_worst_is_reported() {
        let left_out = LeftOut::default();
        assert_eq!(left_out.message("training data"), None);
        let note = |stream, epoch, reason, path| {
            left_out.note(stream, epoch, &Missing::from(reason), Path::new(path));
        };
        note(0, 0, Reason::NotUtf8, "a");
        assert_eq!(
            left_out.message("training data").expect("a sentence"),
            "1 document of the training data was left out: 1 not UTF-8 (first: a)"
        );
        note(0, 0, Reason::NotUtf8, "b");
        let missing = Missing::from(Reason::NotJson).in_line(7).because("a tab");
        left_out.note(1, 0, &missing, Path::new("c"));
        for _ in 0..3 {
            note(0, 1, Reason::NotUtf8, "d");
        }
        note(0, 2, Reason::NotUtf8, "e");
        assert_eq!(left_out.count(), 4);
        assert_eq!(
            left_out.message("data").expect("a sentence"),
            "4 documents of the data were left out: 3 not UTF-8 (first: a), 1 not a JSON object (first: c:7: a tab)"
        );
    }

    #[test]
    fn the_remaining_rows_of_a_damaged_file_are_counted() {
        let left_out = LeftOut::default();
        let rows = |documents| Missing::from(Reason::Damaged).of_documents(documents);
        left_out.note(0, 0, &rows(1000), Path::new("a.parquet"));
        left_out.note(0, 0, &rows(u64::MAX), Path::new("b.parquet"));
        assert_eq!(left_out.count(), u64::MAX);
    }

    #[test]
    fn the_reasons_are_in_the_order_of_their_numbers() {
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
    }
}
