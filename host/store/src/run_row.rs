use host_core::{EventBody, Step, StopReason};
use rusqlite::{Connection, OptionalExtension};

use crate::event_row;

/// The description of a run, written once when it is created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunRecord {
    /// The run's name, valid for [`RunName`](host_core::RunName).
    pub name: String,
    /// When it was created, in microseconds since the Unix epoch.
    pub created_us: i64,
    /// Its resolved configuration, a JSON object.
    pub config_json: String,
}

/// The description of a run and its current state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunRow {
    /// The run's name.
    pub name: String,
    /// When it was created, in microseconds since the Unix epoch.
    pub created_us: i64,
    /// Its resolved configuration, a JSON object.
    pub config_json: String,
    /// Whether it is running, and if not, why.
    pub status: RunStatus,
    /// How many times it was resumed.
    pub generation: u32,
    /// The last event's sequence number; 0 if there is no event yet.
    pub last_seq: u64,
    /// The highest step that is not superseded. The step of the last event can be lower: delivery events
    /// have the step of their checkpoint.
    pub last_step: Step,
    /// The last event's time in microseconds since the Unix epoch. If there is no event yet, this is the
    /// run's creation time.
    pub last_time_us: i64,
}

/// Whether a run is running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunStatus {
    /// A writer holds the run, and no end is recorded.
    Running,
    /// The run's end is recorded, with this reason.
    Finished(StopReason),
    /// No writer holds the run, and no end is recorded: the process was killed or the machine failed.
    Crashed,
}

/// The progress of a run's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The last event's sequence number; 0 if there is no event yet.
    pub last_seq: u64,
    /// Whether more events can follow.
    pub status: RunStatus,
}

/// Returns the generation of the run's last start. If the run has ended since that start, also returns the
/// reason for the end.
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
