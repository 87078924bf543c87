use host_core::{Result, Step};
use rusqlite::Connection;

use crate::Reader;
use crate::chunk::{self, Column, Malformed, Place};
use crate::downsample::Downsample;
use crate::frame::series_id;
use crate::reader::{ReadError, supersessions};
use crate::supersession::{Live, Supersessions};

/// A point of a series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// The sequence number of the event.
    pub seq: u64,
    /// The number of optimizer steps that were finished when the event was emitted.
    pub step: Step,
    /// The time of the event, in microseconds since the Unix epoch.
    pub time_us: i64,
    /// The value; it can be infinite or NaN.
    pub value: f64,
}

/// The place where some of a series' points are stored.
enum Part {
    /// In a chunk. `place` is the position of the series in the chunk's frame.
    Chunk {
        id: i64,
        place: i64,
        rows: usize,
        live: Live,
    },
    /// In the row of an event that is not folded into a chunk.
    Row(Point),
}

impl Reader {
    /// Returns the history of a series in the log's order, without superseded points. If there are more than
    /// `max_points` points, returns at most `max_points` of them. A plot still looks the same, because
    /// extremes and the last point are kept. Returns `None` if the run has no such series.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read.
    pub fn history(&self, series: &str, max_points: usize) -> Result<Option<Vec<Point>>> {
        self.snapshot(|tx| {
            self.check_complete(tx)?;
            let Some(series) = series_id(tx, series)? else {
                return Ok(None);
            };
            let superseded = supersessions(tx)?;
            let parts = parts(tx, series, &superseded)?;
            let total = count(tx, &parts, &superseded)?;
            let mut downsample = Downsample::new(total, max_points);
            for_each_point(tx, parts, &superseded, |point| downsample.push(point))?;
            Ok(Some(downsample.finish()))
        })
    }

    /// Calls `each` with the points of the series for which `wanted` returns true, without superseded points.
    /// The series are sorted by name, and the points of each series are in the log's order. All points are
    /// read from the same state of the file. Memory use does not grow with the history. Stops at the first
    /// error of `each`.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read, or the error of `each`.
    pub fn points(
        &self,
        wanted: impl Fn(&str) -> bool,
        mut each: impl FnMut(&str, Point) -> Result<()>,
    ) -> Result<()> {
        let mut outcome = Ok(());
        self.snapshot(|tx| {
            self.check_complete(tx)?;
            let superseded = supersessions(tx)?;
            let mut query = tx.prepare_cached("SELECT id, name FROM series ORDER BY name")?;
            let mut rows = query.query([])?;
            while let Some(row) = rows.next()? {
                let (series, name): (i64, String) = (row.get(0)?, row.get(1)?);
                if !wanted(&name) {
                    continue;
                }
                let parts = parts(tx, series, &superseded)?;
                for_each_point(tx, parts, &superseded, |point| {
                    if outcome.is_ok() {
                        outcome = each(&name, point);
                    }
                })?;
                if outcome.is_err() {
                    break;
                }
            }
            Ok(())
        })?;
        outcome
    }
}

/// Returns the parts of a series, each with the lowest sequence number that it can contain. The parts are
/// sorted by this number.
fn parts(
    connection: &Connection,
    series: i64,
    superseded: &Supersessions,
) -> Result<Vec<(u64, Part)>, ReadError> {
    let mut parts = Vec::new();
    let mut query = connection.prepare_cached(
        "SELECT c.id, f.place, c.rows, c.first_seq, c.last_seq, c.min_step, c.max_step
         FROM frame_series f JOIN chunks c ON c.frame = f.frame WHERE f.series = ?",
    )?;
    let mut rows = query.query([series])?;
    while let Some(row) = rows.next()? {
        let number = |column| row.get::<_, i64>(column).map(i64::cast_unsigned);
        let seqs = (number(3)?, number(4)?);
        let live = superseded.of_chunk(seqs, (number(5)?, number(6)?));
        if live != Live::None {
            let (id, place, rows) = (row.get(0)?, row.get(1)?, row.get(2)?);
            parts.push((
                seqs.0,
                Part::Chunk {
                    id,
                    place,
                    rows,
                    live,
                },
            ));
        }
    }
    let mut query = connection.prepare_cached(
        "SELECT e.seq, e.step, e.time_us, e.body, f.place
         FROM frame_series f JOIN events e ON e.frame = f.frame WHERE f.series = ?",
    )?;
    let mut rows = query.query([series])?;
    while let Some(row) = rows.next()? {
        let place = Place {
            seq: row.get::<_, i64>(0)?.cast_unsigned(),
            step: row.get::<_, i64>(1)?.cast_unsigned(),
            time_us: row.get(2)?,
        };
        if superseded.is_live(&place) {
            let value = chunk::decode_row(row.get_ref(3)?.as_blob()?)
                .ok()
                .zip(row.get::<_, usize>(4).ok())
                .and_then(|(mut values, at)| values.nth(at))
                .ok_or_else(|| ReadError::damaged(format!("event {} cannot be read", place.seq)))?;
            parts.push((place.seq, Part::Row(point(place, value))));
        }
    }
    if parts.is_empty() && superseded.is_empty() {
        // If no events are superseded, every series has a point, because a series is stored together with its
        // first point.
        return Err(ReadError::damaged("a metric has no points"));
    }
    parts.sort_by_key(|&(first, _)| first);
    Ok(parts)
}

