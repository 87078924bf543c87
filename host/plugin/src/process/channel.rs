//! Messages over a stream socket, with bytes behind them that are not encoded.
//!
//! A frame is a head of 16 bytes (a mark, the message's length, the length of the bytes behind it),
//! the message and those bytes. Buffers are kept, so that a call of the usual size allocates nothing
//! here and is one system call on each side in each direction.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::thread::yield_now;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Where the parts behind a message begin: at multiples of this, in memory as well.
pub(super) const ALIGNMENT: usize = 64;

/// What a frame begins with.
const MARK: [u8; 4] = *b"HPS1";
const HEAD: usize = 16;
/// Largest message in bytes. The largest there is are thousands of names.
const LARGEST_MESSAGE: usize = 64 << 20;
/// Up to this size the parts are copied behind the message, to go out with it at once.
const SMALL: usize = 64 << 10;

/// How long to look again and again before going to sleep. To wake a thread up on an idle machine takes
/// longer than a small call does.
const SOON: Duration = Duration::from_micros(60);

/// Why nothing more will come or go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// The other side is gone.
    Closed,
    /// It sent what is no message.
    Garbage,
    /// It answered in no time that the caller would wait, or the caller does not want to any more.
    GivenUp,
    /// The message that was to be sent has so many bytes, more than a message may have. Nothing of it was
    /// sent.
    TooLarge(usize),
}

impl Broken {
    /// Why a message was not sent that is too large.
    pub(super) fn too_large(what: &str, bytes: usize) -> String {
        let most = LARGEST_MESSAGE >> 20;
        format!("{what} has {bytes} bytes, more than the {most} MiB that go between processes")
    }
}

/// Asked whenever a socket with a time limit has moved nothing for that long: whether to go on.
pub(super) type GoOn<'a> = &'a mut dyn FnMut() -> bool;

/// The end that sends.
#[derive(Debug)]
pub(super) struct Sender {
    socket: UnixStream,
    frame: Vec<u8>,
}

/// The end that receives.
#[derive(Debug)]
pub(super) struct Receiver {
    socket: UnixStream,
    /// What came and was not yet read is `buffer[start..end]`.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// What stood behind the last message.
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

    /// Sends a message and the parts behind it.
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
        // Takes away pieces without bytes, at which a write would say 0.
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
    /// `most_behind` is how many bytes may stand behind a message.
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

    /// The next message.
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

    /// What stood behind the last message; it begins at a multiple of [`ALIGNMENT`].
    pub(super) fn behind(&self) -> &[u8] {
        self.behind.bytes()
    }

    /// Reads until at least so many bytes wait to be taken.
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

/// Bytes that begin at a multiple of [`ALIGNMENT`]. The room that was once needed is kept.
#[derive(Debug, Default)]
struct Aligned {
    room: Vec<u8>,
    length: usize,
}

impl Aligned {
    /// Makes it so long, with whatever bytes.
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

/// The next multiple of [`ALIGNMENT`].
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

/// What comes within [`SOON`], if anything does; an end or a fault is left to be found by a read that
/// waits. Whoever else wants this CPU, the other side perhaps, has it meanwhile.
fn read_soon(socket: &UnixStream, into: &mut [u8]) -> Option<usize> {
    let asked = Instant::now();
    loop {
        // SAFETY: the descriptor is the socket's, and the room is writable for its whole length.
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
    fn messages_of_any_size_arrive_in_order_with_what_stands_behind_them() {
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
    fn what_is_no_message_is_garbage() {
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
    fn a_message_that_is_too_large_is_not_sent_and_the_next_one_is() {
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
    fn who_waits_may_give_up() {
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
