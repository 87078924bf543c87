use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tonic::Status;

/// Number of wrong tokens that cause no delay, since users make typing errors.
const FREE: u32 = 5;
/// Minimum and maximum delay of the next check. The delay doubles with each further wrong token.
const DELAY: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(10);
/// A token that would have to wait longer than this is rejected without a check.
const PATIENCE: Duration = Duration::from_secs(30);
/// A peer that has sent no wrong token for this long is forgotten.
const FORGET: Duration = Duration::from_secs(600);
/// Maximum number of remembered peers. Beyond it, the peer whose last wrong token is the oldest is forgotten.
const PEERS: usize = 4096;

/// Counts the wrong tokens of each peer, to prevent clients from guessing a token.
#[derive(Debug, Default)]
pub(crate) struct Guesses(Mutex<HashMap<IpAddr, Peer>>);

#[derive(Debug)]
struct Peer {
    wrong: u32,
    last: Instant,
    /// The time at which all tokens received so far will have been checked.
    free_at: Instant,
}

impl Guesses {
    /// Returns the delay before this peer's token is checked.
    ///
    /// # Errors
    /// Returns an error if too many tokens of this peer are already waiting.
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

    /// Records a wrong token. Returns a warning for a peer's tenth wrong token, and for its hundredth,
    /// thousandth and so on.
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

/// Returns the address block that is treated as one peer: an IPv4 address or an IPv6 /64 network.
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

        // Other peers are not delayed. After a while, this peer is no longer delayed either.
        let other = [192, 0, 2, 2].into();
        assert_eq!(guesses.turn(other, now).expect("its turn"), Duration::ZERO);
        let later = now + FORGET;
        assert_eq!(guesses.turn(PEER, later).expect("its turn"), Duration::ZERO);
    }

    #[test]
    fn concurrent_guesses_are_checked_one_after_the_other() {
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
    fn a_warning_follows_the_tenth_the_hundredth_and_so_on() {
        let guesses = Guesses::default();
        let now = Instant::now();
        let warned: Vec<u32> = (1..=10_000)
            .filter(|_| guesses.wrong(PEER, now).is_some())
            .collect();
        assert_eq!(warned, [10, 100, 1000, 10_000]);
    }

    #[test]
    fn a_sender_does_not_escape_by_changing_its_address() {
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
    fn memory_is_bounded_for_any_number_of_peers() {
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
