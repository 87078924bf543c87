use std::io::{BufWriter, Write};

use host_store::Point;
use prost::Message as _;

use super::{Output, PointWriter};

/// Writes an event file in the format of TensorFlow's `EventsWriter`. Each record consists of a length and an
/// `Event` message. Each of the two has a checksum.
pub(super) struct EventFile {
    file: BufWriter<Output>,
    record: Vec<u8>,
}

/// Returns a name that TensorBoard recognizes as an event file.
pub(super) fn file_name(run: &str, created_us: i64) -> String {
    format!("events.out.tfevents.{}.{run}", created_us / 1_000_000)
}

/// The fields of `tensorflow.Event` that are written here. `file_version` and `summary` form a oneof.
#[derive(Clone, PartialEq, prost::Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    /// This field is part of a oneof, so it is written even if it is 0.
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

impl EventFile {
    pub(super) fn begin(file: BufWriter<Output>, begun_us: i64) -> std::io::Result<Self> {
        let record = Vec::new();
        let mut events = Self { file, record };
        events.put(&Event {
            wall_time: seconds(begun_us),
            // With this version, TensorBoard keeps earlier points when the step decreases. In this file, the
            // step decreases wherever the points of the next metric begin.
            file_version: Some("brain.Event:2".to_owned()),
            ..Event::default()
        })?;
        Ok(events)
    }

    fn put(&mut self, event: &Event) -> std::io::Result<()> {
        self.record.clear();
        event
            .encode(&mut self.record)
            .map_err(std::io::Error::other)?;
        let length = (self.record.len() as u64).to_le_bytes();
        self.file.write_all(&length)?;
        self.file.write_all(&masked_crc(&length))?;
        self.file.write_all(&self.record)?;
        self.file.write_all(&masked_crc(&self.record))
    }
}

impl PointWriter for EventFile {
    fn write(&mut self, metric: &str, point: Point) -> std::io::Result<()> {
        #[expect(clippy::cast_possible_truncation, reason = "the format has no doubles")]
        let value = point.value as f32;
        self.put(&Event {
            wall_time: seconds(point.time_us),
            step: point.step.0.cast_signed(),
            file_version: None,
            summary: Some(Summary {
                value: vec![Value {
                    tag: metric.to_owned(),
                    simple_value: Some(value),
                }],
            }),
        })
    }

    fn finish(mut self: Box<Self>) -> std::io::Result<()> {
        self.file.flush()
    }
}

fn seconds(time_us: i64) -> f64 {
    time_us as f64 / 1e6
}

/// Returns the CRC with the mask that the format requires. Without the mask, the CRC of data that contains
/// CRCs is weak.
fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    let crc = crc32c::crc32c(bytes);
    crc.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}
