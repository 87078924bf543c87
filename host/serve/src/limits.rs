use std::time::Duration;

/// What a server does for its clients at most. The defaults are those of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once; more are told so and closed. Half the files that the process may have
    /// open, if that is less: the training needs some.
    pub connections: usize,
    /// Connections beyond these, from this machine alone, for clients that show the control token with
    /// their first call. They take the places of one another, the oldest first.
    pub reserve: usize,
    /// Bytes that all requests and answers on their way may take together. One connection may have half
    /// of them.
    pub bytes: usize,
    /// Streams of events, and of health, at once, over all connections.
    pub watchers: usize,
    /// Calls that one connection may have open.
    pub streams: u32,
    /// Calls that one connection may begin in a second.
    pub calls_per_second: u32,
    /// How long a connection may take to say what it speaks, TLS included.
    pub handshake: Duration,
    /// How long a request may take to arrive as a whole.
    pub request: Duration,
    /// How long an answer waits for its client to take a piece of it. Then the connection is closed.
    pub unread: Duration,
    /// How long a connection without a call stays.
    pub idle: Duration,
    /// How long a stream of events waits for its client to take what there is.
    pub stall: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            reserve: 16,
            bytes: 64 << 20,
            watchers: 1024,
            streams: 256,
            calls_per_second: 1000,
            handshake: Duration::from_secs(10),
            request: Duration::from_secs(10),
            unread: Duration::from_secs(10),
            idle: Duration::from_secs(120),
            stall: Duration::from_secs(60),
        }
    }
}

impl Limits {
    /// How many connections there may be in this process.
    pub(crate) fn connections_here(&self) -> usize {
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
        match open_files(&limits) {
            Some(files) => self.connections.min(files / 2).max(1),
            None => self.connections,
        }
    }
}

/// The soft limit of open files, if there is one, in the words of `/proc/self/limits`.
fn open_files(limits: &str) -> Option<usize> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_a_process_are_read_from_its_limits() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max processes             127402               127402               processes \n\
                      Max open files            1024                 524288               files     \n";
        assert_eq!(open_files(limits), Some(1024));
        assert_eq!(
            open_files("Max open files            unlimited   unlimited  files"),
            None
        );
        assert_eq!(open_files(""), None);
    }
}
