//! Stores that older versions of the program wrote can be read and continued, with all their events
//! unchanged. `formats/N.sql` is a store of format N as SQL. Each new format adds a file, and existing files
//! never change.
#![allow(missing_docs)]

use host_core::{DeliveryState, Draft, Event, EventBody, MetricValue, Step, StopReason};
use host_store::{FILE, Journal, Reader, RunStatus, Writer};

const FORMATS: [(i32, &str); 1] = [(1, include_str!("formats/1.sql"))];

/// The events in each of these stores. Some are folded into a chunk, and some are not. There is at least one
/// event of each kind that the store itself reads.
fn drafts() -> Vec<Draft> {
    let mut bodies = vec![EventBody::RunStarted { generation: 0 }];
    #[expect(clippy::cast_precision_loss, reason = "small")]
    let loss = |step: u64| vec![MetricValue::new("loss/train", 8.0 - step as f64 / 256.0)];
    bodies.extend((1..=1030).map(|step| EventBody::Metrics { values: loss(step) }));
    bodies.push(EventBody::CheckpointWritten {
        name: "step-001030".to_owned(),
        bytes: 54_300_000,
        stall_secs: 0.25,
        write_secs: 1.5,
    });
    bodies.push(EventBody::Delivery {
        sink: "local-disk".to_owned(),
        checkpoint: Step(1030),
        state: DeliveryState::Delivered,
        detail: "path /data/step-001030".to_owned(),
        retry_time_us: None,
    });
    bodies.push(EventBody::Superseded {
        from_step: Step(1028),
        generation: 1,
    });
    bodies.push(EventBody::RunStarted { generation: 1 });
    let values = ["loss/eval", "perplexity"].map(|name| MetricValue::new(name, 1.1));
    bodies.push(EventBody::Metrics {
        values: values.into(),
    });
    bodies.push(EventBody::RunFinished {
        reason: StopReason::Completed,
        message: String::new(),
    });
    let drafts = (0_u32..).zip(bodies).map(|(n, body)| Draft {
        time_us: 1_700_000_000_000_000 + i64::from(n) * 1000,
        step: Step(u64::from(n).min(1030)),
        body,
    });
    drafts.collect()
}

#[test]
fn a_store_of_each_format_can_be_read_and_continued() {
    for (format, sql) in FORMATS {
        for journal in [Journal::Automatic, Journal::Rollback] {
            let dir = tempfile::tempdir().expect("a folder");
            let file = rusqlite::Connection::open(dir.path().join(FILE)).expect("a file");
            file.execute_batch(sql).expect("its SQL");
            let marked: i32 = file
                .pragma_query_value(None, "user_version", |row| row.get(0))
                .expect("readable");
            assert_eq!(marked, format);
            drop(file);

            let read = |reader: &Reader| reader.events_after(0, 10_000).expect("readable");
            let events = read(&Reader::open(dir.path()).expect("a run"));
            let bodies = |events: Vec<Event>| -> Vec<(u64, i64, EventBody)> {
                let parts = events.into_iter();
                parts
                    .map(|event| (event.step.0, event.time_us, event.body))
                    .collect()
            };
            let mut expected: Vec<_> = drafts()
                .into_iter()
                .map(|draft| (draft.step.0, draft.time_us, draft.body))
                .collect();
            assert_eq!(bodies(events), expected);

            let mut writer = Writer::open_with(dir.path(), journal).expect("a run");
            let more = Draft {
                time_us: 1_800_000_000_000_000,
                step: Step(1031),
                body: EventBody::Warning {
                    message: "more".to_owned(),
                },
            };
            writer.append(vec![more.clone()]).expect("written");
            drop(writer);
            expected.push((more.step.0, more.time_us, more.body));
            let reader = Reader::open(dir.path()).expect("a run");
            assert_eq!(bodies(read(&reader)), expected);
            let row = reader.run().expect("readable");
            assert_eq!(row.status, RunStatus::Finished(StopReason::Completed));
            assert_eq!((row.name.as_str(), row.generation), ("demo", 1));
            let loss = reader.history("loss/train", 10_000).expect("readable");
            // The points after step 1028 are superseded.
            assert_eq!(loss.expect("a series").len(), 1028);
            assert_eq!(reader.deliveries().expect("readable"), []);
        }
    }
}
