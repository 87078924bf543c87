//! Messages over a stream socket, each followed by raw bytes.
//!
//! A frame consists of a header, the message and the raw bytes. The header has 16 bytes: a magic number, the
//! length of the message, and the length of the raw bytes. Buffers are reused, so a call of the usual size
//! allocates no memory here. Such a call needs one system call per direction on each side.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::thread::yield_now;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The alignment of each part of the raw bytes after a message, both in the frame and in memory.
pub(super) const ALIGNMENT: usize = 64;

/// The magic number at the start of a frame.
const MARK: [u8; 4] = *b"HPS1";
const HEAD: usize = 16;
/// Maximum size of a message in bytes. The largest real messages contain thousands of names.
const LARGEST_MESSAGE: usize = 64 << 20;
/// If the parts together have at most this size, they are copied into the message's buffer, so that one write
/// sends the message and the parts.
const SMALL: usize = 64 << 10;

/// How long to poll before blocking. Waking a thread on an idle machine takes longer than a small call.
const SOON: Duration = Duration::from_micros(60);

/// Why the channel can no longer be used, or why a message was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// The other side has closed the channel.
    Closed,
    /// The other side sent an invalid message.
    Garbage,
    /// The time limit has passed, or the caller has stopped waiting.
    GivenUp,
    /// The message has this many bytes, which is more than the maximum. Nothing was sent.
    TooLarge(usize),
}

impl Broken {
    /// Returns the error text for [`Broken::TooLarge`].
    pub(super) fn too_large(what: &str, bytes: usize) -> String {
        let most = LARGEST_MESSAGE >> 20;
        format!(
            "{what} has {bytes} bytes, but a message between processes can have at most {most} MiB"
        )
    }
}

/// A callback that is called each time a socket operation reaches its timeout without transferring data. It
/// returns true if the operation should continue.
pub(super) type GoOn<'a> = &'a mut dyn FnMut() -> bool;

/// The sending end.
#[derive(Debug)]
pub(super) struct Sender {
    socket: UnixStream,
    frame: Vec<u8>,
}

/// The receiving end.
#[derive(Debug)]
pub(super) struct Receiver {
    socket: UnixStream,
    /// `buffer[start..end]` was received but not yet read.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// The raw bytes after the last message.
    behind: Aligned,
    most_behind: u64,
}

impl Sender {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            frame: Vec::new(),
        }
    }

    /// Sends a message and the parts after it.
    pub(super) fn send(
        &mut self,
        message: &impl Serialize,
        parts: &[&[u8]],
        go_on: GoOn<'_>,
    ) -> Result<(), Broken> {
        self.frame.clear();
        self.frame.extend([0; HEAD]);
        rmp_serde::encode::write(&mut self.frame, message).map_err(|_| Broken::Garbage)?;
        let length = self.frame.len() - HEAD;
        let behind = parts
            .iter()
            .fold(0, |end: usize, part| aligned(end) + part.len());
        let (Ok(length), true) = (u32::try_from(length), length <= LARGEST_MESSAGE) else {
            return Err(Broken::TooLarge(length));
        };
        self.frame[..4].copy_from_slice(&MARK);
        self.frame[4..8].copy_from_slice(&length.to_le_bytes());
        self.frame[8..HEAD].copy_from_slice(&(behind as u64).to_le_bytes());
        if behind <= SMALL {
            let begin = self.frame.len();
            for part in parts {
                let at = begin + aligned(self.frame.len() - begin);
                self.frame.resize(at, 0);
                self.frame.extend_from_slice(part);
            }
            return self.write(&[&self.frame], go_on);
        }
        let mut pieces: Vec<&[u8]> = vec![&self.frame];
        let mut end = 0;
        for part in parts {
            pieces.push(&[0; ALIGNMENT][..aligned(end) - end]);
            pieces.push(part);
            end = aligned(end) + part.len();
        }
        self.write(&pieces, go_on)
    }

    fn write(&self, pieces: &[&[u8]], go_on: GoOn<'_>) -> Result<(), Broken> {
        let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        let mut slices = &mut slices[..];
        // Removes empty pieces, for which a write would return 0.
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            match (&self.socket).write_vectored(slices) {
                Ok(0) => return Err(Broken::Closed),
                Ok(written) => IoSlice::advance_slices(&mut slices, written),
                Err(error) => wait_or_break(&error, go_on)?,
            }
        }
        Ok(())
    }
}

