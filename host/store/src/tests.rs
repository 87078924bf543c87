//! Compares the store with a plain list of events. Both kinds of read must return what the list contains,
//! however the events are batched and however often the store is reopened.

use host_core::{Draft, Event, EventBody, MetricValue, Step, StopReason};

use crate::{Journal, Point, Reader, RunList, RunRecord, RunStatus, Writer};

pub(crate) fn record() -> RunRecord {
    RunRecord {
        name: "demo".to_owned(),
        created_us: 1_700_000_000_000_000,
        config_json: r#"{"seed":1}"#.to_owned(),
    }
}

pub(crate) fn metrics(values: &[(&str, f64)]) -> EventBody {
    EventBody::Metrics {
        values: values
            .iter()
            .map(|&(name, value)| MetricValue::new(name, value))
            .collect(),
    }
}

pub(crate) fn draft(step: u64, body: EventBody) -> Draft {
    Draft {
        time_us: 1_700_000_000_000_000 + i64::try_from(step % 1_000_000).expect("small") * 137_001,
        step: Step(step),
        body,
    }
}

const NAMES: [&str; 4] = ["loss/train", "lr", "samples", "loss/eval"];

fn random_value(random: &mut fastrand::Rng) -> f64 {
    match random.u8(..20) {
        0 => f64::NAN,
        1 => f64::INFINITY,
        2 => f64::from_bits(random.u64(..)),
        3 => -0.0,
        4..10 => f64::from(random.f32()),
        _ => random.f64(),
    }
}

fn random_draft(random: &mut fastrand::Rng, step: &mut u64, generation: &mut u32) -> Draft {
    let body = match random.u8(..100) {
        0..2 => {
            *generation += 1;
            *step = random.u64(..=*step);
            EventBody::Superseded {
                from_step: Step(*step),
                generation: *generation,
            }
        }
        2..8 => EventBody::Warning {
            message: format!("\"{}\" ü", random.u64(..)),
        },
        8 => metrics(&[]),
        // The frames of a run, in this order: the training loop's frame; an evaluation's frame; a frame with
        // one series of the evaluation and one of the training loop; a frame that has one series twice; and a
        // frame with only one series of the training loop.
        9..60 => metrics(&[NAMES[0], NAMES[1], NAMES[2]].map(|n| (n, random_value(random)))),
        60..70 => metrics(&[(NAMES[3], random_value(random))]),
        70..80 => metrics(&[NAMES[3], NAMES[0]].map(|n| (n, random_value(random)))),
        80 => metrics(&[
            ("twice", random_value(random)),
            ("twice", random_value(random)),
        ]),
        _ => metrics(&[(NAMES[0], random_value(random))]),
    };
    *step += random.u64(..3);
    let mut draft = draft(*step, body);
    if random.u8(..50) == 0 {
        draft.step = Step(random.u64(..));
        draft.time_us = random.i64(..);
    }
    draft
}

/// Returns the expected history, computed directly from its definition.
fn history_of(events: &[Event], name: &str) -> Vec<Point> {
    let hidden = |event: &Event| {
        events.iter().any(|later| {
            matches!(later.body, EventBody::Superseded { from_step, .. }
                if later.seq > event.seq && event.step > from_step)
        })
    };
    let mut points = Vec::new();
    for event in events.iter().filter(|event| !hidden(event)) {
        if let EventBody::Metrics { values } = &event.body {
            points.extend(values.iter().filter(|v| &*v.name == name).map(|v| Point {
                seq: event.seq,
                step: event.step,
                time_us: event.time_us,
                value: v.value,
            }));
        }
    }
    points
}

/// Returns the points with their values as bits, since NaN is not equal to itself.
fn exact(points: &[Point]) -> Vec<(u64, Step, i64, u64)> {
    points
        .iter()
        .map(|p| (p.seq, p.step, p.time_us, p.value.to_bits()))
        .collect()
}

