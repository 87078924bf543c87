use std::path::{Path, PathBuf};

use host_core::{Error, Result};

use rusqlite::Connection;

use crate::chunk::{self, Malformed};
use crate::frame::FrameIndex;
use crate::reader::ReadError;
use crate::schema::{self, Mark};
use crate::{FILE, Reader, fault};

/// A store that could not be used and was set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// What was wrong with the store.
    pub why: String,
    /// The store's new file name in the run's folder; `None` if there was no file left to keep.
    pub kept_as: Option<String>,
}

/// The beginning of the name of a store that was set aside; a number follows.
const DAMAGED: &str = "events.db.damaged-";
/// Suffixes of the files that SQLite keeps next to a database.
const BESIDE: [&str; 3] = ["-wal", "-journal", "-shm"];
/// Number of events to read at once.
const PAGE: usize = 4096;

/// Reads the whole store and returns a description of its damage; `None` if it is not damaged. Only for the
/// run's writer, which holds the lock.
///
/// # Errors
/// Returns an error if the store cannot be examined: on a system error, or if another program holds the file.
pub(crate) fn damage(run_dir: &Path) -> Result<Option<String>> {
    let path = run_dir.join(FILE);
    match std::fs::symlink_metadata(&path) {
        Ok(file) if !file.is_file() => return Ok(Some("it is not a regular file".to_owned())),
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Some("it is missing".to_owned()));
        }
        Err(e) => return Err(Error::io("read the run store", &path, &e)),
    }
    match examine(run_dir, &path) {
        Ok(()) => Ok(None),
        Err(ReadError::Damaged(what)) => Ok(Some(what)),
        Err(ReadError::Sql(error)) if fault::is_damage(&error) => Ok(Some(error.to_string())),
        Err(ReadError::Sql(error)) => Err(fault::sql("read the run store", &path, &error)),
    }
}

fn examine(run_dir: &Path, path: &Path) -> Result<(), ReadError> {
    let connection = schema::open_existing(path)?;
    match schema::mark(&connection)? {
        Mark::Run => {}
        // A newer format is not damage. The writer itself reports it.
        Mark::Newer(_) => return Ok(()),
        Mark::Blank => return Err(ReadError::damaged("it is empty")),
        Mark::Foreign => return Err(ReadError::damaged("it is not a run store")),
    }
    let found: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if found != "ok" {
        return Err(ReadError::damaged(found.replace('\n', " ")));
    }
    drop(connection);
    let reader = Reader::of(schema::open_existing(path)?, run_dir)
        .map_err(|e| ReadError::damaged(e.to_string()))?;
    reader.attempt(|tx| {
        reader.run_row(tx, false)?;
        FrameIndex::load(tx)?;
        // Without this check, the store could contain events after the last sequence number in the table
        // `head`, and new events would reuse their numbers.
        reader.check_complete(tx)?;
        check_chunks(tx)
    })?;
    let mut cursor = 0;
    loop {
        let page = reader.attempt(|tx| reader.page(tx, cursor, PAGE))?;
        match page.last() {
            Some(last) => cursor = last.seq,
            None => return Ok(()),
        }
    }
}

/// Compares each row of the table `chunks` with the content of its chunk, since the row alone decides which
/// reads use the chunk.
fn check_chunks(connection: &Connection) -> Result<(), ReadError> {
    let mut chunks = connection
        .prepare("SELECT id, rows, first_seq, last_seq, min_step, max_step, axis FROM chunks")?;
    let mut rows = chunks.query([])?;
    while let Some(row) = rows.next()? {
        let id: i64 = row.get(0)?;
        let damaged = || ReadError::damaged(format!("chunk {id} cannot be read"));
        let number = |column| row.get::<_, i64>(column).map(i64::cast_unsigned);
        let mut places = Vec::new();
        chunk::decode_axis(row.get_ref(6)?.as_blob()?, row.get(1)?, &mut places)
            .map_err(|Malformed| damaged())?;
        let seqs = places.iter().map(|place| place.seq);
        let steps = places.iter().map(|place| place.step);
        let stated = (
            Some(number(2)?),
            Some(number(3)?),
            Some(number(4)?),
            Some(number(5)?),
        );
        let found = (
            seqs.clone().min(),
            seqs.clone().max(),
            steps.clone().min(),
            steps.max(),
        );
        if stated != found || !seqs.is_sorted() {
            return Err(damaged());
        }
    }
    Ok(())
}

