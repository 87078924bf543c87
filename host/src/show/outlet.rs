//! Stdout and stderr, whatever they are: a file, a terminal, a pipe that takes nothing for a while.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// Bytes of one write. A pipe takes this much at once, so a count of the pieces shows whether the output moves.
const PIECE: usize = 4096;

/// Writes all of it, and says after each piece that it went. Blocks while nothing is taken, also where
/// the parent has made the descriptor one that does not block.
///
/// # Errors
/// [`ErrorKind::BrokenPipe`] if the reading end is closed; else what the system says.
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

/// Blocks until the reading end of a pipe or a socket is closed; without end, where that cannot happen.
///
/// # Errors
/// The system refuses.
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

/// The process's own stdout, without a buffer.
///
/// # Errors
/// The system refuses another descriptor.
pub(crate) fn stdout() -> io::Result<File> {
    Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?))
}

/// The process's own stderr.
///
/// # Errors
/// The system refuses another descriptor.
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
    fn a_pipe_that_does_not_block_gets_every_byte_all_the_same() {
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
    fn a_pipe_whose_reader_is_gone_says_so() {
        let (read, write_end) = io::pipe().expect("a pipe");
        drop(read);
        wait_for_no_reader(write_end.as_fd()).expect("polled");
        let error = write(write_end.as_fd(), b"x", &|| {}).expect_err("gone");
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    }
}
