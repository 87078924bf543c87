//! What a rank tells the others about itself before training, and the comparison of these cards.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, ToSocketAddrs, UdpSocket};

use host_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Identifies a rank's process, and lists everything that must be the same on all ranks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Card {
    /// A random number of this process.
    pub(super) id: String,
    pub(crate) host: String,
    pub(crate) process: u32,
    /// Identifies the running system. Containers of one machine share it but differ in `host`.
    boot: String,
    /// The address at which other machines reach this one.
    pub(super) address: String,
    /// The port at which the lead notices the end of the other ranks' processes. 0 on the other ranks.
    pub(super) lifeline: u16,
    /// Values by name, such as `learning_rate` or `plugin perplexity`.
    facts: Facts,
    /// The reason why this rank cannot train, and a hint.
    fault: Option<(String, Option<String>)>,
}

/// Values that must be the same on all ranks, by name.
pub type Facts = BTreeMap<String, Value>;

impl Card {
    /// Creates the card of this process. `peer` is the store's address.
    pub(super) fn new(facts: Result<Facts>, (peer, port): (&str, u16), lifeline: u16) -> Self {
        let (facts, fault) = match facts {
            Ok(facts) => (facts, None),
            Err(error) => {
                let hint = error.hint_text().map(str::to_owned);
                (Facts::new(), Some((error.message().to_owned(), hint)))
            }
        };
        Self {
            id: Self::random(),
            host: line("/proc/sys/kernel/hostname"),
            process: std::process::id(),
            boot: line("/proc/sys/kernel/random/boot_id"),
            address: route_to(peer, port).map_or_else(String::new, |address| address.to_string()),
            lifeline,
            facts,
            fault,
        }
    }

    /// Returns a random text.
    pub(super) fn random() -> String {
        line("/proc/sys/kernel/random/uuid")
    }

    /// Returns whether two processes run on the same machine.
    pub(super) fn is_neighbor(&self, other: &Self) -> bool {
        self.boot == other.boot && self.host == other.host
    }
}

fn line(path: &str) -> String {
    fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Returns a rank's name for messages: `rank 2 (gpu7, process 4711)`.
pub(super) fn name(cards: &[Card], rank: usize) -> String {
    let Card { host, process, .. } = &cards[rank];
    format!("rank {rank} ({host}, process {process})")
}

/// Checks that all ranks have the same facts.
///
/// # Errors
/// Returns an error for the first rank that cannot train or differs from rank 0. All ranks return the same error.
pub(super) fn compare(cards: &[Card]) -> Result<()> {
    for (rank, card) in cards.iter().enumerate() {
        if let Some((message, hint)) = &card.fault {
            let message = format!("{} cannot start: {message}", name(cards, rank));
            let error = Error::new(ErrorKind::Config, message);
            return Err(match hint {
                Some(hint) => error.hint(hint),
                None => error,
            });
        }
    }
    let facts: Vec<&Facts> = cards.iter().map(|card| &card.facts).collect();
    let hosts: Vec<&str> = cards.iter().map(|card| card.host.as_str()).collect();
    compare_facts(&facts, &hosts)
}

/// Checks that all ranks, which run on `hosts`, have the same facts.
///
/// # Errors
/// Returns an error that names the first difference from rank 0.
pub(super) fn compare_facts(facts: &[&Facts], hosts: &[&str]) -> Result<()> {
    let lead = facts[0];
    for (rank, own) in facts.iter().enumerate().skip(1) {
        let names = lead.keys().chain(own.keys());
        let Some(name) = names
            .into_iter()
            .find(|name| own.get(*name) != lead.get(*name))
        else {
            continue;
        };
        let value = |facts: &Facts| match facts.get(name) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Null) | None => "absent".to_owned(),
            Some(other) => other.to_string(),
        };
        let (host, lead_host) = (hosts[rank], hosts[0]);
        let message = format!(
            "{name} differs between ranks: {} on rank {rank} ({host}), {} on rank 0 ({lead_host})",
            value(own),
            value(lead),
        );
        return Err(Error::new(ErrorKind::Config, message)
            .hint("start all ranks with the same version, arguments, plugins and data"));
    }
    Ok(())
}

/// Returns the address of this machine from which packets to `peer` are sent. Sends nothing.
pub(super) fn route_to(peer: &str, port: u16) -> Option<IpAddr> {
    let peer = (peer, port.max(1)).to_socket_addrs().ok()?.next()?;
    let any = if peer.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(peer).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(pairs: &[(&str, Value)]) -> Facts {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect()
    }

    #[test]
    fn a_difference_is_named_with_the_rank() {
        let lead = facts(&[("seed", 1.into()), ("version", "0.2".into())]);
        let other = facts(&[("seed", 2.into()), ("version", "0.2".into())]);
        let hosts = ["a", "b", "c"];
        assert!(compare_facts(&[&lead, &lead, &lead], &hosts).is_ok());
        let error = compare_facts(&[&lead, &lead, &other], &hosts).expect_err("differs");
        assert_eq!(
            error.message(),
            "seed differs between ranks: 2 on rank 2 (c), 1 on rank 0 (a)"
        );
        let less = facts(&[("version", "0.2".into())]);
        let more = facts(&[
            ("plugin x", "1".into()),
            ("seed", 1.into()),
            ("version", "0.2".into()),
        ]);
        for (own, name) in [(&less, "seed"), (&more, "plugin x")] {
            let error = compare_facts(&[&lead, own], &hosts).expect_err("differs");
            assert!(
                error.message().starts_with(&format!("{name} differs")),
                "{error}"
            );
            assert!(error.message().contains("absent"), "{error}");
        }
    }

    #[test]
    fn the_route_to_the_own_machine_is_loopback() {
        assert_eq!(route_to("127.0.0.1", 9), Some(IpAddr::from([127, 0, 0, 1])));
        assert_eq!(route_to("no-such-host.invalid", 9), None);
    }
}
