use host_core::{Event, EventBody, MetricValue, Result, Step};
use rusqlite::Connection;
use rusqlite::types::ValueRef;

use crate::chunk::{self, Column, Malformed, Place};
use crate::frame::Names;
use crate::reader::{ReadError, last_seq};
use crate::{Reader, event_row};

impl Reader {
    /// Returns at most `limit` events after a sequence number, in order. The number 0 means from the
    /// beginning. The result includes superseded events. If the caller continues after the last event of each
    /// call, no event is missing or repeated.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read.
    pub fn events_after(&self, seq: u64, limit: usize) -> Result<Vec<Event>> {
        self.snapshot(|tx| self.page(tx, seq, limit))
    }

    /// Like [`Self::events_after`], but within the caller's transaction.
    pub(crate) fn page(
        &self,
        connection: &Connection,
        seq: u64,
        limit: usize,
    ) -> Result<Vec<Event>, ReadError> {
        // There are no gaps, so the page's sequence numbers are known before it is read.
        let limit = u64::try_from(limit).unwrap_or(u64::MAX);
        let last = last_seq(connection)?.min(seq.saturating_add(limit));
        let mut page = Page::new(seq, last);
        if seq < last {
            self.read_rows(connection, &mut page)?;
            self.read_chunks(connection, &mut page)?;
        }
        page.finish()
    }

    fn read_rows(&self, connection: &Connection, page: &mut Page) -> Result<(), ReadError> {
        let mut query = connection.prepare_cached(
            "SELECT seq, step, time_us, frame, kind, body FROM events
             WHERE seq > ? AND seq <= ? ORDER BY seq",
        )?;
        let mut rows = query.query(page.bounds())?;
        while let Some(row) = rows.next()? {
            let place = Place {
                seq: row.get::<_, i64>(0)?.cast_unsigned(),
                step: row.get::<_, i64>(1)?.cast_unsigned(),
                time_us: row.get(2)?,
            };
            let body = match (row.get_ref(3)?, row.get_ref(5)?) {
                (ValueRef::Integer(frame), ValueRef::Blob(values)) => {
                    let names = self.frames.get(connection, frame)?;
                    metrics(&names, chunk::decode_row(values).ok())
                }
                (ValueRef::Null, ValueRef::Text(body)) => {
                    std::str::from_utf8(body).ok().and_then(|body| {
                        event_row::decode(row.get_ref(4).ok()?.as_str().ok()?, body).ok()
                    })
                }
                _ => None,
            };
            let body = body.ok_or_else(|| unreadable(place.seq))?;
            page.put(place, body)?;
        }
        Ok(())
    }

    fn read_chunks(&self, connection: &Connection, page: &mut Page) -> Result<(), ReadError> {
        let folded: Vec<i64> = connection
            .prepare_cached("SELECT id FROM frames WHERE folded = 1")?
            .query_map([], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        let mut chunks_of = connection.prepare_cached(
            "SELECT id, rows, axis FROM chunks
             WHERE frame = ?1 AND last_seq > ?2 AND first_seq <= ?3 ORDER BY last_seq",
        )?;
        let mut columns_of =
            connection.prepare_cached("SELECT data FROM columns WHERE chunk = ? ORDER BY place")?;
        for frame in folded {
            let names = self.frames.get(connection, frame)?;
            let (after, last) = page.bounds();
            let mut chunks = chunks_of.query((frame, after, last))?;
            // A frame's chunks do not overlap, so after a chunk that reaches the end of the page, no other
            // chunk is on the page. The loop stops there; otherwise, the query would also read all later
            // chunks.
            while let Some(row) = chunks.next()? {
                let chunk: i64 = row.get(0)?;
                let damaged = |_: Malformed| ReadError::damaged(format!("chunk {chunk}"));
                let mut places = Vec::new();
                let total: usize = row.get(1)?;
                chunk::decode_axis(row.get_ref(2)?.as_blob()?, total, &mut places)
                    .map_err(damaged)?;
                let rows = page.rows_of(&places);
                let mut bodies: Vec<Vec<MetricValue>> = rows
                    .clone()
                    .map(|_| Vec::with_capacity(names.len()))
                    .collect();
                let mut columns = columns_of.query([chunk])?;
                for name in &*names {
                    let row = columns.next()?.ok_or(Malformed).map_err(damaged)?;
                    let column = Column::new(row.get_ref(0)?.as_blob()?, total).map_err(damaged)?;
                    for (values, row) in bodies.iter_mut().zip(rows.clone()) {
                        values.push(MetricValue::new(name.clone(), column.get(row)));
                    }
                }
                if columns.next()?.is_some() {
                    return Err(damaged(Malformed));
                }
                for (values, row) in bodies.into_iter().zip(rows) {
                    page.put(places[row], EventBody::Metrics { values })?;
                }
                if places
                    .last()
                    .is_none_or(|place| place.seq >= last.cast_unsigned())
                {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// The events of a range of sequence numbers. They can be added in any order.
struct Page {
    after: u64,
    events: Vec<Option<Event>>,
}

impl Page {
    fn new(after: u64, last: u64) -> Self {
        let len = usize::try_from(last.saturating_sub(after)).unwrap_or(usize::MAX);
        Self {
            after,
            events: std::iter::repeat_with(|| None).take(len).collect(),
        }
    }

    /// Returns the page's bounds as SQLite integers: the sequence number just before the first event, and the
    /// sequence number of the last event.
    fn bounds(&self) -> (i64, i64) {
        let last = self.after + self.events.len() as u64;
        (self.after.cast_signed(), last.cast_signed())
    }

    /// Returns the rows of a chunk that are on this page.
    fn rows_of(&self, places: &[Place]) -> std::ops::Range<usize> {
        let last = self.after + self.events.len() as u64;
        let first = places.partition_point(|place| place.seq <= self.after);
        first..places.partition_point(|place| place.seq <= last)
    }

    fn put(&mut self, place: Place, body: EventBody) -> Result<(), ReadError> {
        let slot = place
            .seq
            .checked_sub(self.after + 1)
            .and_then(|offset| self.events.get_mut(usize::try_from(offset).ok()?))
            .filter(|slot| slot.is_none())
            .ok_or_else(|| unreadable(place.seq))?;
        *slot = Some(Event {
            seq: place.seq,
            time_us: place.time_us,
            step: Step(place.step),
            body,
        });
        Ok(())
    }

    fn finish(self) -> Result<Vec<Event>, ReadError> {
        (self.after + 1..)
            .zip(self.events)
            .map(|(seq, event)| event.ok_or_else(|| unreadable(seq)))
            .collect()
    }
}

fn metrics(names: &Names, values: Option<impl ExactSizeIterator<Item = f64>>) -> Option<EventBody> {
    let values = values.filter(|values| values.len() == names.len())?;
    let values = std::iter::zip(names.iter(), values)
        .map(|(name, value)| MetricValue::new(name.clone(), value))
        .collect();
    Some(EventBody::Metrics { values })
}

fn unreadable(seq: u64) -> ReadError {
    ReadError::damaged(format!("event {seq} cannot be read"))
}
