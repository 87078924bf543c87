//! How the ranks find each other in the store, even if an earlier start of the same job left keys there.

use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use host_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use super::card::Card;
use super::lifeline::Lifelines;
use crate::torch_shim::Store;

/// How often a rank reads the store.
const POLL: Duration = Duration::from_millis(20);
/// How long the cards must stay the same, so that a rank that was started twice is noticed.
const STABLE: Duration = Duration::from_millis(200);
/// How often the lead names the ranks for which it waits.
const REMINDER: Duration = Duration::from_secs(10);

/// A completed meeting.
pub(super) struct Meeting {
    /// A random text that is different in each meeting. All later keys in the store begin with it.
    pub(super) nonce: String,
    /// The ranks' cards, by rank.
    pub(super) cards: Vec<Card>,
    /// The connections to the lead, or the lead's to the others. Each rank that confirmed has tried to connect.
    pub(super) lifelines: Lifelines,
}

/// How this rank takes part in the lifelines.
pub(super) enum Line<'a> {
    /// The lead listens, if it can.
    Listen(Option<TcpListener>),
    /// Another rank connects to the lead's port at this address.
    Connect(&'a str),
}

/// What the lead publishes under `LIST`.
#[derive(Serialize, Deserialize)]
enum List {
    /// A proposal, which each rank confirms if it contains the rank's own card.
    Proposed { nonce: String, cards: Vec<Card> },
    /// The end of the meeting for the processes with these ids.
    Refused {
        ids: Vec<String>,
        message: String,
        hint: String,
    },
}

/// Two processes with the same rank.
#[derive(Serialize, Deserialize)]
struct Twice {
    ids: [String; 2],
    message: String,
}

const LIST: &str = "list";

fn join(rank: usize) -> String {
    format!("join/{rank}")
}

fn confirmed(rank: usize) -> String {
    format!("confirmed/{rank}")
}

fn twice(rank: usize) -> String {
    format!("twice/{rank}")
}

/// Publishes this rank's card, and waits at most `patience` for those of all `size` ranks.
///
/// The lead publishes the list of cards under a new nonce whenever a card changes. A rank confirms only a list that
/// contains its own card. The meeting is complete when all ranks have confirmed the same nonce. Cards of dead
/// processes are therefore harmless: no process confirms a list with them.
///
/// # Errors
/// Returns an error if ranks are missing, if a rank was started twice, or if the store is gone.
pub(super) fn meet(
    store: &Store,
    (rank, size): (usize, usize),
    card: &Card,
    line: Line<'_>,
    patience: Duration,
    say: &mut dyn FnMut(&str),
) -> Result<Meeting> {
    store.set(&join(rank), &json(card))?;
    let pending = Pending {
        store,
        rank,
        size,
        card,
        deadline: Instant::now() + patience,
        patience,
    };
    match line {
        Line::Listen(listener) => pending.lead(listener, say),
        Line::Connect(address) => pending.follow(address),
    }
}

/// How long the lead waits for the ranks of its job in the store of another job.
const REFUSAL: Duration = Duration::from_secs(5);

/// Ends the meeting of ranks whose lead cannot take part in it, with the lead's error. `store` is served by another
/// process. If that process is still in its meeting, this meeting ends, too, because its ranks look the same as
/// those of the lead.
pub(super) fn refuse(store: &Store, size: usize, card: &Card, error: &Error) {
    let own = Pending {
        store,
        rank: 0,
        size,
        card,
        deadline: Instant::now(),
        patience: Duration::ZERO,
    };
    if let Ok(Some(other)) = own.read::<Card>(&join(0)) {
        // A failure changes nothing for this process, which ends anyway.
        let _ = store.set(&twice(0), &json(&own.twice(&[other, card.clone()])));
    }
    let deadline = Instant::now() + REFUSAL;
    // The cards of the other job look the same, so their number says nothing.
    while Instant::now() < deadline {
        let cards = (1..size).filter_map(|rank| store.get(&join(rank)).ok().flatten());
        let cards = cards.filter_map(|card| serde_json::from_slice::<Card>(&card).ok());
        let ids: Vec<String> = cards.map(|card| card.id).collect();
        let refused = List::Refused {
            ids,
            message: error.message().to_owned(),
            hint: error.hint_text().unwrap_or_default().to_owned(),
        };
        if store.set(LIST, &json(&refused)).is_err() {
            return;
        }
        thread::sleep(POLL);
    }
}

struct Pending<'a> {
    store: &'a Store,
    rank: usize,
    size: usize,
    card: &'a Card,
    deadline: Instant,
    patience: Duration,
}

