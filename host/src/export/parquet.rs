use std::io::{BufWriter, Write as _};
use std::sync::Arc;

use host_store::Point;
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, DataType, DoubleType, Int64Type};
use parquet::errors::{ParquetError, Result};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;

use super::{Output, PointWriter};

/// Writes a row for each point. The rows are sorted by metric, so that a reader of one metric can skip row
/// groups.
pub(super) struct Parquet {
    file: SerializedFileWriter<BufWriter<Output>>,
    /// The columns of the next row group.
    metrics: Vec<ByteArray>,
    steps: Vec<i64>,
    times: Vec<i64>,
    values: Vec<f64>,
}

/// Rows in a row group. A group has at most a few megabytes; a million points need only eight groups.
const GROUP_ROWS: usize = 1 << 17;

const SCHEMA: &str = "message points {
    required int64 step (INTEGER(64,false));
    required int64 time (TIMESTAMP(MICROS,true));
    required binary metric (STRING);
    required double value;
}";

impl Parquet {
    pub(super) fn begin(file: BufWriter<Output>) -> std::io::Result<Self> {
        let begin = || {
            let schema = Arc::new(parse_message_type(SCHEMA)?);
            let properties = WriterProperties::builder()
                .set_compression(Compression::ZSTD(ZstdLevel::default()))
                .build();
            SerializedFileWriter::new(file, schema, Arc::new(properties))
        };
        Ok(Self {
            file: begin().map_err(plain)?,
            metrics: Vec::new(),
            steps: Vec::new(),
            times: Vec::new(),
            values: Vec::new(),
        })
    }

    fn write_group(&mut self) -> Result<()> {
        let mut group = self.file.next_row_group()?;
        write_column::<Int64Type>(&mut group, &self.steps)?;
        write_column::<Int64Type>(&mut group, &self.times)?;
        write_column::<ByteArrayType>(&mut group, &self.metrics)?;
        write_column::<DoubleType>(&mut group, &self.values)?;
        group.close()?;
        self.metrics.clear();
        self.steps.clear();
        self.times.clear();
        self.values.clear();
        Ok(())
    }
}

impl PointWriter for Parquet {
    fn write(&mut self, metric: &str, point: Point) -> std::io::Result<()> {
        let name = match self.metrics.last() {
            // Rows of the same metric share the name's bytes.
            Some(last) if last.data() == metric.as_bytes() => last.clone(),
            _ => ByteArray::from(metric),
        };
        self.metrics.push(name);
        // Parquet stores the unsigned column as `i64`.
        self.steps.push(point.step.0.cast_signed());
        self.times.push(point.time_us);
        self.values.push(point.value);
        if self.values.len() == GROUP_ROWS {
            self.write_group().map_err(plain)?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> std::io::Result<()> {
        if !self.values.is_empty() {
            self.write_group().map_err(plain)?;
        }
        self.file.into_inner().map_err(plain)?.flush()
    }
}

fn write_column<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, BufWriter<Output>>,
    values: &[T::T],
) -> Result<()> {
    let missing = || ParquetError::General("the schema has too few columns".to_owned());
    let mut column = group.next_column()?.ok_or_else(missing)?;
    column.typed::<T>().write_batch(values, None, None)?;
    column.close()
}

/// Returns the I/O error that `error` contains. Converts any other error to an I/O error.
fn plain(error: ParquetError) -> std::io::Error {
    match error {
        ParquetError::External(source) => match source.downcast::<std::io::Error>() {
            Ok(error) => *error,
            Err(other) => std::io::Error::other(other),
        },
        other => std::io::Error::other(other),
    }
}
