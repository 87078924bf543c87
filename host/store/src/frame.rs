use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use host_core::{Event, EventBody, MetricValue};
use rusqlite::{Connection, OptionalExtension};

/// The names of the series that are measured together, in order.
pub(crate) type Names = Arc<[Arc<str>]>;

/// The writer's cache of series and frames. The cache is loaded from the file. After a failed commit, it may
/// contain entries that were never written, so it is reloaded.
#[derive(Debug)]
pub(crate) struct FrameIndex {
    series: HashMap<Arc<str>, i64>,
    frames: HashMap<Names, i64>,
    /// For each frame, the number of events that are not folded into a chunk.
    pub(crate) unfolded: HashMap<i64, usize>,
    scratch: Vec<Arc<str>>,
}

impl FrameIndex {
    pub(crate) fn load(connection: &Connection) -> rusqlite::Result<Self> {
        let mut index = Self {
            series: HashMap::new(),
            frames: HashMap::new(),
            unfolded: HashMap::new(),
            scratch: Vec::new(),
        };
        let mut query = connection.prepare("SELECT name, id FROM series")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            index.series.insert(row.get(0)?, row.get(1)?);
        }
        let mut query = connection.prepare("SELECT id FROM frames")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let frame = row.get(0)?;
            index.frames.insert(names_of(connection, frame)?, frame);
        }
        let mut query = connection
            .prepare("SELECT frame, count(*) FROM events WHERE frame IS NOT NULL GROUP BY frame")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            index.unfolded.insert(row.get(0)?, row.get(1)?);
        }
        Ok(index)
    }

    /// Returns the frame of an event with these values. Writes it and its series if they are new.
    pub(crate) fn frame_of(
        &mut self,
        connection: &Connection,
        values: &[MetricValue],
    ) -> rusqlite::Result<i64> {
        let mut names = std::mem::take(&mut self.scratch);
        names.clear();
        names.extend(values.iter().map(|value| Arc::clone(&value.name)));
        let frame = match self.frames.get(names.as_slice()) {
            Some(&frame) => frame,
            None => self.add(connection, &names)?,
        };
        self.scratch = names;
        Ok(frame)
    }

    fn add(&mut self, connection: &Connection, names: &[Arc<str>]) -> rusqlite::Result<i64> {
        connection.execute("INSERT INTO frames DEFAULT VALUES", [])?;
        let frame = connection.last_insert_rowid();
        let mut place_in = connection
            .prepare_cached("INSERT INTO frame_series(frame, place, series) VALUES (?, ?, ?)")?;
        for (place, name) in names.iter().enumerate() {
            let series = match self.series.get(name) {
                Some(&series) => series,
                None => {
                    connection.execute("INSERT INTO series(name) VALUES (?)", [name])?;
                    let series = connection.last_insert_rowid();
                    self.series.insert(Arc::clone(name), series);
                    series
                }
            };
            place_in.execute((frame, place, series))?;
        }
        self.frames.insert(names.into(), frame);
        Ok(frame)
    }
}

/// A reader's cache of frames. A frame never changes, so cached names stay valid.
#[derive(Debug, Default)]
pub(crate) struct FrameNames(RefCell<HashMap<i64, Names>>);

/// Maximum number of cached frames. A normal run has fewer. The cache is cleared at this size.
const REMEMBERED: usize = 4096;

impl FrameNames {
    /// Returns the names of a frame's series.
    pub(crate) fn get(&self, connection: &Connection, frame: i64) -> rusqlite::Result<Names> {
        if let Some(names) = self.0.borrow().get(&frame) {
            return Ok(Arc::clone(names));
        }
        let names = names_of(connection, frame)?;
        let mut known = self.0.borrow_mut();
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(frame, Arc::clone(&names));
        Ok(names)
    }
}

fn names_of(connection: &Connection, frame: i64) -> rusqlite::Result<Names> {
    let mut query = connection.prepare_cached(
        "SELECT series.name FROM frame_series JOIN series ON series.id = series
         WHERE frame = ? ORDER BY place",
    )?;
    query.query_map([frame], |row| row.get(0))?.collect()
}

/// Returns the id of a series, if the run has it.
pub(crate) fn series_id(connection: &Connection, name: &str) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached("SELECT id FROM series WHERE name = ?")?
        .query_row([name], |row| row.get(0))
        .optional()
}

/// Returns the values of a metric event; empty for other events.
pub(crate) fn values_of(event: &Event) -> &[MetricValue] {
    match &event.body {
        EventBody::Metrics { values } => values,
        _ => &[],
    }
}
