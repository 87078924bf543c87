use std::time::Duration;

/// The limits of a server. The defaults are those of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of connections; further connections are rejected. The effective limit is at most half
    /// of the process's open-file limit, since training needs files, too.
    pub connections: usize,
    /// Additional connections from this machine, for clients that send the control token with their first
    /// call. If all of them are in use, a new connection replaces the oldest one that has not sent the token.
    pub reserve: usize,
    /// Maximum number of bytes of all requests and responses in flight. One connection can use up to half of
    /// this number.
    pub bytes: usize,
    /// Maximum number of open streams over all connections. Event streams and health streams both count.
    pub watchers: usize,
    /// Maximum number of open calls per connection.
    pub streams: u32,
    /// Number of calls that one connection can start per second.
    pub calls_per_second: u32,
    /// Timeout of a connection's handshake, including TLS.
    pub handshake: Duration,
    /// Timeout for receiving a complete request.
    pub request: Duration,
    /// How long the client may take to read a part of a response. After this time the connection is closed.
    pub unread: Duration,
    /// How long a connection without a call is kept open.
    pub idle: Duration,
    /// How long the client may take to read available events of a stream. After this time the stream ends.
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
    /// Returns the maximum number of connections in this process.
    pub(crate) fn connections_here(&self) -> usize {
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
        match open_files(&limits) {
            Some(files) => self.connections.min(files / 2).max(1),
            None => self.connections,
        }
    }
}

/// Returns the soft limit on open files from the text of `/proc/self/limits`, or `None` if there is no limit.
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
