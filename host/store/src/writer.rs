use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use host_core::{Draft, Error, ErrorKind, Event, EventBody, Result, RunName, Step};
use rusqlite::{Connection, TransactionBehavior};

use crate::chunk::{self, Place};
use crate::condition::{self, Loss};
use crate::frame::{FrameIndex, values_of};
use crate::lock::RunLock;
use crate::migration::{MIGRATIONS, migrate};
use crate::run_row::RunRecord;
use crate::schema::{self, Found};
use crate::{FILE, event_row, fault};

/// Rows per chunk. The chunks are large enough that a million points take only about a thousand reads. They
/// are small enough that the rows not yet in a chunk are read quickly.
const CHUNK_ROWS: usize = 1024;

/// How SQLite makes commits atomic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Journal {
    /// A write-ahead log, so that readers and the writer never wait for each other. Some file systems do not
    /// support such a log, for example network file systems. On these, a rollback journal is used instead.
    #[default]
    Automatic,
    /// A rollback journal.
    Rollback,
}

/// The only writer of a run. Holds the run's lock until it is dropped.
#[derive(Debug)]
pub struct Writer {
    connection: Connection,
    path: PathBuf,
    last_seq: u64,
    /// See [`RunRow::last_step`](crate::RunRow::last_step).
    last_step: Step,
    /// `None` after a failed commit, until the index is reloaded.
    index: Option<FrameIndex>,
    chunk_rows: usize,
    // Must be the last field, because the last field is dropped last. The file is then closed before the lock
    // is released and another writer opens the file.
    _lock: RunLock,
}

impl Writer {
    /// Creates the run's folder and store.
    ///
    /// # Errors
    /// Returns an error if the folder already has a run, another process writes to it, or writing fails.
    pub fn create(run_dir: &Path, record: &RunRecord) -> Result<Self> {
        Self::create_with(run_dir, record, Journal::Automatic)
    }

    /// Like [`Writer::create`], with the given journal.
    ///
    /// # Errors
    /// As for [`Writer::create`].
    pub fn create_with(run_dir: &Path, record: &RunRecord, journal: Journal) -> Result<Self> {
        record.name.parse::<RunName>()?;
        std::fs::create_dir_all(run_dir)
            .map_err(|e| Error::io("create the folder", run_dir, &e))?;
        Self::make(run_dir, RunLock::take(run_dir)?, record, journal)
    }

    fn make(run_dir: &Path, lock: RunLock, record: &RunRecord, journal: Journal) -> Result<Self> {
        let path = run_dir.join(FILE);
        let connection = schema::open_to_write(&path)?;
        if schema::recognize(&connection, &path)? == Found::Run {
            return Err(Error::new(
                ErrorKind::Config,
                format!("the folder already has a run: {}", run_dir.display()),
            )
            .hint("choose another name, or resume that run with `host resume`"));
        }
        prepare(&connection, &path, journal)?;
        make_run(&connection, record).map_err(|e| fault::sql("create the run store", &path, &e))?;
        Self::start(connection, path, lock)
    }

    /// Opens the store of a run that is resumed. Sequence numbers continue. A store of an older format is
    /// converted to the newest.
    ///
    /// # Errors
    /// Returns an error if there is no run, its format is newer than this program, or another process writes
    /// to it.
    pub fn open(run_dir: &Path) -> Result<Self> {
        Self::open_with(run_dir, Journal::Automatic)
    }

    /// Like [`Writer::open`], with the given journal.
    ///
    /// # Errors
    /// As for [`Writer::open`].
    pub fn open_with(run_dir: &Path, journal: Journal) -> Result<Self> {
        let path = run_dir.join(FILE);
        if !path.is_file() {
            return Err(no_run(run_dir));
        }
        Self::take_up(run_dir, RunLock::take(run_dir)?, journal)
    }

    /// Opens the store of a run that is resumed, even if the store is damaged. Reads the whole store; if it
    /// is damaged, sets it aside. If it is damaged or missing, creates a new one from `record`. Returns what
    /// was lost, if anything.
    ///
    /// # Errors
    /// As for [`Writer::open`], or if a file cannot be renamed or created.
    pub fn restore(run_dir: &Path, record: &RunRecord) -> Result<(Self, Option<Loss>)> {
        let lock = RunLock::take(run_dir)?;
        let Some(why) = condition::damage(run_dir)? else {
            return Ok((Self::take_up(run_dir, lock, Journal::Automatic)?, None));
        };
        let record = RunRecord {
            created_us: condition::created_us(run_dir).unwrap_or(record.created_us),
            ..record.clone()
        };
        let kept_as = condition::set_aside(run_dir)?;
        let made = Self::make(run_dir, lock, &record, Journal::Automatic)?;
        Ok((made, Some(Loss { why, kept_as })))
    }