impl Pending<'_> {
    fn lead(&self, listener: Option<TcpListener>, say: &mut dyn FnMut(&str)) -> Result<Meeting> {
        let mut cards: Vec<Option<Card>> = vec![None; self.size];
        let mut nonce = String::new();
        let mut reminded = Instant::now();
        let mut proposed_at = Instant::now();
        loop {
            let mut is_changed = false;
            for (rank, known) in cards.iter_mut().enumerate() {
                let found: Option<Card> = self.read(&join(rank))?;
                if found.is_some() && found != *known {
                    *known = found;
                    is_changed = true;
                }
            }
            self.check_unique(&cards)?;
            let all: Option<Vec<Card>> = cards.iter().cloned().collect();
            let mut waiting: Vec<usize> = (0..self.size)
                .filter(|&rank| cards[rank].is_none())
                .collect();
            if let Some(all) = all {
                if is_changed {
                    nonce = Card::random();
                    let proposed = List::Proposed {
                        nonce: nonce.clone(),
                        cards: all.clone(),
                    };
                    self.store.set(LIST, &json(&proposed))?;
                    proposed_at = Instant::now();
                }
                for rank in 1..self.size {
                    let answer = self.store.get(&confirmed(rank))?;
                    if answer.as_deref() != Some(nonce.as_bytes()) {
                        waiting.push(rank);
                    }
                }
                if waiting.is_empty() && proposed_at.elapsed() > STABLE {
                    self.store.set(&done(&nonce), b"1")?;
                    return Ok(Meeting {
                        lifelines: Lifelines::lead(listener, &nonce),
                        nonce,
                        cards: all,
                    });
                }
            }
            if Instant::now() > self.deadline {
                let message = format!(
                    "not all ranks started within {} s: {} of {} missing",
                    self.patience.as_secs(),
                    listed(&waiting),
                    self.size
                );
                let hint = "check that the launcher starts all ranks, and that they reach the same MASTER_ADDR and MASTER_PORT";
                return Err(self.refuse(&cards, Vec::new(), message, hint)?);
            }
            if reminded.elapsed() > REMINDER {
                reminded = Instant::now();
                say(&format!(
                    "waiting for {} of {}",
                    listed(&waiting),
                    self.size
                ));
            }
            thread::sleep(POLL);
        }
    }

    fn follow(&self, address: &str) -> Result<Meeting> {
        let mut answered = String::new();
        let mut lifelines = Lifelines::default();
        loop {
            let now: Option<Card> = self.read(&join(self.rank))?;
            if let Some(other) = now.filter(|now| now.id != self.card.id) {
                let both = [other, self.card.clone()];
                self.store
                    .set(&twice(self.rank), &json(&self.twice(&both)))?;
            }
            match self.read(LIST)? {
                Some(List::Proposed { nonce, cards })
                    if cards
                        .get(self.rank)
                        .is_some_and(|card| card.id == self.card.id) =>
                {
                    if answered != nonce {
                        let lead = (address, cards[0].lifeline);
                        lifelines = Lifelines::follow(lead, &nonce, self.rank);
                        self.store.set(&confirmed(self.rank), nonce.as_bytes())?;
                        answered.clone_from(&nonce);
                    }
                    if self.store.get(&done(&nonce))?.is_some() {
                        return Ok(Meeting {
                            nonce,
                            cards,
                            lifelines,
                        });
                    }
                }
                Some(List::Refused { ids, message, hint }) if ids.contains(&self.card.id) => {
                    return Err(Error::new(ErrorKind::Config, message).hint(hint));
                }
                _ => {}
            }
            // The lead's own error, which names the missing ranks, should come first.
            if Instant::now() > self.deadline + Duration::from_secs(5) {
                let message = format!("rank 0 did not start within {} s", self.patience.as_secs());
                return Err(Error::new(ErrorKind::Config, message).hint(
                    "check that the launcher starts all ranks with the same MASTER_ADDR and MASTER_PORT",
                ));
            }
            thread::sleep(POLL);
        }
    }

    /// Ends the meeting if a rank was started twice.
    fn check_unique(&self, cards: &[Option<Card>]) -> Result<()> {
        let now = cards[0].as_ref().filter(|now| now.id != self.card.id);
        if let Some(other) = now {
            let found = self.twice(&[other.clone(), self.card.clone()]);
            // The other process of rank 0 reads this key.
            self.store.set(&twice(0), &json(&found))?;
            let Twice { ids, message } = found;
            return Err(self.refuse(cards, ids.to_vec(), message, STARTED_TWICE)?);
        }
        for rank in 0..self.size {
            let Some(Twice { ids, message }) = self.read(&twice(rank))? else {
                continue;
            };
            // The key can be left over from an earlier start.
            if cards[rank]
                .as_ref()
                .is_some_and(|card| ids.contains(&card.id))
            {
                return Err(self.refuse(cards, ids.to_vec(), message, STARTED_TWICE)?);
            }
        }
        Ok(())
    }

    fn twice(&self, [one, two]: &[Card; 2]) -> Twice {
        let place = |card: &Card| format!("{}, process {}", card.host, card.process);
        Twice {
            message: format!(
                "rank {} was started twice: {}; {}",
                self.rank,
                place(one),
                place(two)
            ),
            ids: [one.id.clone(), two.id.clone()],
        }
    }

    /// Ends the meeting for all processes that the lead knows. Returns the error.
    fn refuse(
        &self,
        cards: &[Option<Card>],
        mut ids: Vec<String>,
        message: String,
        hint: &str,
    ) -> Result<Error> {
        ids.extend(cards.iter().flatten().map(|card| card.id.clone()));
        let refused = List::Refused {
            ids,
            message: message.clone(),
            hint: hint.to_owned(),
        };
        self.store.set(LIST, &json(&refused))?;
        // If this process serves the store, the others need a moment to read the message.
        thread::sleep(POLL * 10);
        Ok(Error::new(ErrorKind::Config, message).hint(hint))
    }

    /// Returns the value of a key, or `None` if it is absent or of another version of this program.
    fn read<T: for<'a> Deserialize<'a>>(&self, key: &str) -> Result<Option<T>> {
        let value = self.store.get(key)?;
        Ok(value.and_then(|value| serde_json::from_slice(&value).ok()))
    }
}

