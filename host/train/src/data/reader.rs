use std::fs::File;

use sha2::{Digest, Sha256};

use super::files::{Part, SourceFile, number};
use super::format::Format;
use super::json_lines::JsonLines;
use super::left_out::Reason;
use super::parquet_rows::ParquetRows;
use super::passage::{self, Passage};
use super::text::Text;
use super::token_file::TokenIds;

/// The passages of a file, one after the other, in memory that does not grow with the file.
pub(crate) struct Reader {
    content: Content,
    part: Part,
    /// What is left of a document that is longer than a passage.
    rest: String,
}

enum Content {
    Text(Text),
    JsonLines(JsonLines),
    Parquet(Box<ParquetRows>),
    Ids(Box<TokenIds>),
}

impl Reader {
    /// # Errors
    /// The file is not what it was when it was found, or cannot be read.
    pub(crate) fn open(source: &SourceFile) -> Result<Self, Reason> {
        let file = File::open(&source.path).map_err(|_| Reason::Unreadable)?;
        let metadata = file.metadata().map_err(|_| Reason::Unreadable)?;
        if metadata.len() != source.bytes {
            return Err(Reason::Changed);
        }
        let failed = |error: std::io::Error| Reason::of(&error);
        Ok(Self {
            content: match source.format {
                Format::Text(compression) => {
                    Content::Text(Text::new(compression.open(file).map_err(failed)?))
                }
                Format::JsonLines(compression) => Content::JsonLines(JsonLines::new(
                    compression.open(file).map_err(failed)?,
                    source.column.clone(),
                )),
                Format::Parquet => {
                    Content::Parquet(Box::new(ParquetRows::open(file, &source.column)?))
                }
                Format::Tokens => Content::Ids(Box::new(TokenIds::open(&source.path, file)?)),
            },
            part: source.part,
            rest: String::new(),
        })
    }

    /// The next passage of the part that counts, or why something that should be one does not.
    pub(crate) fn next(&mut self) -> Option<Result<Passage, Reason>> {
        while self.rest.is_empty() {
            let document = match &mut self.content {
                Content::Text(text) => return text.next(),
                Content::Ids(ids) => return ids.next(),
                Content::JsonLines(lines) => lines.next()?,
                Content::Parquet(rows) => rows.next()?,
            };
            match document {
                Err(reason) => return Some(Err(reason)),
                Ok(text) if text.is_empty() => return Some(Err(Reason::Empty)),
                Ok(text) if self.part.has(&text) => self.rest = text,
                Ok(_) => {}
            }
        }
        Some(Ok(passage::take(&mut self.rest)))
    }

    /// Passes over so many passages and reasons.
    pub(crate) fn skip(&mut self, n: u64) {
        for _ in 0..n {
            if self.next().is_none() {
                break;
            }
        }
    }
}

/// Adds texts of the file up to so many bytes, but one at least.
pub(crate) fn sample_records(file: &SourceFile, bytes: u64, texts: &mut Vec<String>) {
    let Ok(mut reader) = Reader::open(file) else {
        return;
    };
    let mut taken = 0;
    while taken <= bytes
        && let Some(next) = reader.next()
    {
        if let Ok(Passage {
            content: passage::Content::Text(text),
            ..
        }) = next
        {
            taken += text.len() as u64;
            texts.push(text);
        }
    }
}

impl Part {
    fn has(self, text: &str) -> bool {
        match self {
            Self::All => true,
            Self::Train { valid_every } => !is_held_out(text, valid_every),
            Self::Valid { valid_every } => is_held_out(text, valid_every),
        }
    }
}

fn is_held_out(text: &str, valid_every: u64) -> bool {
    number(&Sha256::digest(text)).is_multiple_of(valid_every)
}