    fn take_up(run_dir: &Path, lock: RunLock, journal: Journal) -> Result<Self> {
        let path = run_dir.join(FILE);
        let mut connection = schema::open_to_write(&path)?;
        if schema::recognize(&connection, &path)? == Found::Empty {
            return Err(no_run(run_dir));
        }
        prepare(&connection, &path, journal)?;
        migrate(&mut connection, MIGRATIONS)
            .map_err(|e| fault::sql("convert the run store to this program's format", &path, &e))?;
        Self::start(connection, path, lock)
    }

    fn start(connection: Connection, path: PathBuf, lock: RunLock) -> Result<Self> {
        let read = |e| fault::sql("read the run store", &path, &e);
        let (last_seq, last_step): (i64, i64) = connection
            .query_row("SELECT last_seq, last_step FROM head", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .map_err(read)?;
        let index = FrameIndex::load(&connection).map_err(read)?;
        Ok(Self {
            connection,
            last_seq: last_seq.cast_unsigned(),
            last_step: Step(last_step.cast_unsigned()),
            index: Some(index),
            chunk_rows: CHUNK_ROWS,
            path,
            _lock: lock,
        })
    }

    /// Returns the sequence number of the last event; 0 before the first.
    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// Returns the path of the store's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Commits either all of the events or none. They get the next sequence numbers.
    ///
    /// # Errors
    /// Returns an error if writing fails, or another program has locked the file.
    pub fn append(&mut self, drafts: Vec<Draft>) -> Result<Vec<Event>> {
        let events: Vec<Event> = (self.last_seq + 1..)
            .zip(drafts)
            .map(|(seq, draft)| Event {
                seq,
                time_us: draft.time_us,
                step: draft.step,
                body: draft.body,
            })
            .collect();
        self.commit(&events)?;
        Ok(events)
    }

    /// Commits either all of the events or none. Their sequence numbers must continue those of the committed
    /// events.
    pub(crate) fn commit(&mut self, events: &[Event]) -> Result<()> {
        let Some(last) = events.last() else {
            return Ok(());
        };
        debug_assert!(
            events
                .iter()
                .map(|e| e.seq)
                .eq(self.last_seq + 1..=last.seq)
        );
        let last_step = events.iter().fold(self.last_step, furthest);
        self.write(events, last, last_step)
            .map_err(|e| fault::sql("write to the run store", &self.path, &e))?;
        self.last_seq = last.seq;
        self.last_step = last_step;
        Ok(())
    }

    fn write(&mut self, events: &[Event], last: &Event, last_step: Step) -> rusqlite::Result<()> {
        let mut index = match self.index.take() {
            Some(index) => index,
            None => FrameIndex::load(&self.connection)?,
        };
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut by_frame: BTreeMap<i64, Vec<&Event>> = BTreeMap::new();
        for event in events {
            if let EventBody::Metrics { values } = &event.body {
                let frame = index.frame_of(&transaction, values)?;
                by_frame.entry(frame).or_default().push(event);
            } else {
                insert_event(&transaction, event)?;
            }
        }
        for (frame, events) in by_frame {
            let unfolded = index.unfolded.entry(frame).or_default();
            let fresh = if *unfolded + events.len() < self.chunk_rows {
                &events[..]
            } else {
                let left = fold(&transaction, frame, *unfolded, &events, self.chunk_rows)?;
                *unfolded = 0;
                &events[events.len() - left..]
            };
            *unfolded += fresh.len();
            for event in fresh {
                insert_metrics(&transaction, frame, event)?;
            }
        }
        transaction
            .prepare_cached("UPDATE head SET last_seq = ?, last_step = ?, last_time_us = ?")?
            .execute((
                last.seq.cast_signed(),
                last_step.0.cast_signed(),
                last.time_us,
            ))?;
        transaction.commit()?;
        self.index = Some(index);
        Ok(())
    }

    /// Makes the writer fold a frame at this many rows, so that a test does not need thousands of events.
    #[cfg(test)]
    pub(crate) fn fold_at(mut self, rows: usize) -> Self {
        self.chunk_rows = rows;
        self
    }

    /// Limits the file to this many pages, like a full disk.
    #[cfg(test)]
    pub(crate) fn limit_pages(&self, pages: u32) {
        self.connection
            .pragma_update(None, "max_page_count", pages)
            .expect("a limit");
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Moves the content of the log into the store's file, which then contains all events. If a reader
        // prevents this, the log remains intact next to that file.
        let _ = self
            .connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
    }
}

/// Syncs the committed events to disk, so that a power failure loses none of them. After a commit alone, the
/// system decides when to write them to disk.
///
/// This function does not sync `events.db` itself. SQLite syncs that file before it discards the log. Opening
/// and closing it here, in the writer's process, would release the writer's locks.
///
/// # Errors
/// Returns an error if a sync fails.
pub fn sync_log(run_dir: &Path) -> Result<()> {
    let log = run_dir.join(format!("{FILE}-wal"));
    let synced = match File::open(&log) {
        Ok(file) => file.sync_all(),
        // With a rollback journal, there is no log, and a commit is on disk when it returns.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => Err(e),
    };
    synced
        .and_then(|()| File::open(run_dir)?.sync_all())
        .map_err(|e| Error::io("sync the run's events to disk", &log, &e))
}

/// Returns the run's last step after this event.
fn furthest(so_far: Step, event: &Event) -> Step {
    match event.body {
        EventBody::RunStarted { .. } | EventBody::Superseded { .. } => event.step,
        _ => so_far.max(event.step),
    }
}

fn no_run(run_dir: &Path) -> Error {
    Error::new(
        ErrorKind::Config,
        format!("no run in the folder: {}", run_dir.display()),
    )
    .hint("list the runs with `host runs list`")
}

fn make_run(connection: &Connection, record: &RunRecord) -> rusqlite::Result<()> {
    let transaction = connection.unchecked_transaction()?;
    schema::make_tables(&transaction)?;
    transaction.execute(
        "INSERT INTO run(id, name, created_us, config_json) VALUES (1, ?, ?, ?)",
        (&record.name, record.created_us, &record.config_json),
    )?;
    transaction.execute("INSERT INTO head VALUES (1, 0, 0, ?)", [record.created_us])?;
    transaction.commit()
}

/// Sets the journal. With a write-ahead log, `synchronous = NORMAL` loses nothing when the process dies. A
/// power failure can lose the last commits, but the file stays consistent.
fn prepare(connection: &Connection, path: &Path, journal: Journal) -> Result<()> {
    let wal = journal == Journal::Automatic && !on_network(path);
    let set = || -> rusqlite::Result<()> {
        let mode = |name: &str| -> rusqlite::Result<String> {
            connection.pragma_update_and_check(None, "journal_mode", name, |row| row.get(0))
        };
        // If SQLite cannot set the mode, it returns either the mode that remains set or an error, depending
        // on the cause.
        if !(wal && mode("WAL").is_ok_and(|got| got == "wal")) {
            mode("TRUNCATE")?;
        }
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "journal_size_limit", 16 << 20)?;
        connection.pragma_update(None, "foreign_keys", false)
    };
    set().map_err(|e| fault::sql("open the run store", path, &e))
}