/// Reads the time of the run's creation from a damaged store. Returns `None` if it cannot be read.
pub(crate) fn created_us(run_dir: &Path) -> Option<i64> {
    let connection = schema::open_existing(&run_dir.join(FILE)).ok()?;
    connection
        .query_row("SELECT created_us FROM run", [], |row| row.get(0))
        .ok()
}

/// Renames the store's files, so that they are kept for recovery but no longer used. Returns the store's new
/// file name; `None` if there is no file.
///
/// # Errors
/// Returns an error if a file cannot be renamed.
pub(crate) fn set_aside(run_dir: &Path) -> Result<Option<String>> {
    let kept_as = (1..)
        .map(|number| format!("{DAMAGED}{number}"))
        .find(|name| is_free(run_dir, name));
    let kept_as = kept_as.unwrap_or_default();
    let mut is_any = false;
    // The database is renamed before its log. In the opposite order, a kill between the two would leave the
    // database without its log. The next start would mistake this database for a complete store that ends
    // earlier. In this order, a kill would leave a log without a database. The next start sets such a log
    // aside.
    for suffix in [""].into_iter().chain(BESIDE) {
        let from = run_dir.join(format!("{FILE}{suffix}"));
        match std::fs::rename(&from, run_dir.join(format!("{kept_as}{suffix}"))) {
            Ok(()) => is_any |= suffix != "-shm",
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io("set the damaged run store aside", &from, &e)),
        }
    }
    Ok(is_any.then_some(kept_as))
}

/// Returns the stores of a run that were set aside, sorted by name.
pub fn set_aside_stores(run_dir: &Path) -> Vec<PathBuf> {
    let is_one = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        let number = name.and_then(|name| name.strip_prefix(DAMAGED));
        number.is_some_and(|number| number.parse::<u32>().is_ok())
    };
    let entries = std::fs::read_dir(run_dir).into_iter().flatten();
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(is_one)
        .collect();
    found.sort();
    found
}

