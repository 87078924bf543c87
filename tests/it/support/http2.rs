use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

/// An HTTP/2 client that can send any bytes, and limits how much the server may send. It respects the
/// server's flow-control windows. Otherwise, the server would close the connection.
pub(crate) struct Http2 {
    stream: TcpStream,
    received: Vec<u8>,
    /// How many bytes may still be sent on the connection, and on each stream.
    window: i64,
    windows: BTreeMap<u32, i64>,
    /// The streams that the server has ended.
    ended: BTreeSet<u32>,
    next: u32,
    /// Whether the server has closed the connection.
    is_over: bool,
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACKNOWLEDGE: u8 = 1;
/// The default window of a server.
const WINDOW: i64 = 65_535;

impl Http2 {
    /// Connects, and allows the server to send `window` bytes of each answer.
    pub(crate) fn connect(address: &str, window: u32) -> Self {
        let stream = TcpStream::connect(address).expect("connected");
        stream.set_nodelay(true).expect("a socket");
        let mut client = Self {
            stream,
            received: Vec::new(),
            window: WINDOW,
            windows: BTreeMap::new(),
            ended: BTreeSet::new(),
            next: 1,
            is_over: false,
        };
        client.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let initial_window = [&[0, 4][..], &window.to_be_bytes()].concat();
        client.frame(SETTINGS, 0, 0, &initial_window);
        client
    }

    /// Starts a call and sends a part of its request. Returns the stream's number.
    pub(crate) fn call(&mut self, path: &str, message: &[u8], is_whole: bool) -> u32 {
        let number = self.next;
        self.next += 2;
        let mut headers = Vec::new();
        for (name, value) in [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ] {
            // A literal field without indexing, with a new name.
            headers.push(0);
            for text in [name, value] {
                headers.push(u8::try_from(text.len()).expect("short"));
                headers.extend(text.as_bytes());
            }
        }
        self.frame(HEADERS, END_HEADERS, number, &headers);
        self.windows.insert(number, WINDOW);
        let end = if is_whole { END_STREAM } else { 0 };
        self.window -= i64::try_from(message.len()).expect("short");
        self.frame(DATA, end, number, message);
        number
    }

    /// Sends data on these streams, at most `most` bytes on each. Stops when the server has accepted nothing
    /// for a while. Returns the number of bytes sent.
    pub(crate) fn fill(&mut self, streams: &[u32], most: usize) -> usize {
        let mut left: BTreeMap<u32, usize> = streams.iter().map(|&of| (of, most)).collect();
        let mut sent = 0;
        while !self.is_over {
            let mut progress = false;
            for &of in streams {
                let window = self.windows.get(&of).copied().unwrap_or(0).min(self.window);
                let size = usize::try_from(window)
                    .unwrap_or(0)
                    .min(left[&of])
                    .min(16 << 10);
                if size > 0 && !self.ended.contains(&of) {
                    self.frame(DATA, 0, of, &vec![0; size]);
                    let size_sent = i64::try_from(size).expect("small");
                    self.window -= size_sent;
                    *self.windows.entry(of).or_default() -= size_sent;
                    *left.entry(of).or_default() -= size;
                    sent += size;
                    progress = true;
                }
            }
            let patience = if progress { 1 } else { 1000 };
            if !self.read(Duration::from_millis(patience)) && !progress {
                break;
            }
        }
        sent
    }

    /// Reads until the server has ended all these streams or closed the connection.
    pub(crate) fn wait_for_end(&mut self, streams: &[u32]) {
        while !self.is_over && !streams.iter().all(|of| self.ended.contains(of)) {
            assert!(
                self.read(Duration::from_secs(60)),
                "the server ended {} of {} streams",
                self.ended.len(),
                streams.len()
            );
        }
    }

    /// Reads what arrives within this time. Returns false if nothing arrives.
    fn read(&mut self, patience: Duration) -> bool {
        self.stream
            .set_read_timeout(Some(patience))
            .expect("a socket");
        let mut bytes = [0; 64 << 10];
        match self.stream.read(&mut bytes) {
            Ok(0) => self.is_over = true,
            Ok(length) => self.received.extend(&bytes[..length]),
            Err(e) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&e.kind()) => {
                return false;
            }
            Err(_) => self.is_over = true,
        }
        while self.take_frame() {}
        true
    }

    fn take_frame(&mut self) -> bool {
        let Some(head) = self.received.first_chunk::<9>().copied() else {
            return false;
        };
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        if self.received.len() < 9 + length {
            return false;
        }
        let frame: Vec<u8> = self.received.drain(..9 + length).skip(9).collect();
        let (kind, flags) = (head[3], head[4]);
        let number = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
        match kind {
            SETTINGS if flags & ACKNOWLEDGE == 0 => self.frame(SETTINGS, ACKNOWLEDGE, 0, &[]),
            PING if flags & ACKNOWLEDGE == 0 => self.frame(PING, ACKNOWLEDGE, 0, &frame),
            WINDOW_UPDATE => {
                let more = frame
                    .first_chunk::<4>()
                    .map_or(0, |of| u32::from_be_bytes(*of));
                match number {
                    0 => self.window += i64::from(more),
                    of => *self.windows.entry(of).or_default() += i64::from(more),
                }
            }
            RESET => _ = self.ended.insert(number),
            HEADERS | DATA if flags & END_STREAM != 0 => _ = self.ended.insert(number),
            _ => {}
        }
        true
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
        self.write(&[&head, payload].concat());
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.stream.write_all(bytes).is_err() {
            self.is_over = true;
        }
    }
}
