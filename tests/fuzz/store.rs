//! Reads damaged run stores. Bytes of the file or rows of the database are changed.
//!
//! The input is a list of changes. Each change is one byte for its kind, followed by its operands. Two reads
//! must give the same result. After a resume has opened the store or replaced it with a new one, the whole
//! store must be readable.
#![no_main]

mod folder;

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use folder::Folder;
use host_core::{Draft, EventBody, MetricValue, Request, Step, StopReason};
use host_store::{FILE, Reader, RunRecord, Writer};
use libfuzzer_sys::fuzz_target;
use rusqlite::types::Value;
use rusqlite::{Connection, params};

static FOLDER: LazyLock<Folder> = LazyLock::new(Folder::new);
/// A run's store. Some of its events are folded into chunks, others are not.
static WHOLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let run = FOLDER.path("whole");
    let mut writer = Writer::create(&run, &record()).expect("a store");
    let metrics = |step: u64| EventBody::Metrics {
        values: vec![
            MetricValue::new("loss/train", 4.0 / (step + 1) as f64),
            MetricValue::new("lr", f64::NAN),
        ],
    };
    let mut bodies = vec![EventBody::RunStarted { generation: 1 }];
    bodies.extend((0..1100).map(metrics));
    bodies.extend([
        EventBody::Request {
            by: "a client".to_owned(),
            request: Request::Pause,
            reason: "why".to_owned(),
        },
        EventBody::Superseded {
            from_step: Step(1000),
            generation: 2,
        },
        EventBody::RunStarted { generation: 2 },
        metrics(1001),
        EventBody::RunFinished {
            reason: StopReason::Interrupted,
            message: String::new(),
        },
    ]);
    let drafts = (0..).zip(bodies).map(|(number, body)| Draft {
        time_us: 1_700_000_000_000_000 + number,
        step: Step(number.cast_unsigned()),
        body,
    });
    writer.append(drafts.collect()).expect("appended");
    drop(writer);
    let connection = Connection::open(run.join(FILE)).expect("opened");
    // Makes the store one file, without a log next to it.
    connection
        .query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(()))
        .expect("one file");
    drop(connection);
    fs::read(run.join(FILE)).expect("read")
});

fn record() -> RunRecord {
    RunRecord {
        name: "run".to_owned(),
        created_us: 1_700_000_000_000_000,
        config_json: r#"{"name":"run","seed":1}"#.to_owned(),
    }
}

/// The columns that can be changed.
const COLUMNS: [(&str, &str); 22] = [
    ("run", "name"),
    ("run", "created_us"),
    ("run", "config_json"),
    ("head", "last_seq"),
    ("head", "last_step"),
    ("head", "last_time_us"),
    ("series", "name"),
    ("frames", "folded"),
    ("events", "seq"),
    ("events", "step"),
    ("events", "time_us"),
    ("events", "frame"),
    ("events", "kind"),
    ("events", "body"),
    ("chunks", "frame"),
    ("chunks", "first_seq"),
    ("chunks", "last_seq"),
    ("chunks", "rows"),
    ("chunks", "min_step"),
    ("chunks", "max_step"),
    ("chunks", "axis"),
    ("columns", "data"),
];

fuzz_target!(|input: &[u8]| {
    let run = FOLDER.path("run");
    fs::create_dir_all(&run).expect("a folder");
    let file = run.join(FILE);
    let mut bytes = WHOLE.clone();
    let mut rows = Vec::new();
    let mut input = Input(input);
    while let Some(change) = input.byte() {
        match change % 4 {
            0 => {
                let at = usize::from(input.number(2) as u16) * 8 + usize::from(change >> 5);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = input.byte().unwrap_or(0);
                }
            }
            1 => bytes.truncate(input.number(3).cast_unsigned() as usize),
            _ => rows.push(Row {
                column: COLUMNS[usize::from(change >> 2) % COLUMNS.len()],
                row: input.number(1),
                value: input.value(),
            }),
        }
    }
    FOLDER.write("run/events.db", &bytes);
    if !rows.is_empty()
        && let Ok(connection) = Connection::open(&file)
    {
        let _ = connection.execute_batch(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA foreign_keys = OFF;
             PRAGMA ignore_check_constraints = ON;",
        );
        for row in rows {
            let _ = row.change(&connection);
        }
    }

    let first = read(&run);
    assert_eq!(first, read(&run), "two reads differ");
    match Writer::restore(&run, &record()) {
        Ok((mut writer, loss)) => {
            let draft = Draft {
                time_us: 1_800_000_000_000_000,
                step: Step(7),
                body: EventBody::RunStarted { generation: 3 },
            };
            writer.append(vec![draft]).expect("appended");
            drop(writer);
            let after = read(&run);
            assert!(after.is_ok(), "{loss:?}, then {after:?}");
        }
        Err(error) => assert!(error.message().contains("events.db"), "no path: {error}"),
    }
    fs::remove_dir_all(run).expect("removed");
});

/// Returns everything that a client can read, as text.
fn read(run: &Path) -> Result<String, String> {
    let words = |error: host_core::Error| error.message().to_owned();
    let reader = Reader::open(run).map_err(words)?;
    let mut said = format!(
        "{:?} {:?}\n",
        reader.run().map_err(words)?,
        reader.is_paused()
    );
    let mut cursor = 0;
    loop {
        let page = reader.events_after(cursor, 500).map_err(words)?;
        let Some(last) = page.last() else { break };
        assert!(last.seq > cursor, "the events never end");
        cursor = last.seq;
        said += &format!("{page:?}\n");
    }
    for series in reader.series().map_err(words)? {
        let history = reader.history(&series.name, 100).map_err(words)?;
        said += &format!("{series:?} {history:?}\n");
    }
    let mut count = 0u64;
    let points = reader.points(
        |_| true,
        |_, _| {
            count += 1;
            Ok(())
        },
    );
    points.map_err(words)?;
    let deliveries = reader.deliveries().map_err(words)?;
    let requests = reader.requests().map_err(words)?;
    Ok(said + &format!("{count} {deliveries:?} {requests:?}"))
}

/// A new value for one column in one row.
struct Row {
    column: (&'static str, &'static str),
    row: i64,
    value: Value,
}

impl Row {
    fn change(self, connection: &Connection) -> rusqlite::Result<usize> {
        let (table, column) = self.column;
        let one = format!("(SELECT rowid FROM {table} LIMIT 1 OFFSET ?1)");
        match self.value {
            // No value: delete the row.
            Value::Null => connection.execute(
                &format!("DELETE FROM {table} WHERE rowid = {one}"),
                params![self.row],
            ),
            value => connection.execute(
                &format!("UPDATE {table} SET {column} = ?2 WHERE rowid = {one}"),
                params![self.row, value],
            ),
        }
    }
}

/// The part of the input that was not read yet. An operand's bytes after the end read as zero.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn number(&mut self, bytes: u32) -> i64 {
        (0..bytes).fold(0, |number, _| {
            number << 8 | i64::from(self.byte().unwrap_or(0))
        })
    }

    fn value(&mut self) -> Value {
        match self.byte().unwrap_or(0) {
            0 => Value::Null,
            1 => Value::Integer(self.number(1)),
            2 => Value::Integer(self.number(8)),
            kind => {
                let (bytes, rest) = self.0.split_at(self.0.len().min(usize::from(kind)));
                self.0 = rest;
                match kind % 2 {
                    0 => Value::Blob(bytes.to_vec()),
                    _ => Value::Text(String::from_utf8_lossy(bytes).into_owned()),
                }
            }
        }
    }
}
