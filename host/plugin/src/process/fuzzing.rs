//! Entry points for the fuzzer (`tests/fuzz`) into what reads the channel. Only its builds have them.

use std::fmt::Debug;
use std::io::Write as _;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::channel::Receiver;
use super::protocol::{Call, Hello, Open, Said};
use crate::out::MOST_BYTES;

/// Reads as the host does what a child sends, until the channel breaks. Returns the number of messages.
///
/// # Panics
/// A message is not the same after it was sent once more.
pub fn read_as_host(bytes: &[u8]) -> usize {
    let mut receiver = receiver(bytes);
    match receiver.receive::<Hello>(&mut patient) {
        Ok(hello) => 1 + sent_again(&hello) + rest::<Said>(&mut receiver),
        Err(_) => 0,
    }
}

/// Reads as a child does what the host sends, until the channel breaks. Returns the number of messages.
///
/// # Panics
/// A message is not the same after it was sent once more.
pub fn read_as_child(bytes: &[u8]) -> usize {
    let mut receiver = receiver(bytes);
    match receiver.receive::<Open<'static>>(&mut patient) {
        Ok(open) => 1 + sent_again(&open) + rest::<Call<'static>>(&mut receiver),
        Err(_) => 0,
    }
}

fn patient() -> bool {
    true
}

/// The receiving end of a channel over which these bytes came, and which was closed then.
fn receiver(bytes: &[u8]) -> Receiver {
    let (mut sender, receiver) = UnixStream::pair().expect("sockets");
    sender.write_all(bytes).expect("room in the socket");
    sender.shutdown(Shutdown::Both).expect("closed");
    Receiver::new(receiver, MOST_BYTES as u64)
}

fn rest<M: Serialize + DeserializeOwned + Debug>(receiver: &mut Receiver) -> usize {
    let mut count = 0;
    while let Ok(message) = receiver.receive::<M>(&mut patient) {
        count += 1 + sent_again(&message);
    }
    count
}

/// Looks whether a message arrives as it is. Returns 0.
fn sent_again<M: Serialize + DeserializeOwned + Debug>(message: &M) -> usize {
    let bytes = rmp_serde::to_vec(message).expect("encoded");
    let again: M = rmp_serde::from_slice(&bytes).expect("decoded");
    assert_eq!(format!("{message:?}"), format!("{again:?}"));
    0
}
