use rusqlite::{Connection, TransactionBehavior};

/// Converts the tables of one format, with their content, to the next format.
pub(crate) type Migration = fn(&Connection) -> rusqlite::Result<()>;

/// The migrations from format 1 to 2, from 2 to 3, and so on. The newest format is the number of migrations
/// plus one. A released migration must never change, since files were already converted with it.
pub(crate) const MIGRATIONS: &[Migration] = &[];

/// Converts the file to the newest format in one transaction. Only the run's writer may call this; a reader
/// does not convert an older file.
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

/// Returns the migrations that the file still needs.
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
    fn a_file_is_converted_from_any_format_to_the_newest() {
        for steps in 0..=2 {
            let dir = tempfile::tempdir().expect("a folder");
            let mut writer = Writer::create(dir.path(), &record()).expect("a run");
            let events = vec![draft(1, metrics(&[("lr", 0.5)]))];
            let written = writer.append(events).expect("written");
            drop(writer);
            let mut file = Connection::open(dir.path().join(FILE)).expect("the file");
            let all: [Migration; 2] = [add_host, rename_series];
            // First converts the file to an intermediate format, as an older program would. Then converts it
            // to the newest format. The third conversion finds nothing to do.
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
            // Set the format to 1, because the reader would reject the test's format, which is newer than
            // this program's.
            file.pragma_update(None, "user_version", 1).expect("set");
            let events = Reader::open(dir.path()).and_then(|reader| reader.events_after(0, 10));
            let events = events.expect("readable");
            assert_eq!(events[0].seq, written[0].seq);
            assert_eq!(events[0].body, metrics(&[("here/lr", 0.5)]));
        }
    }

    #[test]
    fn a_failed_migration_leaves_the_file_unchanged() {
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
