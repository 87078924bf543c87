//! The channel between the host and a plugin's process: arbitrary bytes, received by one end.
//!
//! The first byte selects the end.
#![no_main]

use host_plugin::fuzzing::{read_as_child, read_as_host};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    // A socket buffers this much without a reader.
    let input = &input[..input.len().min(64 << 10)];
    match input.split_first() {
        Some((0, bytes)) => drop(read_as_child(bytes)),
        Some((_, bytes)) => drop(read_as_host(bytes)),
        None => {}
    }
});
