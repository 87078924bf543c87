use std::fs::File;
use std::io::{self, Read};

use sha2::{Digest, Sha256};

use super::files::{HeldOut, Part, SourceFile, number};
use super::format::{Compression, Format};
use super::json_lines::JsonLines;
use super::left_out::{Missing, Reason};
use super::parquet_rows::ParquetRows;
use super::passage::{Passage, Rest};
use super::text::Text;
use super::token_file::TokenIds;

/// Reads the passages of a file one after the other, in memory that does not grow with the file.
pub(crate) struct Reader {
    content: FormatReader,
    part: Part,
    /// The rest of a document that is longer than a passage.
    rest: Rest,
}

enum FormatReader {
    Text(Text),
    JsonLines(JsonLines),
    Parquet(Box<ParquetRows>),
    Ids(Box<TokenIds>),
}

impl Reader {
    /// # Errors
    /// Returns an error if the file cannot be read or is faulty. Also returns an error if its size has
    /// changed since the file was found.
    pub(crate) fn open(source: &SourceFile) -> Result<Self, Missing> {
        let unreadable =
            |error: io::Error| Missing::from(Reason::Unreadable).because(words(&error));
        let file = File::open(&source.path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if metadata.len() != source.bytes {
            return Err(Reason::Changed.into());
        }
        Ok(Self {
            content: match source.format {
                Format::Text(compression) => {
                    FormatReader::Text(Text::new(text_part(source.part, compression, file)?))
                }
                Format::JsonLines(compression) => FormatReader::JsonLines(JsonLines::new(
                    compression.open(file)?,
                    source.column.clone(),
                )),
                Format::Parquet => {
                    FormatReader::Parquet(Box::new(ParquetRows::open(file, &source.column)?))
                }
                Format::Tokens => FormatReader::Ids(Box::new(TokenIds::open(&source.path, file)?)),
                Format::Unread { codec, .. } => {
                    return Err(Missing::from(Reason::Codec).because(codec));
                }
            },
            part: source.part,
            rest: Rest::default(),
        })
    }

    /// Returns the next passage of the selected part, or why a document is left out.
    pub(crate) fn next(&mut self) -> Option<Result<Passage, Missing>> {
        while self.rest.is_empty() {
            let document = match &mut self.content {
                FormatReader::Text(text) => return text.next(),
                FormatReader::Ids(ids) => return ids.next(),
                FormatReader::JsonLines(lines) => lines.next()?,
                FormatReader::Parquet(rows) => rows.next()?,
            };
            match document {
                Err(missing) => return Some(Err(missing)),
                Ok(text) if text.is_empty() => return Some(Err(Reason::Empty.into())),
                Ok(text) if self.part.has(&text) => self.rest = Rest::new(text),
                Ok(_) => {}
            }
        }
        Some(Ok(self.rest.take()))
    }

    /// Whether this is a Parquet file without rows.
    pub(crate) fn has_no_row(&self) -> bool {
        matches!(&self.content, FormatReader::Parquet(rows) if rows.is_empty())
    }

    /// Skips `n` results of [`next`](Self::next).
    pub(crate) fn skip(&mut self, n: u64) {
        for _ in 0..n {
            if self.next().is_none() {
                break;
            }
        }
    }
}

/// Returns the system's message without the error number.
fn words(error: &io::Error) -> String {
    let words = error.to_string();
    match words.split_once(" (os error") {
        Some((words, _)) => words.to_owned(),
        None => words,
    }
}

/// Returns the selected part of a file that is one text.
fn text_part(part: Part, compression: Compression, file: File) -> io::Result<Box<dyn Read + Send>> {
    let mut input = text_content(compression, file)?;
    Ok(match part {
        Part::Train(HeldOut::From(at)) => Box::new(input.take(at)),
        Part::Valid(HeldOut::From(at)) => {
            io::copy(&mut (&mut input).take(at), &mut io::sink())?;
            input
        }
        _ => input,
    })
}

/// Returns the content of a text file. If its name shows no compression, the file is not decompressed. A file
/// that begins like gzip is then treated like any other binary file.
pub(super) fn text_content(
    compression: Compression,
    file: File,
) -> io::Result<Box<dyn Read + Send>> {
    match compression {
        Compression::None => Ok(Box::new(file)),
        compression => compression.open(file),
    }
}

impl Part {
    fn has(self, text: &str) -> bool {
        match self {
            Self::All => true,
            Self::Train(held_out) => !held_out.has(text),
            Self::Valid(held_out) => held_out.has(text),
        }
    }
}

impl HeldOut {
    fn has(self, text: &str) -> bool {
        match self {
            Self::OneIn(valid_every) => hash(text).is_multiple_of(valid_every),
            Self::Hash(held_out) => hash(text) == held_out,
            Self::From(_) => false,
        }
    }
}

/// Returns the hash that decides whether a record is held out.
pub(super) fn hash(text: &str) -> u64 {
    number(&Sha256::digest(text))
}
