//! The program that runs in a plugin's child process. It contains the command `host plugin serve` and nothing
//! else of the host.
//!
//! The host starts this program if it is in the same folder as the host's own program. Otherwise, the host
//! starts its own program as the child process. This program does not load libtorch, so it starts within
//! milliseconds and uses only a tenth of the memory that the host's own program would use.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    // The arguments are the same as for the host: `host plugin serve DESCRIPTORS`.
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
