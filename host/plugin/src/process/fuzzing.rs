//! Entry points for the fuzzer (`tests/fuzz`), for both ends of the channel. Only fuzzing builds have them.

use std::fmt::Debug;
use std::io::Write as _;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::channel::Receiver;
use super::protocol::{Call, Hello, Open, Said};
use crate::out::MOST_BYTES;

/// Receives a child's messages as the host does, until the channel breaks. Returns the number of messages.
///
/// # Panics
/// Panics if re-encoding and decoding a message changes it.
pub fn read_as_host(bytes: &[u8]) -> usize {
    let mut receiver = receiver(bytes);
    match receiver.receive::<Hello>(&mut patient) {
        Ok(hello) => 1 + sent_again(&hello) + rest::<Said>(&mut receiver),
        Err(_) => 0,
    }
}

/// Receives the host's messages as a child does, until the channel breaks. Returns the number of messages.
///
/// # Panics
/// Panics if re-encoding and decoding a message changes it.
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

/// Returns the receiving end of a channel that delivers these bytes and then closes.
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

/// Checks that a message is unchanged by encoding and decoding. Returns 0, so that callers can add the
/// result.
fn sent_again<M: Serialize + DeserializeOwned + Debug>(message: &M) -> usize {
    let bytes = rmp_serde::to_vec(message).expect("encoded");
    let again: M = rmp_serde::from_slice(&bytes).expect("decoded");
    assert_eq!(format!("{message:?}"), format!("{again:?}"));
    0
}
