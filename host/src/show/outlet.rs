//! Writes to stdout and stderr, which can be files, terminals, or pipes that block.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// Maximum bytes per write. A write to a pipe can block until the reader has made room for all bytes. With
/// small writes, the reader's progress is therefore noticed sooner.
const PIECE: usize = 4096;

/// Writes all bytes, and calls `went` after each write. Blocks while the reader accepts nothing, even if the
/// parent process set the descriptor to non-blocking.
///
/// # Errors
/// Returns [`ErrorKind::BrokenPipe`] if the reading end is closed, or any other error of the system.
pub(crate) fn write(out: BorrowedFd<'_>, bytes: &[u8], went: &dyn Fn()) -> io::Result<()> {
    let mut left = bytes;
    while !left.is_empty() {
        let piece = &left[..left.len().min(PIECE)];
        match rustix::io::write(out, piece) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => {
                left = &left[count..];
                went();
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait(out, PollFlags::OUT)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Blocks until the reading end of a pipe or a socket is closed. Blocks forever if that cannot happen.
///
/// # Errors
/// Returns an error if `poll` fails.
pub(crate) fn wait_for_no_reader(out: BorrowedFd<'_>) -> io::Result<()> {
    wait(out, PollFlags::empty())
}

fn wait(out: BorrowedFd<'_>, events: PollFlags) -> io::Result<()> {
    loop {
        match poll(&mut [PollFd::from_borrowed_fd(out, events)], None) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Returns the process's stdout, unbuffered.
///
/// # Errors
/// Returns an error if the descriptor cannot be duplicated.
pub(crate) fn stdout() -> io::Result<File> {
    Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?))
}

/// Returns the process's stderr, unbuffered.
///
/// # Errors
/// Returns an error if the descriptor cannot be duplicated.
pub(crate) fn stderr() -> io::Result<File> {
    Ok(File::from(io::stderr().as_fd().try_clone_to_owned()?))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::Read as _;

    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

    use super::*;

    #[test]
    fn a_nonblocking_pipe_gets_every_byte() {
        let (mut read, write_end) = io::pipe().expect("a pipe");
        let flags = fcntl_getfl(&write_end).expect("flags");
        fcntl_setfl(&write_end, flags | OFlags::NONBLOCK).expect("set");
        let bytes: Vec<u8> = (0..1 << 20).map(|n| (n % 251) as u8).collect();
        let sent = bytes.clone();
        let writing = std::thread::Builder::new()
            .name("writing".to_owned())
            .spawn(move || {
                let pieces = Cell::new(0);
                let went = || pieces.set(pieces.get() + 1);
                write(write_end.as_fd(), &sent, &went).expect("written");
                pieces.get()
            })
            .expect("a thread");
        let mut read_back = Vec::new();
        read.read_to_end(&mut read_back).expect("read");
        assert!(read_back == bytes);
        assert!(writing.join().expect("no panic") >= 256);
    }

    #[test]
    fn a_pipe_without_a_reader_is_an_error() {
        let (read, write_end) = io::pipe().expect("a pipe");
        drop(read);
        wait_for_no_reader(write_end.as_fd()).expect("polled");
        let error = write(write_end.as_fd(), b"x", &|| {}).expect_err("gone");
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    }
}
