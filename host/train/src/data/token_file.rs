//! Files of token ids, as `host data tokenize` writes them. A header of 64 bytes is followed by the ids of
//! all documents, with the end-of-text token after each document. All numbers are little-endian.
//!
//! | bytes | content |
//! |---|---|
//! | 0..8 | `hosttok` and a zero byte |
//! | 8..12 | the format's version, 1 |
//! | 12..16 | bytes per id: 2, or 4 if the vocabulary has more than 65536 tokens |
//! | 16..24 | number of ids |
//! | 24..28 | tokens in the vocabulary |
//! | 28..32 | id of the end-of-text token |
//! | 32..64 | SHA-256 of the tokenizer |

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use host_core::{Error, ErrorKind, Result};

use super::left_out::{Missing, Reason};
use super::memory_map::MemoryMap;
use super::passage::{Content, Passage};

const MAGIC: [u8; 8] = *b"hosttok\0";
const VERSION: u32 = 1;
const HEADER: usize = 64;
/// Maximum ids in a passage.
const PASSAGE: usize = 1 << 14;

/// Whether the file begins like a token file.
pub(crate) fn is_one(path: &Path) -> bool {
    let mut magic = [0; MAGIC.len()];
    File::open(path).is_ok_and(|mut file| file.read_exact(&mut magic).is_ok()) && magic == MAGIC
}

/// The header of a token file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TokenHeader {
    width: usize,
    pub(crate) count: u64,
    pub(crate) vocab_size: u32,
    pub(crate) end_of_text: u32,
    pub(crate) tokenizer: [u8; 32],
}

impl TokenHeader {
    /// Creates the header of a file without ids.
    pub(crate) fn new(vocab_size: u32, end_of_text: u32, tokenizer: [u8; 32]) -> Self {
        Self {
            width: if vocab_size > 1 << 16 { 4 } else { 2 },
            count: 0,
            vocab_size,
            end_of_text,
            tokenizer,
        }
    }

    /// Reads the header and compares it with the file's length.
    ///
    /// # Errors
    /// Returns an error if the file is not a token file, has another version, or is incomplete.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let refused = |why: &str| {
            Error::new(
                ErrorKind::Config,
                format!("the token file cannot be used: {why}: {}", path.display()),
            )
            .hint("rewrite it with `host data tokenize`")
        };
        let mut file =
            File::open(path).map_err(|error| Error::io("open the token file", path, &error))?;
        let mut bytes = [0; HEADER];
        file.read_exact(&mut bytes)
            .map_err(|_| refused("it is too short"))?;
        let header = Self::decode(&bytes).map_err(|why| refused(&why))?;
        let length = file
            .metadata()
            .map_err(|error| Error::io("read the token file", path, &error))?
            .len();
        if header.count.checked_mul(header.width as u64) != length.checked_sub(HEADER as u64) {
            return Err(refused("it is truncated"));
        }
        Ok(header)
    }

    fn decode(bytes: &[u8; HEADER]) -> Result<Self, String> {
        let number = |at: usize| bytes[at..at + 4].try_into().map_or(0, u32::from_le_bytes);
        if bytes[..8] != MAGIC {
            return Err("it has no token file header".to_owned());
        }
        if number(8) != VERSION {
            return Err(format!(
                "it has version {}, this host reads version {VERSION}",
                number(8)
            ));
        }
        let width = number(12);
        if width != 2 && width != 4 {
            return Err(format!(
                "its ids are {width} bytes wide, but must be 2 or 4"
            ));
        }
        let mut tokenizer = [0; 32];
        tokenizer.copy_from_slice(&bytes[32..]);
        Ok(Self {
            width: width as usize,
            count: u64::from(number(16)) | u64::from(number(20)) << 32,
            vocab_size: number(24),
            end_of_text: number(28),
            tokenizer,
        })
    }

    fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&(self.width as u32).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.count.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.vocab_size.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.end_of_text.to_le_bytes());
        bytes[32..].copy_from_slice(&self.tokenizer);
        bytes
    }
}

/// Reads the ids of a memory-mapped token file.
pub(crate) struct TokenIds {
    map: MemoryMap,
    header: TokenHeader,
    /// Number of ids already returned.
    next: usize,
}

impl TokenIds {
    /// # Errors
    /// Returns an error if the file is not a complete token file.
    pub(crate) fn open(path: &Path, file: File) -> Result<Self, Missing> {
        let header = TokenHeader::read(path).map_err(|_| Reason::Damaged)?;
        let map = MemoryMap::open(file)?;
        let whole = map.len() == HEADER + header.count as usize * header.width;
        whole
            .then_some(Self {
                map,
                header,
                next: 0,
            })
            .ok_or(Reason::Changed.into())
    }