fn is_free(run_dir: &Path, name: &str) -> bool {
    let mut all = BESIDE.into_iter().chain([""]);
    all.all(|suffix| std::fs::symlink_metadata(run_dir.join(format!("{name}{suffix}"))).is_err())
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::Writer;
    use crate::tests::{draft, metrics, record};

    /// Creates a store of several pages with chunks, rows and texts, and returns the bytes of its file.
    fn store(run_dir: &Path) -> Vec<u8> {
        let mut writer = Writer::create(run_dir, &record())
            .expect("a run")
            .fold_at(64);
        for step in 1..400 {
            let message = format!("step {step}: {}", "word ".repeat(20));
            let events = vec![
                draft(step, metrics(&[("a", 1.5), ("b", -2.5)])),
                draft(step, host_core::EventBody::Warning { message }),
            ];
            writer.append(events).expect("written");
        }
        drop(writer);
        std::fs::read(run_dir.join(FILE)).expect("the file")
    }

    /// Returns damaged copies of a store's file, each with a description.
    fn damages(good: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut all = vec![
            ("zeroed".to_owned(), vec![0; good.len()]),
            ("text".to_owned(), b"no database, but text".repeat(300)),
            (
                "header zeroed".to_owned(),
                [&[0; 100], &good[100..]].concat(),
            ),
        ];
        for length in [0, 1, 16, 99, 100, 512, 4095, 4096, 4097] {
            all.push((format!("cut to {length}"), good[..length].to_vec()));
        }
        for part in 1..20 {
            let length = good.len() * part / 20;
            all.push((format!("cut to {length}"), good[..length].to_vec()));
        }
        all.push(("a byte short".to_owned(), good[..good.len() - 1].to_vec()));
        for page in (1..good.len() / 4096).step_by(3) {
            let mut bytes = good.to_vec();
            bytes[page * 4096..(page + 1) * 4096].fill(0);
            all.push((format!("page {page} zeroed"), bytes));
        }
        all
    }

    /// SQLite's own checks do not detect this damage.
    #[test]
    fn rows_that_contradict_each_other_are_damage() {
        for sql in [
            "UPDATE head SET last_seq = 62",
            "UPDATE head SET last_seq = 797",
            "UPDATE head SET last_seq = 799",
            "UPDATE head SET last_seq = -1",
            "DELETE FROM events WHERE seq = (SELECT max(seq) FROM events)",
            "DELETE FROM events WHERE seq = (SELECT min(seq) FROM events)",
            "DELETE FROM chunks WHERE id = 1",
            "DELETE FROM columns WHERE chunk = 1 AND place = 0",
            "UPDATE chunks SET rows = rows + 1 WHERE id = 1",
            "UPDATE chunks SET first_seq = first_seq - 1 WHERE id = 1",
            "UPDATE chunks SET first_seq = first_seq + 1 WHERE id = 1",
            "UPDATE chunks SET last_seq = last_seq - 1 WHERE id = 1",
            "UPDATE chunks SET last_seq = last_seq + 1 WHERE id = 1",
            "UPDATE chunks SET min_step = min_step - 1 WHERE id = 1",
            "UPDATE chunks SET max_step = max_step + 1 WHERE id = 1",
            "INSERT INTO columns SELECT chunk, place + 100, data FROM columns WHERE chunk = 1 LIMIT 1",
            "UPDATE events SET seq = 900 WHERE seq = 2",
            "UPDATE events SET kind = 'other' WHERE seq = 2",
            "UPDATE events SET body = '{' WHERE seq = 2",
            "UPDATE events SET body = CAST(x'22ff22' AS TEXT) WHERE seq = 2",
            "UPDATE events SET kind = CAST(x'ff' AS TEXT) WHERE seq = 2",
            "UPDATE run SET name = CAST(x'ff' AS TEXT)",
            "UPDATE run SET config_json = CAST(x'7bff7d' AS TEXT)",
            "UPDATE series SET name = CAST(x'ff' AS TEXT) WHERE name = 'a'",
            "INSERT INTO series(name) VALUES (CAST(x'ff' AS TEXT))",
            "DELETE FROM run",
            "DELETE FROM head",
        ] {
            let dir = tempfile::tempdir().expect("a folder");
            store(dir.path());
            let connection = Connection::open(dir.path().join(FILE)).expect("opened");
            connection
                .pragma_update(None, "foreign_keys", false)
                .expect("set");
            assert_eq!(connection.execute(sql, []).expect(sql), 1, "{sql}");
            drop(connection);
            let (writer, loss) = Writer::restore(dir.path(), &record()).expect(sql);
            assert!(loss.is_some(), "accepted as undamaged: {sql}");
            assert_eq!(writer.last_seq(), 0, "{sql}");
        }
    }

    #[test]
    fn a_damaged_store_is_set_aside_and_replaced_by_a_new_one() {
        let dir = tempfile::tempdir().expect("a folder");
        let good = store(dir.path());
        let path = dir.path().join(FILE);
        let (writer, loss) = Writer::restore(dir.path(), &record()).expect("whole");
        assert_eq!((writer.last_seq(), loss), (798, None));
        drop(writer);
        for (number, (what, bytes)) in (1..).zip(damages(&good)) {
            std::fs::write(&path, &bytes).expect("written");
            let (writer, loss) = Writer::restore(dir.path(), &record()).expect(&what);
            let loss = loss.unwrap_or_else(|| panic!("{what}: accepted as undamaged"));
            let kept_as = loss.kept_as.expect("kept");
            assert_eq!(kept_as, format!("events.db.damaged-{number}"), "{what}");
            // Even if SQLite opened the file, it did not shorten it.
            let kept = std::fs::read(dir.path().join(kept_as)).expect("kept");
            assert_eq!(kept.len(), bytes.len(), "{what}");
            assert_eq!(writer.last_seq(), 0, "{what}");
            drop(writer);
            assert_eq!(damage(dir.path()).expect("readable"), None, "{what}");
        }
        std::fs::remove_file(&path).expect("removed");
        let (_, loss) = Writer::restore(dir.path(), &record()).expect("made");
        assert_eq!(loss.expect("a loss").kept_as, None);
    }

    /// The process was killed after it renamed the database, and before it renamed the log.
    #[test]
    fn a_log_without_a_database_is_set_aside() {
        let dir = tempfile::tempdir().expect("a folder");
        drop(Writer::create(dir.path(), &record()).expect("a run"));
        let (path, log) = (dir.path().join(FILE), dir.path().join("events.db-wal"));
        let held = Connection::open(&path).expect("opened");
        held.execute_batch("PRAGMA journal_mode = WAL; UPDATE head SET last_step = 7")
            .expect("written");
        let bytes = std::fs::read(&log).expect("a log");
        assert!(!bytes.is_empty());
        drop(held);
        std::fs::rename(&path, dir.path().join("events.db.damaged-1")).expect("renamed");
        std::fs::write(&log, &bytes).expect("written");

        let (writer, loss) = Writer::restore(dir.path(), &record()).expect("a new store");
        assert_eq!(
            loss.expect("a loss").kept_as.as_deref(),
            Some("events.db.damaged-2")
        );
        assert_eq!(writer.last_seq(), 0);
        let kept = std::fs::read(dir.path().join("events.db.damaged-2-wal")).expect("the log");
        assert_eq!(kept, bytes);
    }

    #[test]
    fn reading_a_damaged_store_returns_the_original_data_or_an_error() {
        let dir = tempfile::tempdir().expect("a folder");
        let good = store(dir.path());
        let path = dir.path().join(FILE);
        let read = || {
            let reader = Reader::open(dir.path())?;
            let (history, events) = (reader.history("a", 10_000), reader.events_after(0, 10_000));
            let (series, ledger) = (reader.series(), reader.deliveries());
            Ok::<_, Error>((history, events, series, ledger))
        };
        let (history, events, series, ledger) = read().expect("readable");
        let whole = (
            history.expect("a"),
            events.expect("b"),
            series.expect("c"),
            ledger.expect("d"),
        );
        let mut refused = 0;
        for (what, bytes) in damages(&good) {
            std::fs::write(&path, &bytes).expect("written");
            let Ok((history, events, series, ledger)) = read() else {
                refused += 1;
                continue;
            };
            refused += u32::from(history.is_err());
            assert!(
                history.is_err() || history.is_ok_and(|found| found == whole.0),
                "{what}"
            );
            assert!(
                events.is_err() || events.is_ok_and(|found| found == whole.1),
                "{what}"
            );
            assert!(
                series.is_err() || series.is_ok_and(|found| found == whole.2),
                "{what}"
            );
            assert!(
                ledger.is_err() || ledger.is_ok_and(|found| found == whole.3),
                "{what}"
            );
        }
        assert!(refused > 20, "{refused}");
    }

    #[test]
    fn a_store_that_cannot_be_examined_is_not_set_aside() {
        let dir = tempfile::tempdir().expect("a folder");
        store(dir.path());
        let file = Connection::open(dir.path().join(FILE)).expect("the file");
        file.pragma_update(None, "user_version", 1000).expect("set");
        let newer = Writer::restore(dir.path(), &record()).expect_err("newer");
        assert!(newer.message().contains("format 1000"), "{newer}");
        drop(file);
        let file = Connection::open(dir.path().join(FILE)).expect("the file");
        file.pragma_update(None, "user_version", 1).expect("set");
        file.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE; DELETE FROM head")
            .expect("held");
        let held = Writer::restore(dir.path(), &record()).expect_err("held");
        assert!(
            held.hint_text()
                .expect("a hint")
                .contains("another program"),
            "{held}"
        );
        assert!(set_aside_stores(dir.path()).is_empty());
    }
}