fn exact_events(events: &[Event]) -> Vec<(u64, Step, i64, String, Vec<u64>)> {
    events
        .iter()
        .map(|event| {
            let bits = crate::frame::values_of(event)
                .iter()
                .map(|v| v.value.to_bits())
                .collect();
            let body = format!("{:?}", event.body);
            (event.seq, event.step, event.time_us, body, bits)
        })
        .collect()
}

fn check(reader: &Reader, model: &[Event], random: &mut fastrand::Rng) {
    let mut read = Vec::new();
    loop {
        let after = read.last().map_or(0, |event: &Event| event.seq);
        let limit = random.usize(1..200);
        let page = reader.events_after(after, limit).expect("readable");
        assert!(page.len() <= limit);
        if page.is_empty() {
            break;
        }
        read.extend(page);
    }
    assert_eq!(exact_events(&read), exact_events(model));

    let listed = reader.series().expect("readable");
    for name in NAMES.iter().copied().chain(["twice", "no such"]) {
        let expected = history_of(model, name);
        let known = model.iter().any(|event| {
            crate::frame::values_of(event)
                .iter()
                .any(|v| &*v.name == name)
        });
        let read = reader.history(name, usize::MAX).expect("readable");
        assert_eq!(read.is_some(), known, "{name}");
        assert_eq!(exact(&read.unwrap_or_default()), exact(&expected), "{name}");
        let series = listed.iter().find(|series| &*series.name == name);
        assert_eq!(
            series.map_or(0, |s| s.count),
            expected.len() as u64,
            "{name}"
        );
        assert_eq!(
            exact(&series.map(|s| s.last).into_iter().collect::<Vec<_>>()),
            exact(&expected.last().copied().into_iter().collect::<Vec<_>>())
        );
        let few = reader
            .history(name, 50)
            .expect("readable")
            .unwrap_or_default();
        assert!(few.len() <= 50);
        if name != "twice" {
            let (few, all) = (exact(&few), exact(&expected));
            assert_eq!(few.last(), all.last());
            assert!(few.iter().all(|point| all.contains(point)));
        }
    }
}

#[test]
fn both_reads_return_what_a_plain_list_contains() {
    for seed in 0..12 {
        let mut random = fastrand::Rng::with_seed(seed);
        let journal = if seed % 4 == 3 {
            Journal::Rollback
        } else {
            Journal::Automatic
        };
        let rows = [2, 7, 64][random.usize(..3)];
        let dir = tempfile::tempdir().expect("a folder");
        let mut writer = Writer::create_with(dir.path(), &record(), journal)
            .expect("a run")
            .fold_at(rows);
        let reader = Reader::open(dir.path()).expect("a run");
        let (mut step, mut generation) = (0, 0);
        let mut model = Vec::new();
        for round in 0..30 {
            let size = [1, 3, 40, 150][random.usize(..4)];
            let drafts = (0..size)
                .map(|_| random_draft(&mut random, &mut step, &mut generation))
                .collect();
            model.extend(writer.append(drafts).expect("written"));
            if round % 10 == 4 {
                drop(writer);
                writer = Writer::open_with(dir.path(), journal)
                    .expect("a run")
                    .fold_at(rows);
            }
            if round % 5 == 0 {
                check(&reader, &model, &mut random);
            }
        }
        assert!(
            model
                .iter()
                .map(|event| event.seq)
                .eq(1..=model.len() as u64)
        );
        check(&reader, &model, &mut random);
        check(
            &Reader::open(dir.path()).expect("a run"),
            &model,
            &mut random,
        );
        assert_eq!(writer.last_seq(), model.len() as u64);
    }
}

