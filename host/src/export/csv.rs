use std::io::{BufWriter, Write};

use host_store::Point;

use super::{Output, PointWriter};

/// Writes a row for each point. A number is written with as few digits as possible without changing its
/// value. Times are in UTC.
pub(super) struct Csv(BufWriter<Output>);

impl Csv {
    pub(super) fn begin(mut file: BufWriter<Output>) -> std::io::Result<Self> {
        writeln!(file, "step,time,metric,value")?;
        Ok(Self(file))
    }
}

impl PointWriter for Csv {
    fn write(&mut self, metric: &str, point: Point) -> std::io::Result<()> {
        let Point { step, value, .. } = point;
        // A time outside the calendar's range is left empty.
        let time = jiff::Timestamp::from_microsecond(point.time_us);
        let time = time.map_or(String::new(), |t| {
            t.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
        });
        write!(self.0, "{step},{time},")?;
        // RFC 4180.
        match metric.contains(['"', ',', '\n', '\r']) {
            true => write!(self.0, "\"{}\"", metric.replace('"', "\"\""))?,
            false => write!(self.0, "{metric}")?,
        }
        // Rust writes NaN, inf and -inf, which pandas and others read.
        writeln!(self.0, ",{value}")
    }

    fn finish(mut self: Box<Self>) -> std::io::Result<()> {
        self.0.flush()
    }
}