    /// Returns the next passage. If the passage contains end-of-text tokens, it ends at the last of them.
    /// Returns an error if an id is outside the vocabulary. After an error, returns `None`.
    pub(crate) fn next(&mut self) -> Option<Result<Passage, Missing>> {
        let count = self.header.count as usize;
        if self.next == count {
            return None;
        }
        let width = self.header.width;
        let at = HEADER + self.next * width;
        let length = PASSAGE.min(count - self.next);
        let Some(bytes) = self.map.get(at..at + length * width) else {
            self.next = count;
            return Some(Err(Reason::Changed.into()));
        };
        let id = |bytes: &[u8]| match *bytes {
            [a, b] => u32::from(u16::from_le_bytes([a, b])),
            [a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
            _ => u32::MAX,
        };
        let mut ids: Vec<u32> = bytes.chunks_exact(width).map(id).collect();
        if ids.iter().any(|&id| id >= self.header.vocab_size) {
            self.next = count;
            return Some(Err(Reason::Damaged.into()));
        }
        let end = ids.iter().rposition(|&id| id == self.header.end_of_text);
        ids.truncate(end.map_or(length, |end| end + 1));
        self.next += ids.len();
        Some(Ok(Passage {
            ends_document: end.is_some() || self.next == count,
            content: Content::Ids(ids),
        }))
    }
}

/// Writes a token file.
pub(crate) struct TokenWriter<W: Write + Seek> {
    out: BufWriter<W>,
    header: TokenHeader,
}

impl<W: Write + Seek> TokenWriter<W> {
    pub(crate) fn new(out: W, header: TokenHeader) -> io::Result<Self> {
        let mut out = BufWriter::with_capacity(1 << 18, out);
        // The header stays zero until the count is known. An unfinished file therefore has no valid header,
        // and is not read as complete.
        out.write_all(&[0; HEADER])?;
        Ok(Self { out, header })
    }

    pub(crate) fn write(&mut self, ids: &[u32]) -> io::Result<()> {
        for id in ids {
            self.out.write_all(&id.to_le_bytes()[..self.header.width])?;
        }
        self.header.count += ids.len() as u64;
        Ok(())
    }

    /// Writes the header. The file is then complete, but not yet synced.
    pub(crate) fn finish(mut self) -> io::Result<(W, TokenHeader)> {
        self.out.seek(SeekFrom::Start(0))?;
        self.out.write_all(&self.header.encode())?;
        let out = self
            .out
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        Ok((out, self.header))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, header: TokenHeader, ids: &[u32]) -> TokenHeader {
        let file = File::create(path).expect("made");
        let mut writer = TokenWriter::new(file, header).expect("begun");
        for part in ids.chunks(1000) {
            writer.write(part).expect("written");
        }
        writer.finish().expect("finished").1
    }

    fn read(path: &Path) -> Vec<Result<(Vec<u32>, bool), Missing>> {
        let mut ids = TokenIds::open(path, File::open(path).expect("there")).expect("opened");
        std::iter::from_fn(|| ids.next())
            .map(|passage| {
                passage.map(|passage| match passage.content {
                    Content::Ids(ids) => (ids, passage.ends_document),
                    Content::Text(text) => unreachable!("{text}"),
                })
            })
            .collect()
    }

    #[test]
    fn ids_round_trip_in_both_widths() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.tokens");
        for (vocab_size, width) in [(65_536, 2), (65_537, 4)] {
            let ids: Vec<u32> = (0..40_000).map(|n| (n * 7919) % vocab_size).collect();
            let header = write(&path, TokenHeader::new(vocab_size, 3, [7; 32]), &ids);
            assert_eq!(header.width, width);
            assert_eq!(TokenHeader::read(&path).expect("read"), header);
            let passages = read(&path);
            let all = passages.iter().flatten().flat_map(|(ids, _)| ids.clone());
            assert_eq!(all.collect::<Vec<_>>(), ids);
        }
    }

    #[test]
    fn a_passage_ends_with_a_document_if_it_can() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.tokens");
        let mut ids = vec![1; 2 * PASSAGE];
        ids[PASSAGE + 5] = 0;
        write(&path, TokenHeader::new(300, 0, [7; 32]), &ids);
        let lengths: Vec<_> = read(&path)
            .into_iter()
            .map(|passage| passage.map(|(ids, ends)| (ids.len(), ends)))
            .collect();
        assert_eq!(
            lengths,
            [Ok((PASSAGE, false)), Ok((6, true)), Ok((PASSAGE - 6, true))]
        );
    }

    #[test]
    fn incomplete_files_are_rejected() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.tokens");
        write(&path, TokenHeader::new(300, 0, [7; 32]), &[1, 2, 0]);
        let whole = std::fs::read(&path).expect("read");
        let refused = |bytes: &[u8]| {
            std::fs::write(&path, bytes).expect("written");
            let error = TokenHeader::read(&path).expect_err("refused");
            let message = error.message().to_owned();
            message.split(": ").nth(1).expect("a reason").to_owned()
        };
        assert_eq!(refused(&whole[..whole.len() - 1]), "it is truncated");
        assert_eq!(refused(&whole[..63]), "it is too short");
        assert_eq!(refused(&[0; 99]), "it has no token file header");
        let with = |at: usize, byte: u8| {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            bytes
        };
        assert_eq!(
            refused(&with(8, 2)),
            "it has version 2, this host reads version 1"
        );
        assert_eq!(
            refused(&with(12, 3)),
            "its ids are 3 bytes wide, but must be 2 or 4"
        );
        assert_eq!(refused(&with(23, 255)), "it is truncated");
        // An id outside the vocabulary of 300.
        std::fs::write(&path, with(67, 2)).expect("written");
        assert_eq!(read(&path), [Err(Reason::Damaged.into())]);
    }
}