#[test]
fn a_failed_commit_leaves_no_trace_and_can_be_retried() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut writer = Writer::create(dir.path(), &record())
        .expect("a run")
        .fold_at(8);
    let batch = |name: &str| (0..20).map(|n| draft(n, metrics(&[(name, 0.1)]))).collect();
    let mut model = writer.append(batch("a")).expect("room");
    writer.limit_pages(1);
    // This append adds a series and a frame, and folds events. It fails, so all of this must be undone.
    let big = (0..9000)
        .map(|n| draft(n, metrics(&[("b", 0.1), ("a", 0.2)])))
        .collect();
    writer.append(big).expect_err("the disk is full");
    let reader = Reader::open(dir.path()).expect("a run");
    assert_eq!(
        exact_events(&reader.events_after(0, 99).expect("readable")),
        exact_events(&model)
    );
    writer.limit_pages(1_000_000);
    model.extend(writer.append(batch("b")).expect("room again"));
    model.extend(writer.append(batch("a")).expect("room again"));
    assert_eq!(
        exact_events(&reader.events_after(0, 99).expect("readable")),
        exact_events(&model)
    );
    assert_eq!(
        exact(&reader.history("b", 99).expect("readable").expect("there")),
        exact(&history_of(&model, "b"))
    );
}

#[test]
fn a_run_is_running_finished_or_crashed() {
    let runs = tempfile::tempdir().expect("a folder");
    let dir = runs.path().join("demo");
    let writer = Writer::create(&dir, &record()).expect("a run");
    let reader = Reader::open(&dir).expect("a run");
    let row = || reader.run().expect("readable");
    assert_eq!(row().status, RunStatus::Running);
    assert_eq!(row().config_json, record().config_json);
    drop(writer);
    assert_eq!(row().status, RunStatus::Crashed);

    let mut writer = Writer::open(&dir).expect("a run");
    let error = Writer::open(&dir).expect_err("held");
    let me = format!("process {} is writing", std::process::id());
    assert!(error.message().starts_with(&me), "{error}");
    let end = |reason| EventBody::RunFinished {
        reason,
        message: String::new(),
    };
    writer
        .append(vec![
            draft(0, EventBody::RunStarted { generation: 0 }),
            draft(9, end(StopReason::Interrupted)),
        ])
        .expect("written");
    assert_eq!(row().status, RunStatus::Finished(StopReason::Interrupted));
    writer
        .append(vec![draft(5, EventBody::RunStarted { generation: 1 })])
        .expect("written");
    assert_eq!(row().status, RunStatus::Running);
    assert_eq!(
        (row().generation, row().last_step, row().last_seq),
        (1, Step(5), 3)
    );
    writer
        .append(vec![draft(9, end(StopReason::Completed))])
        .expect("written");
    drop(writer);
    assert_eq!(row().status, RunStatus::Finished(StopReason::Completed));

    assert!(reader.is_current());
    std::fs::remove_dir_all(&dir).expect("removed");
    assert!(!reader.is_current());
}

#[test]
fn stores_that_cannot_be_created_or_opened_are_errors() {
    let runs = tempfile::tempdir().expect("a folder");
    let dir = runs.path().join("demo");
    let message = |error: host_core::Error| error.message().to_owned();
    let none = message(Writer::open(&dir).expect_err("no run"));
    assert!(none.starts_with("no run in the folder"), "{none}");
    let none = message(Reader::open(&dir).expect_err("no run"));
    assert!(none.starts_with("no run in the folder"), "{none}");

    drop(Writer::create(&dir, &record()).expect("a run"));
    let twice = message(Writer::create(&dir, &record()).expect_err("there already"));
    assert!(twice.starts_with("the folder already has a run"), "{twice}");

    let broken = runs.path().join("broken");
    std::fs::create_dir(&broken).expect("a folder");
    std::fs::write(broken.join(crate::FILE), b"no database at all, but text").expect("a file");
    std::fs::create_dir(runs.path().join("unrelated")).expect("a folder");
    let listed = RunList::new(runs.path()).all().expect("readable");
    let names: Vec<&str> = listed.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["broken", "demo"]);
    assert!(listed[0].1.is_err());
    assert_eq!(listed[1].1.as_ref().expect("readable").name, "demo");
    assert!(
        RunList::new(&runs.path().join("nowhere"))
            .all()
            .expect("none")
            .is_empty()
    );

    let newer = rusqlite::Connection::open(dir.join(crate::FILE)).expect("the file");
    newer.pragma_update(None, "user_version", 2).expect("set");
    let refused = message(Reader::open(&dir).expect_err("newer"));
    assert!(
        refused.starts_with("the run store has format 2"),
        "{refused}"
    );
}