impl Receiver {
    /// Creates a receiver. `most_behind` is the maximum number of raw bytes after a message.
    pub(super) fn new(socket: UnixStream, most_behind: u64) -> Self {
        Self {
            socket,
            buffer: vec![0; SMALL],
            start: 0,
            end: 0,
            behind: Aligned::default(),
            most_behind,
        }
    }

    /// Receives the next message.
    pub(super) fn receive<M: DeserializeOwned>(&mut self, go_on: GoOn<'_>) -> Result<M, Broken> {
        self.gather(HEAD, go_on)?;
        let head = &self.buffer[self.start..self.start + HEAD];
        let u32_at =
            |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let length = u32_at(4) as usize;
        let behind = u64::from(u32_at(8)) | u64::from(u32_at(12)) << 32;
        if head[..4] != MARK || length > LARGEST_MESSAGE || behind > self.most_behind {
            return Err(Broken::Garbage);
        }
        let behind = usize::try_from(behind).map_err(|_| Broken::Garbage)?;
        self.gather(HEAD + length, go_on)?;
        let message = &self.buffer[self.start + HEAD..self.start + HEAD + length];
        let message = rmp_serde::from_slice(message).map_err(|_| Broken::Garbage)?;
        self.start += HEAD + length;
        self.take_behind(behind, go_on)?;
        Ok(message)
    }

    /// Returns the raw bytes after the last message. They start at a multiple of [`ALIGNMENT`].
    pub(super) fn behind(&self) -> &[u8] {
        self.behind.bytes()
    }

    /// Reads until the buffer contains at least this many unread bytes.
    fn gather(&mut self, bytes: usize, go_on: GoOn<'_>) -> Result<(), Broken> {
        if self.start + bytes > self.buffer.len() || self.start == self.end {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            if bytes > self.buffer.len() {
                self.buffer.resize(bytes, 0);
            }
        }
        while self.end - self.start < bytes {
            let free = &mut self.buffer[self.end..];
            self.end += read(&self.socket, free, go_on)?;
        }
        Ok(())
    }

    fn take_behind(&mut self, bytes: usize, go_on: GoOn<'_>) -> Result<(), Broken> {
        let here = bytes.min(self.end - self.start);
        let behind = self.behind.resize(bytes);
        behind[..here].copy_from_slice(&self.buffer[self.start..self.start + here]);
        self.start += here;
        let mut filled = here;
        while filled < bytes {
            filled += read(&self.socket, &mut behind[filled..], go_on)?;
        }
        Ok(())
    }
}

/// A byte buffer that starts at a multiple of [`ALIGNMENT`]. It keeps its capacity.
#[derive(Debug, Default)]
struct Aligned {
    room: Vec<u8>,
    length: usize,
}

impl Aligned {
    /// Sets the length and returns the buffer, whose content is unspecified.
    fn resize(&mut self, length: usize) -> &mut [u8] {
        let needed = length.saturating_add(ALIGNMENT);
        if self.room.len() < needed {
            self.room.resize(needed, 0);
        }
        self.length = length;
        let begin = self.begin();
        &mut self.room[begin..begin + length]
    }

    fn bytes(&self) -> &[u8] {
        match self.length {
            0 => &[],
            length => &self.room[self.begin()..][..length],
        }
    }

    fn begin(&self) -> usize {
        self.room.as_ptr().align_offset(ALIGNMENT)
    }
}

/// Rounds up to a multiple of [`ALIGNMENT`].
pub(super) fn aligned(at: usize) -> usize {
    at.next_multiple_of(ALIGNMENT)
}

fn read(mut socket: &UnixStream, into: &mut [u8], go_on: GoOn<'_>) -> Result<usize, Broken> {
    if let Some(read) = read_soon(socket, into) {
        return Ok(read);
    }
    loop {
        match socket.read(into) {
            Ok(0) => return Err(Broken::Closed),
            Ok(read) => return Ok(read),
            Err(error) => wait_or_break(&error, go_on)?,
        }
    }
}

/// Returns the number of bytes read, if any arrive within [`SOON`]. Otherwise returns `None`, and the caller
/// falls back to a blocking read. The end of the stream and errors also lead to `None`. Yields the CPU while
/// polling, possibly to the other side.
fn read_soon(socket: &UnixStream, into: &mut [u8]) -> Option<usize> {
    let asked = Instant::now();
    loop {
        // SAFETY: the descriptor belongs to the socket, and the whole buffer is writable.
        let read = unsafe {
            libc::recv(
                socket.as_raw_fd(),
                into.as_mut_ptr().cast(),
                into.len(),
                libc::MSG_DONTWAIT,
            )
        };
        if let Ok(read @ 1..) = usize::try_from(read) {
            return Some(read);
        }
        if asked.elapsed() >= SOON || read == 0 {
            return None;
        }
        yield_now();
    }
}

