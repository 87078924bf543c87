//! The `host` command.
#![forbid(unsafe_code)]

mod cli;
mod dashboard;
mod deliver;
mod delivery;
mod event_json;
mod event_line;
mod export;
mod hub_model;
mod login_name;
mod meter;
mod nearest;
mod number;
mod origin;
mod plan;
mod plugin_accounts;
mod plugins;
mod preflight;
mod progress;
mod resume_point;
mod run;
mod run_dir;
mod run_file;
mod scaffold;
mod script_names;
mod service;
mod settings;
mod signals;
mod sparkline;
mod summary;
mod system_metrics;
mod table;
mod verify_resume;

use std::process::ExitCode;

use host_core::Error;

fn main() -> ExitCode {
    let code = match cli::execute(std::env::args_os().collect()) {
        Ok(reason) => signals::exit_code(reason),
        Err(error) => {
            print_error(&error);
            error.kind().exit_code()
        }
    };
    host_plugin::end_process(code);
    ExitCode::from(code)
}

/// The one place where errors are printed.
fn print_error(error: &Error) {
    eprintln!("error: {}", event_line::one_line(error.message()));
    if let Some(hint) = error.hint_text() {
        eprintln!("hint: {}", event_line::one_line(hint));
    }
}
