//! The `host` command.
#![forbid(unsafe_code)]

mod cli;
mod config;
mod dashboard;
mod delivery;
mod export;
mod plan;
mod plugins;
mod run;
mod runs;
mod service;
mod show;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::process::ExitCode;

use host_core::{Error, StopReason};

use crate::cli::Command;
use crate::show::printer::Printer;

fn main() -> ExitCode {
    report_panics();
    let ended = cli::parse(std::env::args_os().collect()).and_then(|command| match command {
        None => Ok(Ended::For(StopReason::Completed)),
        Some(Command::Run(args)) => match args.launches()? {
            Some(count) => run::launcher::launch(count).map(Ended::With),
            None => run::run(args.plan(), args.json).map(Ended::For),
        },
        Some(Command::Resume(args)) => run::resume(args.plan(), args.json).map(Ended::For),
        Some(Command::Other(other)) => other.execute().map(Ended::For),
    });
    if let Err(error) = &ended {
        report(error, Printer::of_process());
    }
    // If the terminal accepts no output, this gives up after a short time.
    Printer::flush_process();
    let code = match ended {
        Ok(Ended::For(reason)) => run::signals::leave(reason),
        Ok(Ended::With(code)) => code,
        Err(error) => error.kind().exit_code(),
    };
    host_plugin::end_process(code);
    ExitCode::from(code)
}

/// How a command ended.
enum Ended {
    /// For a reason, from which the exit code follows.
    For(StopReason),
    /// With the exit code of the processes that it started.
    With(u8),
}

/// Prints an error and its hint. All errors are printed here.
fn report(error: &Error, printer: &Printer) {
    printer.insist(&format!("error: {}", error.message()));
    if let Some(hint) = error.hint_text() {
        printer.insist(&format!("hint: {hint}"));
    }
}

/// Prints panics through the printer, so that a stuck terminal does not keep a panicking process alive.
fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let printer = Printer::of_process();
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("without a name");
        for line in format!("thread {name} {panic}").lines() {
            printer.insist(line);
        }
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured {
            let lines = backtrace.to_string();
            lines.lines().for_each(|line| printer.insist(line));
        }
        printer.flush();
    }));
}
