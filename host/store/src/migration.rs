use rusqlite::{Connection, TransactionBehavior};

/// Turns the tables of one format into those of the next, what they hold included.
pub(crate) type Migration = fn(&Connection) -> rusqlite::Result<()>;

/// From format 1 to 2, from 2 to 3 and so on: the newest format is how many there are, and one. None
/// is changed once it was released, for there are files that it has changed.
pub(crate) const MIGRATIONS: &[Migration] = &[];

/// Brings the file to the newest format: all the way in one commit, or not at all. It is for the run's
/// writer alone; a reader takes an older file as it lies.
pub(crate) fn migrate(
    connection: &mut Connection,
    migrations: &[Migration],
) -> rusqlite::Result<()> {
    if pending(connection, migrations)?.is_empty() {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for migration in pending(&transaction, migrations)? {
        migration(&transaction)?;
    }
    let newest = 1 + migrations.len();
    transaction.pragma_update(None, "user_version", newest)?;
    transaction.commit()
}

/// Those that the file has not seen.
fn pending<'a>(
    connection: &Connection,
    migrations: &'a [Migration],
) -> rusqlite::Result<&'a [Migration]> {
    let format: usize = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    Ok(migrations.get(format.saturating_sub(1)..).unwrap_or(&[]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{draft, metrics, record};
    use crate::{FILE, Reader, Writer};

    fn add_host(connection: &Connection) -> rusqlite::Result<()> {
        connection.execute_batch("ALTER TABLE run ADD COLUMN host TEXT NOT NULL DEFAULT 'here'")
    }

    fn rename_series(connection: &Connection) -> rusqlite::Result<()> {
        connection.execute_batch("UPDATE series SET name = (SELECT host FROM run) || '/' || name")
    }

    fn fail(connection: &Connection) -> rusqlite::Result<()> {
        connection.execute_batch("DELETE FROM events; SELECT * FROM no_such_table")
    }

    fn format(connection: &Connection) -> i32 {
        let format = connection.pragma_query_value(None, "user_version", |row| row.get(0));
        format.expect("readable")
    }

    #[test]
    fn a_file_is_brought_from_any_format_to_the_newest() {
        for steps in 0..=2 {
            let dir = tempfile::tempdir().expect("a folder");
            let mut writer = Writer::create(dir.path(), &record()).expect("a run");
            let events = vec![draft(1, metrics(&[("lr", 0.5)]))];
            let written = writer.append(events).expect("written");
            drop(writer);
            let mut file = Connection::open(dir.path().join(FILE)).expect("the file");
            let all: [Migration; 2] = [add_host, rename_series];
            // First to this one, by an older program, and then to the newest; and once more.
            for migrations in [&all[..steps], &all, &all] {
                migrate(&mut file, migrations).expect("migrated");
                let newest = i32::try_from(1 + migrations.len()).expect("few");
                assert_eq!(format(&file), newest);
            }
            let names: String = file
                .query_row("SELECT group_concat(name) FROM series", [], |row| {
                    row.get(0)
                })
                .expect("readable");
            assert_eq!(names, "here/lr");
            // This program's own reader would refuse the format that it does not know.
            file.pragma_update(None, "user_version", 1).expect("set");
            let events = Reader::open(dir.path()).and_then(|reader| reader.events_after(0, 10));
            let events = events.expect("readable");
            assert_eq!(events[0].seq, written[0].seq);
            assert_eq!(events[0].body, metrics(&[("here/lr", 0.5)]));
        }
    }

    #[test]
    fn a_migration_that_fails_leaves_the_file_as_it_was() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut writer = Writer::create(dir.path(), &record()).expect("a run");
        let events = vec![draft(1, metrics(&[("lr", 0.5)]))];
        let written = writer.append(events).expect("written");
        drop(writer);
        let mut file = Connection::open(dir.path().join(FILE)).expect("the file");
        migrate(&mut file, &[add_host, fail]).expect_err("refused");
        assert_eq!(format(&file), 1);
        file.prepare("SELECT host FROM run")
            .map(drop)
            .expect_err("undone");
        let events = Reader::open(dir.path()).and_then(|reader| reader.events_after(0, 10));
        assert_eq!(events.expect("readable"), written);
    }
}