/// Whether several machines can share the file system. SQLite then needs a rollback journal: the index of a
/// write-ahead log is in memory, which only processes of one machine can share.
fn on_network(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|fs| is_shared(fs.f_type))
}

/// Whether file systems of this `statfs` type can be shared. Returns true for types where this depends on the
/// mount, because a rollback journal always works.
fn is_shared(f_type: i64) -> bool {
    const SHARED: [u32; 23] = [
        0x6969,      // NFS
        0x517b,      // SMB
        0xfe53_4d42, // SMB2
        0xff53_4d42, // CIFS
        0x0102_1997, // 9P
        0x00c3_6400, // Ceph
        0x0bd0_0bd0, // Lustre
        0x4750_4653, // GPFS
        0x5346_414f, // AFS
        0x6b41_4653, // AFS in the kernel
        0x7375_7245, // Coda
        0x7461_636f, // OCFS2
        0x0116_1970, // GFS2
        0x6163_6673, // ACFS
        0x1983_0326, // BeeGFS
        0x2003_0528, // OrangeFS
        0xaad7_aaea, // PanFS
        0xbeef_dead, // StorNext
        0x0131_11a8, // IBRIX
        0x786f_4256, // VirtualBox's shared folders
        0xbacb_acbc, // VMware's shared folders
        0x7c7c_6673, // Parallels' shared folders
        0x6573_5546, // FUSE: sshfs and the like, virtiofs
    ];
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "file system magics have 32 bits"
    )]
    SHARED.contains(&(f_type as u32))
}

fn insert_event(connection: &Connection, event: &Event) -> rusqlite::Result<()> {
    let (kind, body) = event_row::encode(&event.body)
        .map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))?;
    connection
        .prepare_cached(
            "INSERT INTO events(seq, step, time_us, kind, body) VALUES (?, ?, ?, ?, ?)",
        )?
        .execute((
            event.seq.cast_signed(),
            event.step.0.cast_signed(),
            event.time_us,
            kind,
            body,
        ))?;
    Ok(())
}

