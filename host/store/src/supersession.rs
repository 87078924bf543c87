use crate::chunk::Place;

/// The superseded events of a run. Each time the run was resumed, it returned to a checkpoint. This
/// superseded all earlier events with a higher step than the checkpoint's.
#[derive(Debug, Default)]
pub(crate) struct Supersessions {
    /// For each supersession, its sequence number and a limit. Earlier events are superseded if their step is
    /// above the limit. The limit is the lowest `from_step` of this and all later supersessions. Sorted by
    /// sequence number.
    limits: Vec<(u64, u64)>,
}

/// How much of a chunk is not superseded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Live {
    All,
    Some,
    None,
}

impl Supersessions {
    /// Creates the list from pairs of (sequence number, `from_step`) in the log's order.
    pub(crate) fn new(mut limits: Vec<(u64, u64)>) -> Self {
        let mut lowest = u64::MAX;
        for (_, from_step) in limits.iter_mut().rev() {
            lowest = lowest.min(*from_step);
            *from_step = lowest;
        }
        Self { limits }
    }

    /// Whether nothing is superseded.
    pub(crate) fn is_empty(&self) -> bool {
        self.limits.is_empty()
    }

    /// Whether an event at this place is not superseded.
    pub(crate) fn is_live(&self, place: &Place) -> bool {
        place.step <= self.limit(place.seq)
    }

    /// Like [`Self::is_live`], for all events of a chunk at once.
    pub(crate) fn of_chunk(&self, seqs: (u64, u64), steps: (u64, u64)) -> Live {
        // The limits rise with the sequence number.
        if steps.1 <= self.limit(seqs.0) {
            Live::All
        } else if steps.0 > self.limit(seqs.1) {
            Live::None
        } else {
            Live::Some
        }
    }

    fn limit(&self, seq: u64) -> u64 {
        let later = self.limits.partition_point(|&(at, _)| at <= seq);
        self.limits.get(later).map_or(u64::MAX, |&(_, limit)| limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_supersession_hides_earlier_events_above_its_step() {
        // Steps 1..=5, back to 3, steps 4..=6, back to 2, steps 3...
        let list = Supersessions::new(vec![(6, 3), (10, 2)]);
        let live = |seq, step| {
            list.is_live(&Place {
                seq,
                step,
                time_us: 0,
            })
        };
        assert!(live(2, 2));
        assert!(
            !live(3, 3),
            "the second supersession also applies before the first"
        );
        assert!(!live(4, 4));
        assert!(!live(7, 4));
        assert!(live(11, 3));
        assert!(live(12, u64::MAX));
    }

    #[test]
    fn a_chunk_is_live_as_far_as_its_events_are() {
        let list = Supersessions::new(vec![(10, 5)]);
        assert_eq!(list.of_chunk((1, 9), (1, 5)), Live::All);
        assert_eq!(list.of_chunk((1, 9), (1, 6)), Live::Some);
        assert_eq!(list.of_chunk((1, 9), (6, 8)), Live::None);
        assert_eq!(list.of_chunk((8, 12), (6, 8)), Live::Some);
        assert_eq!(list.of_chunk((11, 12), (6, 8)), Live::All);
    }
}