fn wait_or_break(error: &io::Error, go_on: GoOn<'_>) -> Result<(), Broken> {
    match error.kind() {
        io::ErrorKind::Interrupted => Ok(()),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut if go_on() => Ok(()),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Err(Broken::GivenUp),
        _ => Err(Broken::Closed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(most_behind: u64) -> (Sender, Receiver) {
        let (one, two) = UnixStream::pair().expect("sockets");
        (Sender::new(one), Receiver::new(two, most_behind))
    }

    fn patient() -> bool {
        true
    }

    #[test]
    fn messages_of_any_size_arrive_in_order_with_their_raw_bytes() {
        let (mut sender, mut receiver) = pair(u64::MAX);
        let sizes = [0, 1, 63, 64, 65, 5000, SMALL, SMALL + 1, 3 << 20];
        let sending = std::thread::Builder::new()
            .name("sender".to_owned())
            .spawn(move || {
                for size in sizes {
                    let (text, part) = ("x".repeat(size), vec![size as u8; size]);
                    let parts: [&[u8]; 3] = [&part, b"abc", &part];
                    sender.send(&text, &parts, &mut patient).expect("sent");
                }
            })
            .expect("a thread");
        for size in sizes {
            let text: String = receiver.receive(&mut patient).expect("received");
            let behind = receiver.behind();
            assert_eq!(text, "x".repeat(size));
            let (abc, last) = (aligned(size), aligned(aligned(size) + 3));
            assert_eq!(behind.len(), last + size);
            assert_eq!(behind.as_ptr().align_offset(ALIGNMENT), 0);
            assert_eq!(&behind[abc..abc + 3], b"abc");
            let whole = vec![size as u8; size];
            assert_eq!((&behind[..size], &behind[last..]), (&whole[..], &whole[..]));
        }
        sending.join().expect("the sender");
        let end = receiver.receive::<String>(&mut patient);
        assert_eq!(end, Err(Broken::Closed));
    }

    #[test]
    fn an_invalid_message_is_garbage() {
        let head = |mark: &[u8; 4], length: u32, behind: u64| {
            let lengths = (length.to_le_bytes(), behind.to_le_bytes());
            [&mark[..], &lengths.0, &lengths.1].concat()
        };
        for bytes in [
            b"Segmentation fault".to_vec(),
            head(&MARK, u32::MAX, 0),
            head(&MARK, 1, 101),
            [head(&MARK, 1, 0), vec![0xc1]].concat(),
        ] {
            let (sender, mut receiver) = pair(100);
            (&sender.socket).write_all(&bytes).expect("written");
            let received = receiver.receive::<String>(&mut patient);
            assert_eq!(received, Err(Broken::Garbage), "{bytes:?}");
        }
    }

    #[test]
    fn a_message_that_is_too_large_is_not_sent_and_the_next_message_is() {
        let (mut sender, mut receiver) = pair(0);
        let huge = "x".repeat(LARGEST_MESSAGE + 1);
        let sent = sender.send(&huge, &[], &mut patient);
        let Err(Broken::TooLarge(bytes)) = sent else {
            panic!("{sent:?}");
        };
        assert!(bytes > LARGEST_MESSAGE);
        sender.send(&"next", &[], &mut patient).expect("sent");
        let next: String = receiver.receive(&mut patient).expect("received");
        assert_eq!(next, "next");
    }

    #[test]
    fn a_waiting_caller_can_give_up() {
        let (mut sender, mut receiver) = pair(0);
        let tick = Some(Duration::from_millis(1));
        receiver.socket.set_read_timeout(tick).expect("set");
        sender.socket.set_write_timeout(tick).expect("set");
        let mut asked = 0;
        let mut thrice = || {
            asked += 1;
            asked < 3
        };
        let received = receiver.receive::<String>(&mut thrice);
        assert_eq!((received, asked), (Err(Broken::GivenUp), 3));
        let large = vec![0; 16 << 20];
        let sent = sender.send(&"x", &[&large], &mut || false);
        assert_eq!(sent, Err(Broken::GivenUp));
    }
}
