use std::collections::BTreeMap;

use host_core::{DeliveryState, Event, EventBody, Result, Step};

use crate::chunk::Place;
use crate::reader::{ReadError, supersessions};
use crate::{Reader, event_row};

/// An entry of the delivery ledger: the state of a checkpoint's delivery to a sink.
///
/// The ledger is not stored separately but derived from a run's delivery events. So the ledger is as durable
/// as these events. When a run returns to an earlier checkpoint, all later events of the run are
/// superseded, and so are the entries that result from them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The sink's label.
    pub sink: String,
    /// The checkpoint's step.
    pub checkpoint: Step,
    /// The state of the delivery.
    pub state: DeliveryState,
    /// If delivered, the sink's receipt (JSON). If failed or dropped, the reason. Otherwise empty.
    pub detail: String,
    /// When a failed delivery is retried, in microseconds since the Unix epoch; `None` if it is not retried.
    pub retry_time_us: Option<i64>,
    /// The sequence number of the delivery event.
    pub seq: u64,
    /// The time of the delivery event, in microseconds since the Unix epoch.
    pub time_us: i64,
}

impl Delivery {
    /// Returns the location of a delivered checkpoint, from the sink's receipt: the id of a git commit if the
    /// receipt contains one, otherwise a path.
    pub fn location(&self) -> Option<String> {
        self.receipt("commit").or_else(|| self.receipt("path"))
    }

    /// Returns the SHA-256 of a delivered checkpoint's `manifest.json`, from the sink's receipt.
    pub fn manifest_sha256(&self) -> Option<String> {
        self.receipt("manifest_sha256")
    }

    fn receipt(&self, key: &str) -> Option<String> {
        if self.state != DeliveryState::Delivered {
            return None;
        }
        let receipt: serde_json::Value = serde_json::from_str(&self.detail).ok()?;
        receipt.get(key)?.as_str().map(str::to_owned)
    }
}

impl Reader {
    /// Returns the delivery ledger, sorted by sink and step. It contains, for each sink and checkpoint, the
    /// last entry that is not superseded.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub fn deliveries(&self) -> Result<Vec<Delivery>> {
        let mut ledger = BTreeMap::new();
        for event in self.events_of(event_row::DELIVERY)? {
            if let EventBody::Delivery {
                sink,
                checkpoint,
                state,
                detail,
                retry_time_us,
            } = event.body
            {
                let entry = Delivery {
                    sink: sink.clone(),
                    checkpoint,
                    state,
                    detail,
                    retry_time_us,
                    seq: event.seq,
                    time_us: event.time_us,
                };
                ledger.insert((sink, checkpoint), entry);
            }
        }
        Ok(ledger.into_values().collect())
    }

    /// Returns the requests that the training loop carried out, in order. Leaves out superseded requests.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub fn requests(&self) -> Result<Vec<Event>> {
        self.events_of(event_row::REQUEST)
    }

    /// Returns all events of this kind, without superseded events.
    fn events_of(&self, kind: &str) -> Result<Vec<Event>> {
        self.snapshot(|tx| {
            let superseded = supersessions(tx)?;
            let mut query = tx.prepare_cached(
                "SELECT seq, step, time_us, body FROM events WHERE kind = ? ORDER BY seq",
            )?;
            let mut rows = query.query([kind])?;
            let mut events = Vec::new();
            while let Some(row) = rows.next()? {
                let place = Place {
                    seq: row.get::<_, i64>(0)?.cast_unsigned(),
                    step: row.get::<_, i64>(1)?.cast_unsigned(),
                    time_us: row.get(2)?,
                };
                if !superseded.is_live(&place) {
                    continue;
                }
                let Ok(body) = event_row::decode(kind, row.get_ref(3)?.as_str()?) else {
                    let message = format!("event {} cannot be read", place.seq);
                    return Err(ReadError::damaged(message));
                };
                events.push(Event {
                    seq: place.seq,
                    time_us: place.time_us,
                    step: Step(place.step),
                    body,
                });
            }
            Ok(events)
        })
    }
}

#[cfg(test)]
mod tests {
    use host_core::{Draft, StopReason};

    use super::*;
    use crate::tests::record;
    use crate::{RunStatus, Writer};

