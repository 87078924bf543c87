use host_core::{EventBody, Step, StopReason};
use rusqlite::{Connection, OptionalExtension};

use crate::event_row;

/// What a run is, said once when it is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunRecord {
    /// The run's name; one that [`RunName`](host_core::RunName) accepts.
    pub name: String,
    /// When it was made, in microseconds since the Unix epoch.
    pub created_us: i64,
    /// Its resolved configuration, a JSON object.
    pub config_json: String,
}

/// What a run is and how it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunRow {
    /// The run's name.
    pub name: String,
    /// When it was made, in microseconds since the Unix epoch.
    pub created_us: i64,
    /// Its resolved configuration, a JSON object.
    pub config_json: String,
    /// Whether it is at work, and if not, why.
    pub status: RunStatus,
    /// How often it was resumed.
    pub generation: u32,
    /// The last event's sequence number; 0 before the first.
    pub last_seq: u64,
    /// The furthest step of what counts: a delivery's events stand at their checkpoint's step, behind
    /// which the run may be far ahead.
    pub last_step: Step,
    /// The last event's time in microseconds since the Unix epoch; before the first, the run's own.
    pub last_time_us: i64,
}

/// Whether a run is at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunStatus {
    /// A writer holds the run, and it has not said that it ended.
    Running,
    /// The run said that it ended, and why.
    Finished(StopReason),
    /// Nobody holds the run, and it never said that it ended: it was killed, or the machine was.
    Crashed,
}

/// How far a run's log has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The last event's sequence number; 0 before the first.
    pub last_seq: u64,
    /// Whether more may come.
    pub status: RunStatus,
}

/// The run's last beginning (its generation) and its last end, if that came later.
pub(crate) fn beginning_and_end(
    connection: &Connection,
) -> rusqlite::Result<(u32, Option<StopReason>)> {
    let mut last = connection
        .prepare_cached("SELECT seq, body FROM events WHERE kind = ? ORDER BY seq DESC LIMIT 1")?;
    let mut last = |kind: &str| -> rusqlite::Result<Option<(i64, EventBody)>> {
        let found = last
            .query_row([kind], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))
            .optional()?;
        found
            .map(|(seq, body)| match event_row::decode(kind, &body) {
                Ok(body) => Ok((seq, body)),
                Err(e) => Err(rusqlite::Error::FromSqlConversionFailure(
                    1,
                    rusqlite::types::Type::Text,
                    e.into(),
                )),
            })
            .transpose()
    };
    let started = last(event_row::RUN_STARTED)?;
    let generation = match started {
        Some((_, EventBody::RunStarted { generation })) => generation,
        _ => 0,
    };
    let end = match last(event_row::RUN_FINISHED)? {
        Some((seq, EventBody::RunFinished { reason, .. }))
            if started.is_none_or(|(start, _)| seq > start) =>
        {
            Some(reason)
        }
        _ => None,
    };
    Ok((generation, end))
}
