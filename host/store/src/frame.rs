use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use host_core::{Event, EventBody, MetricValue};
use rusqlite::{Connection, OptionalExtension};

/// The series that are measured together, in their order.
pub(crate) type Names = Arc<[Arc<str>]>;

/// What the writer knows by heart of series and frames. Made from the file, and made anew after a
/// commit that failed, since it then may know what was never written.
#[derive(Debug)]
pub(crate) struct FrameIndex {
    series: HashMap<Arc<str>, i64>,
    frames: HashMap<Names, i64>,
    /// By frame, how many of its events are not folded.
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

    /// The frame of an event with these values; it and its series are written if they are new.
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

/// What a reader has looked up of frames. A frame never changes, so what was read stays true.
#[derive(Debug, Default)]
pub(crate) struct FrameNames(RefCell<HashMap<i64, Names>>);

/// More frames than a sane run has; beyond it the names are forgotten and read again.
const REMEMBERED: usize = 4096;

impl FrameNames {
    /// The names of a frame's series.
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

/// The id of a series, if the run has it.
pub(crate) fn series_id(connection: &Connection, name: &str) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached("SELECT id FROM series WHERE name = ?")?
        .query_row([name], |row| row.get(0))
        .optional()
}

/// The values of a metric event; none for others.
pub(crate) fn values_of(event: &Event) -> &[MetricValue] {
    match &event.body {
        EventBody::Metrics { values } => values,
        _ => &[],
    }
}
