use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use bytes::Bytes;
use parquet::basic::{Compression, Type};
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::{ChunkReader, FileReader, Length, SerializedFileReader};

use super::json_lines::LONGEST;
use super::left_out::{Missing, Reason};
use super::parquet_pages::CheckedPages;

/// Maximum bytes of a page, compressed or not. A page must fit in memory as a whole.
const LARGEST_PAGE: u64 = 512 << 20;

/// Reads the texts of one column of a Parquet file, with one page in memory at a time.
pub(crate) struct ParquetRows {
    file: SerializedFileReader<Pages>,
    /// The column's index.
    column: usize,
    /// The definition level of a row that has a value.
    defined: i16,
    group: usize,
    values: Option<ColumnReaderImpl<ByteArrayType>>,
    /// Number of unread rows, according to the file.
    left: u64,
    ended: bool,
}

impl ParquetRows {
    /// # Errors
    /// Returns an error if the file is not Parquet, has no such text column, or uses an unsupported codec.
    pub(crate) fn open(file: File, column: &str) -> Result<Self, Missing> {
        let file = open(file)?;
        let groups = file.metadata().row_groups();
        let counts = groups.iter().map(RowGroupMetaData::num_rows);
        let left = counts.fold(0, |left: u64, rows| left.saturating_add(rows.max(0) as u64));
        let missing = |reason: Reason| Missing::from(reason).of_documents(left);
        let schema = file.metadata().file_metadata().schema_descr_ptr();
        let found = schema.columns().iter().position(|known| {
            known.path().string() == column
                && known.physical_type() == Type::BYTE_ARRAY
                && known.max_rep_level() == 0
        });
        let column = found.ok_or_else(|| missing(Reason::NoText))?;
        for group in groups {
            if group.num_columns() <= column {
                return Err(missing(Reason::Damaged));
            }
            if let Compression::LZO = group.column(column).compression() {
                return Err(missing(Reason::Codec).because("LZO"));
            }
        }
        Ok(Self {
            defined: schema.column(column).max_def_level(),
            column,
            file,
            group: 0,
            values: None,
            left,
            ended: false,
        })
    }

    /// Whether the file contains no rows, according to its metadata.
    pub(crate) fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// Returns the next text, or why a row has none. If the file is damaged, reading ends at the damaged
    /// part, and the remaining rows are counted as left out.
    pub(crate) fn next(&mut self) -> Option<Result<String, Missing>> {
        if self.ended {
            return None;
        }
        let decode = AssertUnwindSafe(|| self.decode());
        let row = match sound(catch_unwind(decode)) {
            Err(missing) => {
                self.ended = true;
                return Some(Err(missing.of_documents(self.left)));
            }
            Ok(None) => {
                self.ended = true;
                return None;
            }
            Ok(Some(row)) => row,
        };
        self.left = self.left.saturating_sub(1);
        Some(match row {
            None => Err(Reason::Null.into()),
            Some(text) if text.len() > LONGEST => Err(Reason::TooLong.into()),
            Some(text) => match std::str::from_utf8(text.data()) {
                Ok(text) => Ok(text.to_owned()),
                Err(_) => Err(Reason::NotUtf8.into()),
            },
        })
    }

    /// Decodes the next row. Only one row is decoded at a time, because some encodings allocate memory for
    /// each row.
    fn decode(&mut self) -> ParquetResult<Option<Option<ByteArray>>> {
        loop {
            let Some(values) = &mut self.values else {
                if self.group == self.file.num_row_groups() {
                    return Ok(None);
                }
                let group = self.file.get_row_group(self.group)?;
                self.group += 1;
                let pages = group.get_column_page_reader(self.column)?;
                let schema = self.file.metadata().file_metadata().schema_descr();
                self.values = Some(ColumnReaderImpl::new(
                    schema.column(self.column),
                    Box::new(CheckedPages::new(pages, self.defined)),
                ));
                continue;
            };
            let (mut levels, mut texts) = (Vec::with_capacity(1), Vec::with_capacity(1));
            let (rows, ..) = values.read_records(1, Some(&mut levels), None, &mut texts)?;
            if rows == 0 {
                self.values = None;
                continue;
            }
            let is_null = self.defined > 0 && levels.first() != Some(&self.defined);
            return Ok(Some(texts.pop().filter(|_| !is_null)));
        }
    }
}