/// Returns the number of points in the parts, without superseded points.
fn count(
    connection: &Connection,
    parts: &[(u64, Part)],
    superseded: &Supersessions,
) -> Result<usize, ReadError> {
    let mut axis = connection.prepare_cached("SELECT axis FROM chunks WHERE id = ?")?;
    let mut total = 0;
    let mut places = Vec::new();
    for (_, part) in parts {
        total += match *part {
            Part::Row(_) => 1,
            Part::Chunk {
                rows,
                live: Live::All,
                ..
            } => rows,
            Part::Chunk { id, rows, .. } => {
                places.clear();
                let mut found = axis.query([id])?;
                let row = found.next()?.ok_or_else(|| damaged(id))?;
                chunk::decode_axis(row.get_ref(0)?.as_blob()?, rows, &mut places)
                    .map_err(|_| damaged(id))?;
                places
                    .iter()
                    .filter(|place| superseded.is_live(place))
                    .count()
            }
        };
    }
    Ok(total)
}

/// Calls `each` with the points that are not superseded, in the log's order. Chunks of different frames can
/// overlap, so each point is held back until none of the remaining parts can contain an earlier point.
fn for_each_point(
    connection: &Connection,
    parts: Vec<(u64, Part)>,
    superseded: &Supersessions,
    mut each: impl FnMut(Point),
) -> Result<(), ReadError> {
    let mut chunks = connection.prepare_cached(
        "SELECT axis, data FROM chunks JOIN columns ON chunk = id WHERE id = ? AND place = ?",
    )?;
    let mut places = Vec::new();
    let mut waiting: Vec<Point> = Vec::new();
    for (first, part) in parts {
        let ready = waiting.partition_point(|point| point.seq < first);
        waiting.drain(..ready).for_each(&mut each);
        match part {
            Part::Row(point) => waiting.push(point),
            Part::Chunk {
                id,
                place,
                rows,
                live,
            } => {
                let mut found = chunks.query((id, place))?;
                let row = found.next()?.ok_or_else(|| damaged(id))?;
                places.clear();
                let malformed = |_: Malformed| damaged(id);
                chunk::decode_axis(row.get_ref(0)?.as_blob()?, rows, &mut places)
                    .map_err(malformed)?;
                let column = Column::new(row.get_ref(1)?.as_blob()?, rows).map_err(malformed)?;
                waiting.extend(
                    places
                        .iter()
                        .enumerate()
                        .filter(|(_, place)| live == Live::All || superseded.is_live(place))
                        .map(|(row, &place)| point(place, column.get(row))),
                );
            }
        }
        if !waiting.is_sorted_by_key(|point| point.seq) {
            waiting.sort_by_key(|point| point.seq);
        }
    }
    waiting.into_iter().for_each(each);
    Ok(())
}

fn point(place: Place, value: f64) -> Point {
    Point {
        seq: place.seq,
        step: Step(place.step),
        time_us: place.time_us,
        value,
    }
}

fn damaged(chunk: i64) -> ReadError {
    ReadError::damaged(format!("chunk {chunk} cannot be read"))
}
