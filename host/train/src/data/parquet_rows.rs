use std::collections::VecDeque;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use parquet::basic::Type;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::Result as ParquetResult;
use parquet::file::reader::{FileReader, SerializedFileReader};

use super::json_lines::LONGEST;
use super::left_out::Reason;

/// Rows that are decoded at once.
const ROWS: usize = 16;

/// The texts of one column of a Parquet file, of which a page is in memory at a time.
pub(crate) struct ParquetRows {
    file: SerializedFileReader<File>,
    /// The column's number.
    column: usize,
    /// A row's definition level if it has a value.
    defined: i16,
    group: usize,
    values: Option<ColumnReaderImpl<ByteArrayType>>,
    rows: VecDeque<Option<ByteArray>>,
    ended: bool,
}

impl ParquetRows {
    /// # Errors
    /// A file that is not Parquet, or has no such column of texts.
    pub(crate) fn open(file: File, column: &str) -> Result<Self, Reason> {
        let open = AssertUnwindSafe(|| SerializedFileReader::new(file));
        let file = sound(catch_unwind(open))?;
        let schema = file.metadata().file_metadata().schema_descr_ptr();
        let found = schema.columns().iter().position(|known| {
            known.path().string() == column
                && known.physical_type() == Type::BYTE_ARRAY
                && known.max_rep_level() == 0
        });
        let column = found.ok_or(Reason::NoText)?;
        Ok(Self {
            defined: schema.column(column).max_def_level(),
            column,
            file,
            group: 0,
            values: None,
            rows: VecDeque::new(),
            ended: false,
        })
    }

    /// The next text, or why a row has none. What is damaged ends the file.
    pub(crate) fn next(&mut self) -> Option<Result<String, Reason>> {
        while self.rows.is_empty() {
            if self.ended {
                return None;
            }
            let decode = AssertUnwindSafe(|| self.decode());
            if let Err(reason) = sound(catch_unwind(decode)) {
                self.ended = true;
                return Some(Err(reason));
            }
        }
        let row = self.rows.pop_front()?;
        Some(match row {
            None => Err(Reason::NoText),
            Some(text) if text.len() > LONGEST => Err(Reason::TooLong),
            Some(text) => String::from_utf8(text.data().to_vec()).map_err(|_| Reason::NotUtf8),
        })
    }

    /// Decodes some rows, or turns to the next row group.
    fn decode(&mut self) -> ParquetResult<()> {
        let Some(values) = &mut self.values else {
            if self.group == self.file.num_row_groups() {
                self.ended = true;
                return Ok(());
            }
            let group = self.file.get_row_group(self.group)?;
            self.group += 1;
            if let ColumnReader::ByteArrayColumnReader(values) =
                group.get_column_reader(self.column)?
            {
                self.values = Some(values);
            }
            return Ok(());
        };
        let (mut levels, mut texts) = (Vec::new(), Vec::new());
        let (rows, ..) = values.read_records(ROWS, Some(&mut levels), None, &mut texts)?;
        if rows == 0 {
            self.values = None;
            return Ok(());
        }
        let mut texts = texts.into_iter();
        if self.defined == 0 {
            self.rows.extend(texts.map(Some));
        } else {
            let value = |level| {
                if level == self.defined {
                    texts.next()
                } else {
                    None
                }
            };
            self.rows.extend(levels.into_iter().map(value));
        }
        Ok(())
    }
}

/// The names of the columns that are texts, for a message.
pub(crate) fn text_columns(path: &Path) -> Vec<String> {
    let Some(file) = File::open(path).ok().and_then(|file| {
        let open = AssertUnwindSafe(|| SerializedFileReader::new(file));
        sound(catch_unwind(open)).ok()
    }) else {
        return Vec::new();
    };
    let schema = file.metadata().file_metadata().schema_descr();
    let texts = schema
        .columns()
        .iter()
        .filter(|column| column.physical_type() == Type::BYTE_ARRAY && column.max_rep_level() == 0);
    texts.map(|column| column.path().string()).collect()
}

/// The decoder reports what it finds damaged, but may also stumble over it.
fn sound<T>(outcome: std::thread::Result<ParquetResult<T>>) -> Result<T, Reason> {
    outcome.ok().and_then(Result::ok).ok_or(Reason::Damaged)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use parquet::basic::Compression;
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use std::sync::Arc;

    /// A file with a number, and a text that may be missing, in row groups of seven.
    pub(in crate::data) fn parquet(texts: &[Option<&[u8]>], compression: Compression) -> Vec<u8> {
        let schema = "message m { REQUIRED INT64 id; OPTIONAL BYTE_ARRAY content (UTF8); }";
        let schema = Arc::new(parse_message_type(schema).expect("a schema"));
        let properties = WriterProperties::builder()
            .set_compression(compression)
            .build();
        let mut bytes = Vec::new();
        let mut file =
            SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties)).expect("a writer");
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

    fn read(bytes: &[u8]) -> Vec<Result<String, Reason>> {
        let mut rows = ParquetRows::open(file(bytes), "content").expect("opened");
        std::iter::from_fn(|| rows.next()).collect()
    }

    #[test]
    fn a_row_is_a_text_or_a_reason_whatever_the_compression() {
        let mut texts: Vec<Option<&[u8]>> = vec![Some(b"the same"); 20];
        texts[3] = None;
        texts[8] = Some(b"\xff");
        texts[19] = Some("fn é".as_bytes());
        for compression in [
            Compression::UNCOMPRESSED,
            Compression::SNAPPY,
            Compression::GZIP(Default::default()),
            Compression::ZSTD(Default::default()),
        ] {
            let rows = read(&parquet(&texts, compression));
            assert_eq!(rows.len(), 20);
            assert_eq!(rows[3], Err(Reason::NoText));
            assert_eq!(rows[8], Err(Reason::NotUtf8));
            assert_eq!(rows[19], Ok("fn é".to_owned()));
            assert_eq!(
                rows.iter()
                    .filter(|row| **row == Ok("the same".to_owned()))
                    .count(),
                17
            );
        }
    }

    #[test]
    fn what_is_damaged_is_told_and_ends_the_file() {
        let texts: Vec<Option<&[u8]>> = vec![Some(b"some text"); 20];
        let whole = parquet(&texts, Compression::SNAPPY);
        let refused = |bytes: &[u8], column| {
            ParquetRows::open(file(bytes), column)
                .err()
                .expect("refused")
        };
        assert_eq!(refused(b"no parquet", "content"), Reason::Damaged);
        assert_eq!(
            refused(&whole[..whole.len() - 20], "content"),
            Reason::Damaged
        );
        assert_eq!(refused(&whole, "id"), Reason::NoText);
        assert_eq!(refused(&whole, "text"), Reason::NoText);
        // Whichever byte is wrong, reading ends.
        for place in 4..whole.len() {
            let mut bytes = whole.clone();
            bytes[place] ^= 0x55;
            if let Ok(mut rows) = ParquetRows::open(file(&bytes), "content") {
                assert!(std::iter::from_fn(|| rows.next()).take(1000).count() < 1000);
            }
        }
    }

    #[test]
    fn the_columns_with_texts_have_names() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.parquet");
        std::fs::write(&path, parquet(&[Some(b"a")], Compression::SNAPPY)).expect("written");
        assert_eq!(text_columns(&path), ["content"]);
    }
}