    fn draft(step: u64, body: EventBody) -> Draft {
        Draft {
            time_us: 7,
            step: Step(step),
            body,
        }
    }

    fn delivery(sink: &str, step: u64, state: DeliveryState) -> Draft {
        let body = EventBody::Delivery {
            sink: sink.to_owned(),
            checkpoint: Step(step),
            state,
            detail: format!("{step}"),
            retry_time_us: None,
        };
        draft(step, body)
    }

    fn superseded(from_step: u64) -> Draft {
        let body = EventBody::Superseded {
            from_step: Step(from_step),
            generation: 1,
        };
        draft(from_step, body)
    }

    /// Returns the ledger that results from these events: the sink, step and state of each entry.
    fn ledger(drafts: Vec<Draft>) -> Vec<(String, u64, DeliveryState)> {
        let dir = tempfile::tempdir().expect("a folder");
        let mut writer = Writer::create(dir.path(), &record()).expect("a run");
        writer.append(drafts).expect("written");
        let ledger = Reader::open(dir.path()).and_then(|reader| reader.deliveries());
        let short = |entry: Delivery| (entry.sink, entry.checkpoint.0, entry.state);
        ledger.expect("a ledger").into_iter().map(short).collect()
    }

    use DeliveryState::{Delivered, Failed, Queued, Sending};

    #[test]
    fn the_last_entry_of_a_checkpoint_counts() {
        let found = ledger(vec![
            delivery("b", 10, Queued),
            delivery("a", 20, Queued),
            delivery("a", 10, Sending),
            delivery("b", 10, Sending),
            delivery("a", 10, Failed),
            delivery("a", 20, Sending),
            delivery("b", 10, Delivered),
        ]);
        let expected = [("a", 10, Failed), ("a", 20, Sending), ("b", 10, Delivered)];
        assert_eq!(
            found,
            expected.map(|(sink, step, state)| (sink.to_owned(), step, state))
        );
    }

    #[test]
    fn a_receipt_contains_the_checkpoints_location() {
        let entry = |state, detail: &str| Delivery {
            sink: "a".to_owned(),
            checkpoint: Step(10),
            state,
            detail: detail.to_owned(),
            retry_time_us: None,
            seq: 1,
            time_us: 0,
        };
        let receipt = r#"{"commit": "c0", "path": "/p", "manifest_sha256": "ab"}"#;
        let there = entry(Delivered, receipt);
        assert_eq!(there.location().as_deref(), Some("c0"));
        assert_eq!(there.manifest_sha256().as_deref(), Some("ab"));
        let folder = entry(Delivered, r#"{"path": "/p"}"#);
        assert_eq!(folder.location().as_deref(), Some("/p"));
        assert_eq!(folder.manifest_sha256(), None);
        assert_eq!(entry(Failed, receipt).location(), None);
        assert_eq!(entry(Delivered, "[]").location(), None);
    }

    #[test]
    fn superseded_entries_are_left_out() {
        let found = ledger(vec![
            delivery("a", 10, Delivered),
            delivery("a", 20, Delivered),
            delivery("a", 30, Delivered),
            superseded(20),
            delivery("a", 30, Queued),
        ]);
        let expected = [(10, Delivered), (20, Delivered), (30, Queued)];
        assert_eq!(
            found,
            expected.map(|(step, state)| ("a".to_owned(), step, state))
        );
    }

    #[test]
    fn a_delivery_after_the_end_changes_neither_the_runs_status_nor_its_step() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut writer = Writer::create(dir.path(), &record()).expect("a run");
        let end = EventBody::RunFinished {
            reason: StopReason::Completed,
            message: String::new(),
        };
        let begun = draft(0, EventBody::RunStarted { generation: 0 });
        writer.append(vec![begun, draft(40, end)]).expect("written");
        drop(writer);
        let mut writer = Writer::open(dir.path()).expect("a run");
        let late = vec![delivery("a", 10, Sending), delivery("a", 10, Delivered)];
        writer.append(late).expect("written");
        let row = Reader::open(dir.path()).and_then(|reader| reader.run());
        let row = row.expect("a row");
        assert_eq!(row.status, RunStatus::Finished(StopReason::Completed));
        assert_eq!((row.last_step, row.last_seq), (Step(40), 4));
    }
}
