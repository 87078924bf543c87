//! Connections between the lead and the other ranks that carry no data. The kernel closes a process's connections
//! when the process ends, so the death of a rank is noticed at once, in any phase of the training.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::time::{Duration, Instant};

/// How long a rank tries to connect to the lead, and how long the lead waits for the greeting of a new connection.
const PATIENCE: Duration = Duration::from_secs(5);
/// Maximum number of connections without a greeting. The port is open to other programs, too, which must not use up
/// the process's file descriptors.
const MAX_UNKNOWN: usize = 256;

/// A rank's end of the connections. Without a connection, for example if a firewall blocks it, a death is noticed
/// later, by the missing signs of life.
#[derive(Debug, Default)]
pub(super) struct Lifelines {
    listener: Option<TcpListener>,
    /// What each connection sends first, followed by the rank.
    greeting: Vec<u8>,
    /// Connections without a complete greeting, what they have sent, and when they were accepted.
    unknown: Vec<(TcpStream, Vec<u8>, Instant)>,
    /// The connections, by the rank at the other end.
    connected: BTreeMap<usize, TcpStream>,
}

/// Returns a listener on a free port of all interfaces. `None` if the system refuses it.
pub(super) fn listen() -> Option<TcpListener> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)))
        .ok()?;
    listener.set_nonblocking(true).ok()?;
    Some(listener)
}

impl Lifelines {
    /// Returns the lead's end. `nonce` identifies the meeting.
    pub(super) fn lead(listener: Option<TcpListener>, nonce: &str) -> Self {
        Self {
            listener,
            greeting: nonce.as_bytes().to_vec(),
            ..Self::default()
        }
    }

    /// Connects `rank` to the lead.
    pub(super) fn follow((address, port): (&str, u16), nonce: &str, rank: usize) -> Self {
        let mut lines = Self::default();
        let mut greeting = nonce.as_bytes().to_vec();
        greeting.extend_from_slice(&(rank as u64).to_le_bytes());
        let addresses = (address, port).to_socket_addrs().into_iter().flatten();
        let stream = addresses
            .filter(|_| port > 0)
            .find_map(|address| TcpStream::connect_timeout(&address, PATIENCE).ok());
        if let Some(mut stream) = stream
            && stream.write_all(&greeting).is_ok()
            && stream.set_nonblocking(true).is_ok()
        {
            lines.connected.insert(0, stream);
        }
        lines
    }

    /// Returns the ranks whose connection has ended since the last call.
    pub(super) fn lost(&mut self) -> Vec<usize> {
        self.accept();
        let is_lost = |stream: &mut TcpStream| match stream.read(&mut [0; 64]) {
            Ok(count) => count == 0,
            Err(error) => !is_temporary(error.kind()),
        };
        let lost: Vec<usize> = self
            .connected
            .iter_mut()
            .filter_map(|(&rank, stream)| is_lost(stream).then_some(rank))
            .collect();
        for rank in &lost {
            self.connected.remove(rank);
        }
        lost
    }

    /// Accepts connections, and reads their greetings.
    fn accept(&mut self) {
        let Some(listener) = &self.listener else {
            return;
        };
        while self.unknown.len() < MAX_UNKNOWN
            && let Ok((stream, _)) = listener.accept()
        {
            if stream.set_nonblocking(true).is_ok() {
                self.unknown.push((stream, Vec::new(), Instant::now()));
            }
        }
        let length = self.greeting.len() + size_of::<u64>();
        for (mut stream, mut sent, since) in std::mem::take(&mut self.unknown) {
            let mut rest = vec![0; length - sent.len()];
            match stream.read(&mut rest) {
                Ok(0) => continue,
                Ok(count) => sent.extend_from_slice(&rest[..count]),
                Err(error) if is_temporary(error.kind()) => {}
                Err(_) => continue,
            }
            if sent.len() < length {
                if since.elapsed() < PATIENCE {
                    self.unknown.push((stream, sent, since));
                }
            } else if let Some(Ok(rank)) = sent
                .strip_prefix(&*self.greeting)
                .map(<[u8; size_of::<u64>()]>::try_from)
            {
                let rank = u64::from_le_bytes(rank) as usize;
                self.connected.entry(rank).or_insert(stream);
            }
        }
    }
}

fn is_temporary(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(5);

    fn lead() -> (Lifelines, u16) {
        let listener = listen().expect("a port");
        let port = listener.local_addr().expect("an address").port();
        (Lifelines::lead(Some(listener), "this meeting"), port)
    }

    fn wait_for_lost(lines: &mut Lifelines) -> Vec<usize> {
        loop {
            let lost = lines.lost();
            if !lost.is_empty() {
                return lost;
            }
            std::thread::sleep(SHORT);
        }
    }

    fn wait_for_connections(lines: &mut Lifelines, count: usize) {
        while lines.connected.len() < count {
            assert_eq!(lines.lost(), [0; 0]);
            std::thread::sleep(SHORT);
        }
    }

    #[test]
    fn the_end_of_either_side_is_noticed_once() {
        let (mut lead, port) = lead();
        let mut one = Lifelines::follow(("127.0.0.1", port), "this meeting", 1);
        let two = Lifelines::follow(("localhost", port), "this meeting", 2);
        wait_for_connections(&mut lead, 2);
        assert_eq!(one.lost(), [0; 0]);
        drop(two);
        assert_eq!(wait_for_lost(&mut lead), [2]);
        assert_eq!(lead.lost(), [0; 0]);
        drop(lead);
        assert_eq!(wait_for_lost(&mut one), [0]);
        assert_eq!(one.lost(), [0; 0]);
    }

    #[test]
    fn other_programs_are_not_ranks() {
        let (mut lead, port) = lead();
        let mut stranger = TcpStream::connect(("127.0.0.1", port)).expect("connected");
        let text = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        stranger.write_all(text).expect("sent");
        let _silent = TcpStream::connect(("127.0.0.1", port)).expect("connected");
        let _earlier = Lifelines::follow(("127.0.0.1", port), "that meeting", 2);
        let _one = Lifelines::follow(("127.0.0.1", port), "this meeting", 1);
        wait_for_connections(&mut lead, 1);
        drop(stranger);
        assert_eq!(lead.lost(), [0; 0]);
        assert_eq!(lead.connected.keys().copied().collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn without_a_lead_nothing_is_noticed() {
        let port = {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            listener.local_addr().expect("an address").port()
        };
        let mut lines = Lifelines::follow(("127.0.0.1", port), "this meeting", 1);
        assert_eq!(lines.lost(), [0; 0]);
        assert_eq!(Lifelines::follow(("127.0.0.1", 0), "", 1).lost(), [0; 0]);
    }
}