/// Returns the names of the text columns, for an error message.
pub(crate) fn text_columns(path: &Path) -> Vec<String> {
    let Some(file) = File::open(path).ok().and_then(|file| open(file).ok()) else {
        return Vec::new();
    };
    let schema = file.metadata().file_metadata().schema_descr();
    let texts = schema
        .columns()
        .iter()
        .filter(|column| column.physical_type() == Type::BYTE_ARRAY && column.max_rep_level() == 0);
    texts.map(|column| column.path().string()).collect()
}

fn open(file: File) -> Result<SerializedFileReader<Pages>, Missing> {
    let encrypted = is_encrypted(&file).unwrap_or(false);
    if encrypted {
        return Err(Missing::from(Reason::Codec).because("encrypted Parquet"));
    }
    let open = AssertUnwindSafe(|| SerializedFileReader::new(Pages(file)));
    sound(catch_unwind(open))
}

/// Whether the footer is encrypted. An encrypted footer has its own magic number.
fn is_encrypted(file: &File) -> ParquetResult<bool> {
    let end = file.get_bytes(Length::len(file).saturating_sub(4), 4)?;
    Ok(&end[..] == b"PARE")
}

/// Converts the decoder's result. The decoder reports damage as an error, but can also panic.
fn sound<T>(outcome: std::thread::Result<ParquetResult<T>>) -> Result<T, Missing> {
    let error = match outcome {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error,
        Err(_) => return Err(Reason::Damaged.into()),
    };
    if let ParquetError::External(error) = &error
        && let Some(error) = error.downcast_ref::<io::Error>()
        && error.kind() == io::ErrorKind::FileTooLarge
    {
        return Err(Missing::from(Reason::TooLong).because(error.to_string()));
    }
    let reason = match &error {
        ParquetError::NYI(_) => Reason::Codec,
        _ => Reason::Damaged,
    };
    let words = error.to_string();
    let words = words.strip_prefix("Parquet error: ").unwrap_or(&words);
    Err(Missing::from(reason).because(words.replace('\n', " ")))
}

/// A file whose page sizes are checked before memory is allocated.
struct Pages(File);

impl Length for Pages {
    fn len(&self) -> u64 {
        Length::len(&self.0)
    }
}

impl ChunkReader for Pages {
    type T = BufReader<File>;

    /// The decoder calls this with the start of a page header.
    fn get_read(&self, start: u64) -> ParquetResult<BufReader<File>> {
        let mut reader = self.0.get_read(start)?;
        let begin = reader.fill_buf()?;
        match page_sizes(begin).map(|sizes| sizes.into_iter().max()) {
            Some(Some(largest)) if largest > LARGEST_PAGE => {
                let message = format!(
                    "a page of {} MiB exceeds the limit of {} MiB",
                    largest >> 20,
                    LARGEST_PAGE >> 20
                );
                let error = io::Error::new(io::ErrorKind::FileTooLarge, message);
                Err(ParquetError::External(error.into()))
            }
            _ => Ok(reader),
        }
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        self.0.get_bytes(start, length)
    }
}

