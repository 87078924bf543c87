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

/// Rows of a chunk: large enough that a million points are a thousand reads, small enough that the
/// rows not yet folded are quickly gone through.
const CHUNK_ROWS: usize = 1024;

/// How SQLite keeps a commit whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Journal {
    /// A write-ahead log, so that readers and the writer never wait for one another; a rollback
    /// journal where the file system cannot have the former, as network file systems cannot.
    #[default]
    Automatic,
    /// A rollback journal.
    Rollback,
}

/// The one writer of a run. It holds the run's lock until it is dropped.
#[derive(Debug)]
pub struct Writer {
    connection: Connection,
    path: PathBuf,
    last_seq: u64,
    /// As [`RunRow::last_step`](crate::RunRow::last_step).
    last_step: Step,
    /// Absent after a commit that failed, until it is made anew.
    index: Option<FrameIndex>,
    chunk_rows: usize,
    // Last, so that the file is closed before another may open it.
    _lock: RunLock,
}

impl Writer {
    /// Makes the run's folder and store.
    ///
    /// # Errors
    /// If the folder already has a run, if another process writes to it, or if the disk refuses.
    pub fn create(run_dir: &Path, record: &RunRecord) -> Result<Self> {
        Self::create_with(run_dir, record, Journal::Automatic)
    }

    /// Like [`Writer::create`], with a journal of the caller's choice.
    ///
    /// # Errors
    /// As [`Writer::create`].
    pub fn create_with(run_dir: &Path, record: &RunRecord, journal: Journal) -> Result<Self> {
        record.name.parse::<RunName>()?;
        std::fs::create_dir_all(run_dir).map_err(|e| Error::io("make the folder", run_dir, &e))?;
        Self::make(run_dir, RunLock::take(run_dir)?, record, journal)
    }

    fn make(run_dir: &Path, lock: RunLock, record: &RunRecord, journal: Journal) -> Result<Self> {
        let path = run_dir.join(FILE);
        let connection = schema::open_to_write(&path)?;
        if schema::recognise(&connection, &path)? == Found::Run {
            return Err(Error::new(
                ErrorKind::Config,
                format!("the folder already has a run: {}", run_dir.display()),
            )
            .hint("choose another name, or resume that run with `host resume`"));
        }
        prepare(&connection, &path, journal)?;
        make_run(&connection, record).map_err(|e| fault::sql("make the run store", &path, &e))?;
        Self::start(connection, path, lock)
    }

    /// Opens the store of a run that goes on. Sequence numbers go on where they ended. A store of an
    /// older format gets this program's.
    ///
    /// # Errors
    /// If there is no run, its format is newer than this program, or another process writes to it.
    pub fn open(run_dir: &Path) -> Result<Self> {
        Self::open_with(run_dir, Journal::Automatic)
    }

    /// Like [`Writer::open`], with a journal of the caller's choice.
    ///
    /// # Errors
    /// As [`Writer::open`].
    pub fn open_with(run_dir: &Path, journal: Journal) -> Result<Self> {
        let path = run_dir.join(FILE);
        if !path.is_file() {
            return Err(no_run(run_dir));
        }
        Self::take_up(run_dir, RunLock::take(run_dir)?, journal)
    }

    /// Opens the store of a run that goes on, whatever became of it: it is read as a whole, and one that is
    /// damaged or gone is set aside, and a new one begun in its place, as `record` says. What was lost is
    /// told.
    ///
    /// # Errors
    /// As of [`Writer::open`]; or if the file system refuses.
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
        if schema::recognise(&connection, &path)? == Found::Empty {
            return Err(no_run(run_dir));
        }
        prepare(&connection, &path, journal)?;
        migrate(&mut connection, MIGRATIONS)
            .map_err(|e| fault::sql("bring the run store to this program's format", &path, &e))?;
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

    /// The sequence number of the last event; 0 before the first.
    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// The store's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Commits events: all, or none. They get the next sequence numbers.
    ///
    /// # Errors
    /// If the disk refuses, or another program holds the file.
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

    /// Commits events whose sequence numbers follow the last one: all, or none.
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

    /// Folds at so many rows, so that a test needs no thousands of events.
    #[cfg(test)]
    pub(crate) fn fold_at(mut self, rows: usize) -> Self {
        self.chunk_rows = rows;
        self
    }

    /// Lets the file grow to so many pages and no further, as a full disk would.
    #[cfg(test)]
    pub(crate) fn limit_pages(&self, pages: u32) {
        self.connection
            .pragma_update(None, "max_page_count", pages)
            .expect("a limit");
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Leaves one file where no reader prevents it; if one does, the log stays beside it, whole.
        let _ = self
            .connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
    }
}

/// Brings what was committed to the disk, so that a failure of the power takes none of it. A commit alone
/// lets the system choose the moment.
///
/// It leaves `events.db` itself to SQLite, which brings it to the disk before it takes the log for done:
/// whoever opens and closes that file in the writer's process takes the writer's locks away.
///
/// # Errors
/// The disk refuses.
pub fn sync_log(run_dir: &Path) -> Result<()> {
    let log = run_dir.join(format!("{FILE}-wal"));
    let synced = match File::open(&log) {
        Ok(file) => file.sync_all(),
        // With a rollback journal a commit is on the disk when it is done.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => Err(e),
    };
    synced
        .and_then(|()| File::open(run_dir)?.sync_all())
        .map_err(|e| Error::io("bring the run's events to the disk", &log, &e))
}

/// How far the run has come by this event.
fn furthest(so_far: Step, event: &Event) -> Step {
    match event.body {
        EventBody::RunStarted { .. } | EventBody::Superseded { .. } => event.step,
        _ => so_far.max(event.step),
    }
}

fn no_run(run_dir: &Path) -> Error {
    Error::new(
        ErrorKind::Config,
        format!("there is no run in the folder: {}", run_dir.display()),
    )
    .hint("`host runs list` shows the runs there are")
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

/// Chooses the journal. With a write-ahead log, `synchronous = NORMAL` loses nothing when the process
/// dies, and at most the last commits, never consistency, when the power fails.
fn prepare(connection: &Connection, path: &Path, journal: Journal) -> Result<()> {
    let wal = journal == Journal::Automatic && !on_network(path);
    let set = || -> rusqlite::Result<()> {
        let mode = |name: &str| -> rusqlite::Result<String> {
            connection.pragma_update_and_check(None, "journal_mode", name, |row| row.get(0))
        };
        // SQLite answers with the mode it could set, or with an error, by the kind of refusal.
        if !(wal && mode("WAL").is_ok_and(|got| got == "wal")) {
            mode("TRUNCATE")?;
        }
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "journal_size_limit", 16 << 20)?;
        connection.pragma_update(None, "foreign_keys", false)
    };
    set().map_err(|e| fault::sql("open the run store", path, &e))
}

/// Whether the file system is shared by machines, which have no memory in common for a log's index.
fn on_network(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|fs| is_shared(fs.f_type))
}

/// Whether file systems of this type, as `statfs` says it, may be. With some it depends on the mount: a
/// rollback journal is right on all.
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
        0x6b41_4653, // AFS, the kernel's own
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
        0xbacb_acbc, // VMware's
        0x7c7c_6673, // Parallels'
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

/// Folds a frame's rows and its fresh events into chunks of `chunk_rows` as far as they go. Returns
/// how many of the fresh events are left over; of the rows none is, as they are fewer than a chunk.
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
    fn file_systems_of_several_machines_are_told_from_those_of_one() {
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
