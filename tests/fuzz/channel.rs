//! Fuzzes the channel between the host and a plugin's process. One end receives arbitrary bytes.
//!
//! The first byte of the input selects the end: 0 is the child's end, any other value the host's end.
#![no_main]

use host_plugin::fuzzing::{read_as_child, read_as_host};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    // A socket accepts this many bytes before any are read.
    let input = &input[..input.len().min(64 << 10)];
    match input.split_first() {
        Some((0, bytes)) => drop(read_as_child(bytes)),
        Some((_, bytes)) => drop(read_as_host(bytes)),
        None => {}
    }
});
