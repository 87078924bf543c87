//! The delivery ledger, built from the events.

use std::collections::BTreeMap;
use std::time::Duration;

use host_core::{DeliveryState, Event, EventBody, Step};
use host_store::Delivery;

/// Maximum number of entries per sink. The newest checkpoints are kept.
const ROOM: usize = 64;
/// Maximum number of sinks. A run has only a few.
const SINKS: usize = 64;

/// The state of each delivery of the newest checkpoints, by sink.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    sinks: BTreeMap<String, BTreeMap<Step, Delivery>>,
}

impl Ledger {
    /// Adds an entry, unless a newer entry for the same checkpoint is known.
    pub(super) fn put(&mut self, entry: Delivery) {
        if self.sinks.len() >= SINKS && !self.sinks.contains_key(&entry.sink) {
            return;
        }
        let of_sink = self.sinks.entry(entry.sink.clone()).or_default();
        let known = of_sink.get(&entry.checkpoint);
        if known.is_none_or(|known| known.seq < entry.seq) {
            of_sink.insert(entry.checkpoint, entry);
        }
        if of_sink.len() > ROOM {
            of_sink.pop_first();
        }
    }

    /// Records an event.
    pub(super) fn note(&mut self, event: &Event) {
        if let Some(entry) = entry(event) {
            self.put(entry);
        }
        if let EventBody::Superseded { from_step, .. } = &event.body {
            for of_sink in self.sinks.values_mut() {
                of_sink.retain(|step, entry| step <= from_step || entry.seq > event.seq);
            }
        }
    }

    /// Returns the entries. Deliveries that are in progress or have failed come first, then the other
    /// deliveries. In each of the two groups, the newest checkpoints come first.
    pub(super) fn entries(&self) -> Vec<&Delivery> {
        let mut entries: Vec<&Delivery> = self.sinks.values().flat_map(BTreeMap::values).collect();
        let is_first = |entry: &Delivery| {
            matches!(entry.state, DeliveryState::Sending | DeliveryState::Failed)
        };
        entries.sort_by(|a, b| {
            let (a_first, b_first) = (is_first(a), is_first(b));
            (b_first, b.checkpoint, &a.sink).cmp(&(a_first, a.checkpoint, &b.sink))
        });
        entries
    }

    /// Returns how long the drawn ledger stays correct if no event arrives. The age of an entry changes every
    /// second during its first hour. The countdown to a retry always changes every second.
    pub(super) fn tick(&self, now_us: i64) -> Duration {
        const SECOND: Duration = Duration::from_secs(1);
        const MINUTE: Duration = Duration::from_secs(60);
        let mut entries = self.sinks.values().flat_map(BTreeMap::values);
        let grows = |entry: &Delivery| now_us - entry.time_us < 3_600_000_000;
        match entries.any(|entry| grows(entry) || entry.retry_time_us.is_some()) {
            true => SECOND,
            false => MINUTE,
        }
    }
}

/// Returns the delivery that an event is about, if any.
pub(super) fn entry(event: &Event) -> Option<Delivery> {
    let EventBody::Delivery {
        sink,
        checkpoint,
        state,
        detail,
        retry_time_us,
    } = &event.body
    else {
        return None;
    };
    Some(Delivery {
        sink: sink.clone(),
        checkpoint: *checkpoint,
        state: *state,
        detail: detail.clone(),
        retry_time_us: *retry_time_us,
        seq: event.seq,
        time_us: event.time_us,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(seq: u64, step: u64, state: DeliveryState) -> Event {
        Event {
            seq,
            time_us: 0,
            step: Step(step),
            body: EventBody::Delivery {
                sink: "local-disk".to_owned(),
                checkpoint: Step(step),
                state,
                detail: String::new(),
                retry_time_us: None,
            },
        }
    }

    #[test]
    fn the_newest_entry_of_a_checkpoint_counts_in_any_order() {
        let mut ledger = Ledger::default();
        ledger.note(&delivery(9, 100, DeliveryState::Delivered));
        ledger.note(&delivery(8, 100, DeliveryState::Sending));
        ledger.note(&delivery(10, 200, DeliveryState::Sending));
        ledger.note(&delivery(11, 300, DeliveryState::Queued));
        let states: Vec<_> = ledger.entries().iter().map(|e| e.state).collect();
        use DeliveryState::{Delivered, Queued, Sending};
        assert_eq!(states, [Sending, Queued, Delivered]);
        assert_eq!(ledger.tick(1_000_000).as_secs(), 1);
        assert_eq!(ledger.tick(7_200_000_000).as_secs(), 60);
    }

    #[test]
    fn a_resume_removes_superseded_entries_and_the_size_is_bounded() {
        let mut ledger = Ledger::default();
        for step in 1..=1000 {
            ledger.note(&delivery(step, step, DeliveryState::Delivered));
        }
        assert_eq!(ledger.entries().len(), ROOM);
        let body = EventBody::Superseded {
            from_step: Step(990),
            generation: 1,
        };
        ledger.note(&Event {
            body,
            ..delivery(1001, 990, DeliveryState::Queued)
        });
        assert_eq!(ledger.entries()[0].checkpoint, Step(990));
    }
}