fn insert_metrics(connection: &Connection, frame: i64, event: &Event) -> rusqlite::Result<()> {
    let values = chunk::encode_row(values_of(event).iter().map(|value| value.value));
    connection
        .prepare_cached(
            "INSERT INTO events(seq, step, time_us, frame, body) VALUES (?, ?, ?, ?, ?)",
        )?
        .execute((
            event.seq.cast_signed(),
            event.step.0.cast_signed(),
            event.time_us,
            frame,
            values,
        ))?;
    Ok(())
}

/// Folds a frame's stored rows and then its fresh events into as many chunks of `chunk_rows` rows as
/// possible. Together, they must fill at least one chunk. All stored rows are folded, since they are fewer
/// than a chunk needs. Returns how many fresh events are not folded.
fn fold(
    connection: &Connection,
    frame: i64,
    unfolded: usize,
    fresh: &[&Event],
    chunk_rows: usize,
) -> rusqlite::Result<usize> {
    let width = fresh.first().map_or(0, |event| values_of(event).len());
    let total = unfolded + fresh.len();
    let mut places = Vec::with_capacity(total);
    let mut columns = vec![Vec::with_capacity(total); width];
    if unfolded > 0 {
        let mut query = connection.prepare_cached(
            "SELECT seq, step, time_us, body FROM events WHERE frame = ? ORDER BY seq",
        )?;
        let mut rows = query.query([frame])?;
        while let Some(row) = rows.next()? {
            places.push(Place {
                seq: row.get::<_, i64>(0)?.cast_unsigned(),
                step: row.get::<_, i64>(1)?.cast_unsigned(),
                time_us: row.get(2)?,
            });
            let values = chunk::decode_row(row.get_ref(3)?.as_blob()?)
                .map_err(|_| rusqlite::Error::IntegralValueOutOfRange(3, 0))?;
            for (column, value) in columns.iter_mut().zip(values) {
                column.push(value);
            }
        }
        connection
            .prepare_cached("DELETE FROM events WHERE frame = ?")?
            .execute([frame])?;
    }
    for event in fresh {
        places.push(Place {
            seq: event.seq,
            step: event.step.0,
            time_us: event.time_us,
        });
        for (column, value) in columns.iter_mut().zip(values_of(event)) {
            column.push(value.value);
        }
    }
    let left = places.len() % chunk_rows;
    for start in (0..places.len() - left).step_by(chunk_rows) {
        let rows = start..start + chunk_rows;
        insert_chunk(
            connection,
            frame,
            &places[rows.clone()],
            columns.iter().map(|c| &c[rows.clone()]),
        )?;
    }
    connection
        .prepare_cached("UPDATE frames SET folded = 1 WHERE id = ? AND folded = 0")?
        .execute([frame])?;
    Ok(left)
}

fn insert_chunk<'a>(
    connection: &Connection,
    frame: i64,
    places: &[Place],
    columns: impl Iterator<Item = &'a [f64]>,
) -> rusqlite::Result<()> {
    let seqs = || places.iter().map(|place| place.seq);
    let steps = || places.iter().map(|place| place.step);
    connection
        .prepare_cached(
            "INSERT INTO chunks(frame, first_seq, last_seq, rows, min_step, max_step, axis)
             VALUES (?, ?, ?, ?, ?, ?, ?)",
        )?
        .execute((
            frame,
            seqs().next().unwrap_or_default().cast_signed(),
            seqs().next_back().unwrap_or_default().cast_signed(),
            places.len(),
            steps().min().unwrap_or_default().cast_signed(),
            steps().max().unwrap_or_default().cast_signed(),
            chunk::encode_axis(places),
        ))?;
    let chunk = connection.last_insert_rowid();
    let mut insert =
        connection.prepare_cached("INSERT INTO columns(chunk, place, data) VALUES (?, ?, ?)")?;
    for (place, values) in columns.enumerate() {
        insert.execute((chunk, place, chunk::encode_column(values)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_file_systems_are_recognized() {
        for shared in [0x6969, 0xff53_4d42, 0x0102_1997, 0x6573_5546] {
            assert!(is_shared(shared), "{shared:#x}");
        }
        // ext, XFS, Btrfs, ZFS, tmpfs, overlayfs.
        for own in [
            0xef53,
            0x5846_5342,
            0x9123_683e,
            0x2fc1_2fc1,
            0x0102_1994,
            0x794c_7630,
        ] {
            assert!(!is_shared(own), "{own:#x}");
        }
    }
}
