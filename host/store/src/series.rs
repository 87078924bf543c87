use std::collections::BTreeMap;
use std::sync::Arc;

use host_core::{Result, Step};
use rusqlite::Connection;

use crate::chunk::{self, Column, Malformed, Place};
use crate::reader::{ReadError, supersessions};
use crate::supersession::{Live, Supersessions};
use crate::{Point, Reader};

/// A series of a run: a metric's name, and a summary of the points that are not superseded.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// The metric's name.
    pub name: Arc<str>,
    /// Number of points; at least one.
    pub count: u64,
    /// The last point.
    pub last: Point,
}

impl Reader {
    /// Returns the run's series, sorted by name. A series with only superseded points is left out.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read.
    pub fn series(&self) -> Result<Vec<Series>> {
        self.snapshot(|tx| {
            self.check_complete(tx)?;
            let superseded = supersessions(tx)?;
            let frames: Vec<i64> = tx
                .prepare_cached("SELECT id FROM frames")?
                .query_map([], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            let mut all: BTreeMap<Arc<str>, Series> = BTreeMap::new();
            for frame in frames {
                let Some(ends) = frame_ends(tx, frame, &superseded)? else {
                    continue;
                };
                let names = self.frames.get(tx, frame)?;
                for (name, &value) in names.iter().zip(&ends.values) {
                    let last = Point {
                        seq: ends.last.seq,
                        step: Step(ends.last.step),
                        time_us: ends.last.time_us,
                        value,
                    };
                    all.entry(Arc::clone(name))
                        .and_modify(|series| {
                            series.count += ends.count;
                            if last.seq >= series.last.seq {
                                series.last = last;
                            }
                        })
                        .or_insert_with(|| Series {
                            name: Arc::clone(name),
                            count: ends.count,
                            last,
                        });
                }
            }
            Ok(all.into_values().collect())
        })
    }
}

/// A summary of a frame's events that are not superseded: their number, and the last of them.
struct FrameEnds {
    count: u64,
    last: Place,
    values: Vec<f64>,
}

fn frame_ends(
    connection: &Connection,
    frame: i64,
    superseded: &Supersessions,
) -> Result<Option<FrameEnds>, ReadError> {
    let mut count = 0;
    // The id of the last chunk with an event that is not superseded, and the number of all rows of this
    // chunk, superseded or not.
    let mut last_chunk = None;
    let mut chunks = connection.prepare_cached(
        "SELECT id, rows, first_seq, last_seq, min_step, max_step FROM chunks
         WHERE frame = ? ORDER BY last_seq",
    )?;
    let mut rows = chunks.query([frame])?;
    while let Some(row) = rows.next()? {
        let number = |column| row.get::<_, i64>(column).map(i64::cast_unsigned);
        let (id, rows): (i64, usize) = (row.get(0)?, row.get(1)?);
        let live = match superseded.of_chunk((number(2)?, number(3)?), (number(4)?, number(5)?)) {
            Live::All => rows,
            Live::None => 0,
            Live::Some => live_places(connection, id, rows, superseded)?.len(),
        };
        count += live as u64;
        if live > 0 {
            last_chunk = Some((id, rows));
        }
    }

    let mut last_row = None;
    let mut events = connection
        .prepare_cached("SELECT seq, step, time_us FROM events WHERE frame = ? ORDER BY seq")?;
    let mut rows = events.query([frame])?;
    while let Some(row) = rows.next()? {
        let place = Place {
            seq: row.get::<_, i64>(0)?.cast_unsigned(),
            step: row.get::<_, i64>(1)?.cast_unsigned(),
            time_us: row.get(2)?,
        };
        if superseded.is_live(&place) {
            count += 1;
            last_row = Some(place);
        }
    }

    // In a frame, every event outside the chunks is later than every event in a chunk.
    let ends = match (last_row, last_chunk) {
        (Some(last), _) => Some((last, row_values(connection, last.seq)?)),
        (None, Some((chunk, rows))) => {
            let places = live_places(connection, chunk, rows, superseded)?;
            let &(row, last) = places.last().ok_or_else(|| damaged(chunk))?;
            Some((last, chunk_values(connection, chunk, rows, row)?))
        }
        (None, None) => None,
    };
    Ok(ends.map(|(last, values)| FrameEnds {
        count,
        last,
        values,
    }))
}

/// Returns the rows of a chunk that are not superseded.
fn live_places(
    connection: &Connection,
    chunk: i64,
    rows: usize,
    superseded: &Supersessions,
) -> Result<Vec<(usize, Place)>, ReadError> {
    let mut query = connection.prepare_cached("SELECT axis FROM chunks WHERE id = ?")?;
    let mut found = query.query([chunk])?;
    let row = found.next()?.ok_or_else(|| damaged(chunk))?;
    let mut places = Vec::new();
    chunk::decode_axis(row.get_ref(0)?.as_blob()?, rows, &mut places)
        .map_err(|_| damaged(chunk))?;
    Ok(places
        .into_iter()
        .enumerate()
        .filter(|(_, place)| superseded.is_live(place))
        .collect())
}

fn row_values(connection: &Connection, seq: u64) -> Result<Vec<f64>, ReadError> {
    let mut query = connection.prepare_cached("SELECT body FROM events WHERE seq = ?")?;
    let mut found = query.query([seq.cast_signed()])?;
    found
        .next()?
        .and_then(|row| {
            chunk::decode_row(row.get_ref(0).ok()?.as_blob().ok()?)
                .ok()
                .map(Iterator::collect)
        })
        .ok_or_else(|| ReadError::damaged(format!("event {seq} cannot be read")))
}

fn chunk_values(
    connection: &Connection,
    chunk: i64,
    rows: usize,
    row: usize,
) -> Result<Vec<f64>, ReadError> {
    let mut query =
        connection.prepare_cached("SELECT data FROM columns WHERE chunk = ? ORDER BY place")?;
    let mut found = query.query([chunk])?;
    let mut values = Vec::new();
    while let Some(column) = found.next()? {
        let column = Column::new(column.get_ref(0)?.as_blob()?, rows)
            .map_err(|_: Malformed| damaged(chunk))?;
        values.push(column.get(row));
    }
    Ok(values)
}

fn damaged(chunk: i64) -> ReadError {
    ReadError::damaged(format!("chunk {chunk} cannot be read"))
}