const STARTED_TWICE: &str = "give each process its own RANK, from 0 to WORLD_SIZE - 1";

fn done(nonce: &str) -> String {
    format!("done/{nonce}")
}

fn listed(ranks: &[usize]) -> String {
    let ranks: Vec<String> = ranks.iter().map(usize::to_string).collect();
    match ranks.len() {
        1 => format!("rank {}", ranks[0]),
        _ => format!("ranks {}", ranks.join(", ")),
    }
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranks::Facts;

    fn open(port: u16, serve: bool) -> (Store, u16) {
        Store::open("127.0.0.1", port, serve, "test", Duration::from_secs(20)).expect("a store")
    }

    fn card() -> Card {
        Card::new(Ok(Facts::new()), ("127.0.0.1", 1), 0)
    }

    fn line(rank: usize) -> Line<'static> {
        match rank {
            0 => Line::Listen(None),
            _ => Line::Connect("127.0.0.1"),
        }
    }

    /// Lets processes with these ranks meet, each in a thread.
    fn met(port: u16, ranks: &[usize], size: usize) -> Vec<Result<Meeting>> {
        let patience = Duration::from_secs(20);
        thread::scope(|scope| {
            let started: Vec<_> = ranks
                .iter()
                .map(|&rank| {
                    scope.spawn(move || {
                        meet(
                            &open(port, false).0,
                            (rank, size),
                            &card(),
                            line(rank),
                            patience,
                            &mut |_| (),
                        )
                    })
                })
                .collect();
            started
                .into_iter()
                .map(|thread| thread.join().expect("no panic"))
                .collect()
        })
    }

    #[test]
    fn ranks_meet_despite_the_keys_of_an_earlier_start() {
        let (server, port) = open(0, true);
        // The cards and the list of an earlier start, of which rank 1 died.
        server.set(&join(1), &json(&card())).expect("set");
        server.set(&confirmed(1), b"old").expect("set");
        let cards = vec![card(), card(), card()];
        let old = List::Proposed {
            nonce: "old".to_owned(),
            cards,
        };
        server.set(LIST, &json(&old)).expect("set");
        server.set(&done("old"), b"1").expect("set");
        let meetings: Vec<Meeting> = met(port, &[0, 1, 2], 3)
            .into_iter()
            .map(|meeting| meeting.expect("met"))
            .collect();
        for meeting in &meetings {
            assert_ne!(meeting.nonce, "old");
            assert_eq!(meeting.nonce, meetings[0].nonce);
            assert_eq!(meeting.cards, meetings[0].cards);
        }
        drop(server);
    }

    #[test]
    fn a_rank_that_was_started_twice_is_an_error_for_all() {
        for doubled in [1, 0] {
            let (_server, port) = open(0, true);
            for refused in met(port, &[0, 1, 2, doubled], 3) {
                let error = refused.err().expect("refused");
                let expected = format!("rank {doubled} was started twice");
                assert!(error.message().starts_with(&expected), "{error}");
            }
        }
    }

    #[test]
    fn a_missing_rank_is_named() {
        let (server, port) = open(0, true);
        let patience = Duration::from_millis(400);
        let (lead, other) = thread::scope(|scope| {
            let other = scope.spawn(move || {
                meet(
                    &open(port, false).0,
                    (1, 4),
                    &card(),
                    line(1),
                    patience,
                    &mut |_| (),
                )
            });
            let lead = meet(&server, (0, 4), &card(), line(0), patience, &mut |_| ());
            (lead, other.join().expect("no panic"))
        });
        let error = lead.err().expect("refused");
        assert_eq!(
            error.message(),
            "not all ranks started within 0 s: ranks 2, 3 of 4 missing"
        );
        let same = other.err().expect("refused");
        assert_eq!(same.message(), error.message());
    }
}