/// Returns a page's uncompressed and compressed size from its header. A header is a struct of Thrift's
/// compact protocol and begins with three numbers: the page's type and these sizes.
fn page_sizes(header: &[u8]) -> Option<[u64; 2]> {
    /// Marks the next field as an i32.
    const NEXT_NUMBER: u8 = 0x15;
    let mut rest = header.iter();
    let mut number = || {
        if *rest.next()? != NEXT_NUMBER {
            return None;
        }
        let mut value = 0;
        for shift in (0..35).step_by(7) {
            let byte = *rest.next()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                // The number is zigzag-encoded, and a size is never negative.
                return (value & 1 == 0).then_some(value >> 1);
            }
        }
        None
    };
    let _type = number()?;
    Some([number()?, number()?])
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use parquet::basic::Encoding;
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use std::sync::Arc;

    /// Returns a file with a number column and an optional text column, in row groups of seven rows.
    pub(in crate::data) fn parquet(texts: &[Option<&[u8]>], compression: Compression) -> Vec<u8> {
        encoded(texts, compression, None)
    }

    /// Like [`parquet`]; if an encoding is given, the file uses that encoding and no dictionary.
    pub(in crate::data) fn encoded(
        texts: &[Option<&[u8]>],
        compression: Compression,
        encoding: Option<Encoding>,
    ) -> Vec<u8> {
        let schema = "message m { REQUIRED INT64 id; OPTIONAL BYTE_ARRAY content (UTF8); }";
        let schema = Arc::new(parse_message_type(schema).expect("a schema"));
        let mut properties = WriterProperties::builder().set_compression(compression);
        if let Some(encoding) = encoding {
            properties = properties
                .set_dictionary_enabled(false)
                .set_encoding(encoding);
            properties = properties.set_column_encoding("id".into(), Encoding::PLAIN);
        }
        let properties = Arc::new(properties.build());
        let mut bytes = Vec::new();
        let mut file = SerializedFileWriter::new(&mut bytes, schema, properties).expect("a writer");
        for rows in texts.chunks(7) {
            let mut group = file.next_row_group().expect("a group");
            let mut ids = group.next_column().expect("a column").expect("ids");
            let numbers: Vec<i64> = (0..rows.len() as i64).collect();
            ids.typed::<parquet::data_type::Int64Type>()
                .write_batch(&numbers, None, None)
                .expect("written");
            ids.close().expect("closed");
            let mut column = group.next_column().expect("a column").expect("texts");
            let levels: Vec<i16> = rows.iter().map(|row| i16::from(row.is_some())).collect();
            let values: Vec<ByteArray> = rows
                .iter()
                .flatten()
                .map(|text| ByteArray::from(text.to_vec()))
                .collect();
            column
                .typed::<ByteArrayType>()
                .write_batch(&values, Some(&levels), None)
                .expect("written");
            column.close().expect("closed");
            group.close().expect("closed");
        }
        file.close().expect("closed");
        bytes
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().expect("a file");
        std::io::Write::write_all(&mut file, bytes).expect("written");
        file
    }

    fn rows(bytes: &[u8]) -> Vec<Result<String, Missing>> {
        let mut rows = ParquetRows::open(file(bytes), "content").expect("opened");
        std::iter::from_fn(|| rows.next()).collect()
    }

    fn refused(bytes: &[u8], column: &str) -> Missing {
        let rows = ParquetRows::open(file(bytes), column);
        rows.err().expect("refused")
    }

    #[test]
    fn each_row_yields_a_text_or_a_reason_in_every_compression_and_encoding() {
        let mut texts: Vec<Option<&[u8]>> = vec![Some(b"the same"); 20];
        texts[3] = None;
        texts[8] = Some(b"\xff");
        texts[19] = Some("fn é".as_bytes());
        for compression in [
            Compression::UNCOMPRESSED,
            Compression::SNAPPY,
            Compression::GZIP(Default::default()),
            Compression::ZSTD(Default::default()),
            Compression::BROTLI(Default::default()),
            Compression::LZ4,
            Compression::LZ4_RAW,
        ] {
            for encoding in [
                None,
                Some(Encoding::PLAIN),
                Some(Encoding::DELTA_LENGTH_BYTE_ARRAY),
                Some(Encoding::DELTA_BYTE_ARRAY),
            ] {
                let rows = rows(&encoded(&texts, compression, encoding));
                assert_eq!(rows.len(), 20);
                assert_eq!(rows[3], Err(Reason::Null.into()));
                assert_eq!(rows[8], Err(Reason::NotUtf8.into()));
                assert_eq!(rows[19], Ok("fn é".to_owned()));
                let same = rows.iter().filter(|row| **row == Ok("the same".to_owned()));
                assert_eq!(same.count(), 17, "{compression} {encoding:?}");
            }
        }
    }

    #[test]
    fn damage_is_reported_and_ends_the_file() {
        let texts: Vec<Option<&[u8]>> = vec![Some(b"some text"); 20];
        let whole = parquet(&texts, Compression::SNAPPY);
        let reason = |bytes: &[u8], column| {
            let missing = refused(bytes, column);
            (missing.reason, missing.documents)
        };
        assert_eq!(reason(b"no parquet", "content"), (Reason::Damaged, 1));
        assert_eq!(
            reason(&whole[..whole.len() - 20], "content"),
            (Reason::Damaged, 1)
        );
        assert_eq!(reason(&whole, "id"), (Reason::NoText, 20));
        assert_eq!(reason(&whole, "text"), (Reason::NoText, 20));
        // Reading comes to an end, regardless of which byte is corrupted.
        for place in 4..whole.len() {
            let mut bytes = whole.clone();
            bytes[place] ^= 0x55;
            if let Ok(mut rows) = ParquetRows::open(file(&bytes), "content") {
                assert!(std::iter::from_fn(|| rows.next()).take(1000).count() < 1000);
            }
        }
    }

    #[test]
    fn the_rows_after_a_damaged_page_are_counted() {
        let texts: Vec<Vec<u8>> = (0..20).map(|n| format!("text {n}").into_bytes()).collect();
        let texts: Vec<Option<&[u8]>> = texts.iter().map(|text| Some(&text[..])).collect();
        let mut bytes = encoded(&texts, Compression::UNCOMPRESSED, Some(Encoding::PLAIN));
        // "text 7" is the first text of the second row group. The length of "text 8" follows it.
        let at = bytes
            .windows(6)
            .position(|window| window == b"text 7")
            .expect("a text");
        bytes[at + 6 + 3] = 0x7f;
        let rows = rows(&bytes);
        assert_eq!(rows.len(), 9);
        let missing = rows[8].as_ref().expect_err("damaged");
        assert_eq!((missing.reason, missing.documents), (Reason::Damaged, 12));
    }

    #[test]
    fn an_unsupported_codec_is_reported() {
        let texts: [Option<&[u8]>; 9] = [Some(b"some text"); 9];
        let whole = parquet(&texts, Compression::UNCOMPRESSED);
        let mut encrypted = whole.clone();
        encrypted.truncate(whole.len() - 4);
        encrypted.extend(b"PARE");
        let missing = refused(&encrypted, "content");
        assert_eq!(
            missing.words(),
            "in an unsupported codec: encrypted Parquet"
        );
        // In the footer, the codec of a column comes after the column's path. It is a zigzag number.
        let mut lzo = whole;
        let paths: Vec<usize> = (0..lzo.len() - 10)
            .filter(|&at| lzo[at..].starts_with(b"content\x15\0"))
            .collect();
        assert_eq!(paths.len(), 2, "one for each row group");
        for at in paths {
            lzo[at + 8] = 2 * 3;
        }
        let missing = refused(&lzo, "content");
        assert_eq!(missing.documents, 9);
        assert_eq!(missing.words(), "in an unsupported codec: LZO");
    }

    #[test]
    fn no_memory_is_allocated_for_a_page_that_is_too_large() {
        let sizes = |header: &[u8]| page_sizes(header);
        assert_eq!(
            sizes(&[0x15, 0, 0x15, 0x04, 0x15, 0x82, 0x01]),
            Some([2, 65])
        );
        assert_eq!(sizes(&[0x15, 0, 0x15, 0x03, 0x15, 0x02]), None);
        assert_eq!(sizes(b"PAR1"), None);
        let header = [0x15, 0, 0x15, 0x80, 0x80, 0x80, 0x80, 0x08, 0x15, 2];
        let error = Pages(file(&header)).get_read(0).expect_err("refused");
        let missing = sound::<()>(Ok(Err(error))).expect_err("refused");
        assert_eq!(missing.reason, Reason::TooLong);
        assert_eq!(
            missing.why,
            "a page of 1024 MiB exceeds the limit of 512 MiB"
        );
    }

    #[test]
    fn the_text_columns_are_listed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.parquet");
        std::fs::write(&path, parquet(&[Some(b"a")], Compression::SNAPPY)).expect("written");
        assert_eq!(text_columns(&path), ["content"]);
    }
}
