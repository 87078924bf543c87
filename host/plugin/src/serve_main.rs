//! The child process of a plugin: `host plugin serve` and nothing else of the host.
//!
//! The host starts it where it lies beside the host's own program. It has no libtorch to load, so it is
//! there within milliseconds and takes a tenth of the memory.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    // It is called as the host is: `host plugin serve DESCRIPTORS`.
    let inherited = std::env::args().nth(3).unwrap_or_default();
    match host_plugin::serve(&inherited) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", error.message());
            if let Some(hint) = error.hint_text() {
                eprintln!("hint: {hint}");
            }
            ExitCode::from(error.kind().exit_code())
        }
    }
}
