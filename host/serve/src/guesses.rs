use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tonic::Status;

/// Wrong tokens that cost their sender no time: everybody mistypes.
const FREE: u32 = 5;
/// What the next one costs. Each further one costs twice as much, up to the most.
const DELAY: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(10);
/// Tokens of one peer that wait for their turn longer than this are not looked at.
const PATIENCE: Duration = Duration::from_secs(30);
/// A peer that has shown no wrong token for so long is as good as new.
const FORGET: Duration = Duration::from_secs(600);
/// Peers that are remembered. Beyond, the one that was silent for longest is forgotten.
const PEERS: usize = 4096;

/// The wrong tokens that each peer has shown, so that nobody finds the right one by trying.
///
/// The tokens of a peer that has shown too many wrong ones are looked at one after the other, with a
/// pause before each, over all its connections. A token too long to be guessed does not wait.
#[derive(Debug, Default)]
pub(crate) struct Guesses(Mutex<HashMap<IpAddr, Peer>>);

#[derive(Debug)]
struct Peer {
    wrong: u32,
    last: Instant,
    /// When the tokens that were shown until now have been looked at.
    free_at: Instant,
}

impl Guesses {
    /// How long to wait before this peer's token is looked at.
    ///
    /// # Errors
    /// Too many of its tokens wait already.
    pub(crate) fn turn(&self, peer: IpAddr, now: Instant) -> Result<Duration, Status> {
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = network(peer);
        match peers.get_mut(&key) {
            Some(known) if now.saturating_duration_since(known.last) >= FORGET => {
                peers.remove(&key);
                Ok(Duration::ZERO)
            }
            Some(known) if known.wrong >= FREE => {
                let free_at = known.free_at.max(now) + delay(known.wrong);
                let wait = free_at - now;
                if wait > PATIENCE {
                    return Err(Status::resource_exhausted(format!(
                        "{} wrong tokens came from {peer}; try again in {} s",
                        known.wrong,
                        wait.as_secs()
                    )));
                }
                known.free_at = free_at;
                Ok(wait)
            }
            _ => Ok(Duration::ZERO),
        }
    }

    /// The peer's token was wrong. Returns what to warn of: the tenth, the hundredth, the thousandth …
    pub(crate) fn wrong(&self, peer: IpAddr, now: Instant) -> Option<String> {
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = network(peer);
        if peers.len() >= PEERS && !peers.contains_key(&key) {
            let oldest = peers.iter().min_by_key(|(_, known)| known.last);
            if let Some(oldest) = oldest.map(|(key, _)| *key) {
                peers.remove(&oldest);
            }
        }
        let known = peers.entry(key).or_insert(Peer {
            wrong: 0,
            last: now,
            free_at: now,
        });
        known.wrong = known.wrong.saturating_add(1);
        known.last = now;
        let count = known.wrong;
        let is_round = count >= 10 && 10_u32.checked_pow(count.ilog10()) == Some(count);
        is_round.then(|| format!("{count} wrong tokens came from {peer}: a client may be guessing"))
    }
}

fn delay(wrong: u32) -> Duration {
    let doubled = 2_u32.saturating_pow(wrong.saturating_sub(FREE));
    DELAY.start().saturating_mul(doubled).min(*DELAY.end())
}

/// What one sender has for itself: an address, and of IPv6 a /64.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    #[test]
    fn each_wrong_token_makes_the_next_one_wait_longer() {
        let guesses = Guesses::default();
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..20 {
            let wait = guesses.turn(PEER, now).expect("its turn");
            now += wait;
            guesses.wrong(PEER, now);
            waits.push(wait);
        }
        assert!(waits[..5].iter().all(Duration::is_zero), "{waits:?}");
        assert!(
            waits[5..].is_sorted() && waits[5] == *DELAY.start(),
            "{waits:?}"
        );
        assert_eq!(waits[19], *DELAY.end());

        // Others are not held up, and in the end neither is this one.
        let other = [192, 0, 2, 2].into();
        assert_eq!(guesses.turn(other, now).expect("its turn"), Duration::ZERO);
        let later = now + FORGET;
        assert_eq!(guesses.turn(PEER, later).expect("its turn"), Duration::ZERO);
    }

    #[test]
    fn guesses_at_once_are_looked_at_one_after_the_other() {
        let guesses = Guesses::default();
        let now = Instant::now();
        for _ in 0..FREE {
            guesses.wrong(PEER, now);
        }
        let turns: Vec<_> = (0..1000).map(|_| guesses.turn(PEER, now)).collect();
        let waits: Vec<Duration> = turns.iter().flatten().copied().collect();
        let one_by_one = (1..=300).map(|n| *DELAY.start() * n);
        assert_eq!(waits, one_by_one.collect::<Vec<_>>());
        let refused = turns.last().and_then(|turn| turn.as_ref().err());
        let refused = refused.expect("too many").message();
        assert!(
            refused.starts_with("5 wrong tokens came from 192.0.2.1"),
            "{refused}"
        );
    }

    #[test]
    fn a_peer_is_warned_of_at_the_tenth_the_hundredth_and_so_on() {
        let guesses = Guesses::default();
        let now = Instant::now();
        let warned: Vec<u32> = (1..=10_000)
            .filter(|_| guesses.wrong(PEER, now).is_some())
            .collect();
        assert_eq!(warned, [10, 100, 1000, 10_000]);
    }

    #[test]
    fn a_sender_does_not_escape_by_another_address_of_its_own() {
        let same = |one: &str, other: &str| {
            let [one, other] = [one, other].map(|text| network(text.parse().expect("an address")));
            one == other
        };
        assert!(same("2001:db8::1", "2001:db8::ffff:2"));
        assert!(!same("2001:db8::1", "2001:db8:0:1::1"));
        assert!(same("::ffff:192.0.2.1", "192.0.2.1"));
        assert!(!same("192.0.2.1", "192.0.2.2"));
    }

    #[test]
    fn memory_is_bounded_however_many_peers_there_are() {
        let guesses = Guesses::default();
        let now = Instant::now();
        for n in 0..PEERS as u32 + 100 {
            guesses.wrong(IpAddr::V4(n.into()), now + Duration::from_millis(n.into()));
        }
        let peers = guesses.0.lock().expect("whole");
        assert_eq!(peers.len(), PEERS);
        assert!(!peers.contains_key(&IpAddr::V4(0.into())));
    }
}
