//! The command line: one file for each command.

mod argv;
mod control;
mod data;
mod deliver;
mod generate;
mod groups;
mod login_name;
mod openmp;
mod plugin;
mod plugin_check;
mod plugin_list;
mod plugin_lock;
mod plugin_new;
mod remote;
mod resume;
mod run;
mod runs;
mod runs_compare;
mod runs_export;
mod serve;
mod verify_resume;
mod watch;

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use clap::{ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand};
use host_core::{Error, ErrorKind, Result, StopReason};

use crate::config::settings;
use crate::show::printer::Printer;
use crate::show::{outlet, printable};

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    the machine: a full disk, a lost device
  2    the command line, the configuration or the data
  3    a plugin
  4    the run went well, but a checkpoint did not reach every sink
  5    the training: a loss that is not finite
  129  ended by SIGHUP (a terminal that is gone), after a checkpoint; ignored behind nohup
  130  ended by Ctrl-C, after a checkpoint; a second Ctrl-C or SIGTERM ends at once
  131  ended by SIGQUIT, after a checkpoint: by the signal itself, with a core where those are kept
  138  ended by SIGUSR1, a scheduler's warning, after a checkpoint
  140  ended by SIGUSR2, the same
  143  ended by SIGTERM, after a checkpoint

A signal n that ends a run gives 128 + n. SIGPIPE ends no run: training continues when the output is
closed. A command that prints results ends quietly when its pipe is closed.";

/// Trains a GPT-2 on source code; extended by plugins, read live over gRPC
#[derive(Debug, Parser)]
#[command(name = "host", version, after_help = EXIT_CODES, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What the program does.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(run::Run),
    Resume(resume::Resume),
    #[command(flatten)]
    Other(Other),
}

/// What it does besides training.
#[derive(Debug, Subcommand)]
pub(crate) enum Other {
    Deliver(deliver::Deliver),
    Groups(groups::Groups),
    VerifyResume(verify_resume::VerifyResume),
    Plugin(plugin::Plugin),
    Data(data::Data),
    Runs(runs::Runs),
    Serve(serve::Serve),
    Watch(watch::Watch),
    Control(control::Control),
    Generate(generate::Generate),
}

impl Command {
    /// Whether this process computes with libtorch for longer than a moment.
    fn computes(&self) -> bool {
        matches!(
            self,
            Self::Run(_) | Self::Resume(_) | Self::Other(Other::Generate(_))
        )
    }
}

impl Other {
    /// Does it.
    ///
    /// # Errors
    /// What keeps it from being done; `main` prints the error.
    pub(crate) fn execute(&self) -> Result<StopReason> {
        match self {
            Self::Deliver(deliver) => return deliver.execute(),
            Self::Groups(groups) => groups.execute(),
            Self::VerifyResume(verify) => verify.execute(),
            Self::Plugin(plugin) => plugin.execute(),
            Self::Data(data) => data.execute(),
            Self::Runs(runs) => runs.execute(),
            Self::Serve(serve) => serve.execute(),
            Self::Watch(watch) => watch.execute(),
            Self::Control(control) => control.execute(),
            Self::Generate(generate) => generate.execute(),
        }
        .map(|()| StopReason::Completed)
    }
}

/// Where runs are looked for.
#[derive(Clone, Debug, clap::Args)]
struct RunsDir {
    /// Folder that holds the runs' folders
    #[arg(
        long,
        visible_alias = "runs",
        value_name = "DIR",
        default_value = "runs",
        global = true
    )]
    runs_dir: PathBuf,
}

/// Reads the command line. None where it asks for help or for the version, which is printed.
///
/// # Errors
/// It cannot be understood; `main` prints the error.
pub(crate) fn parse(args: Vec<OsString>) -> Result<Option<Command>> {
    let args = argv::normalize(&command(), args)?;
    let cli = command()
        .try_get_matches_from(&args)
        .and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match cli {
        Ok(cli) => cli,
        Err(said) => {
            argv::outcome(&said, &command(), &args)?;
            return Ok(None);
        }
    };
    if cli.command.computes() {
        openmp::limit_spinning();
    }
    Ok(Some(cli.command))
}

/// clap's description of the command line, with the configuration's defaults in the help.
fn command() -> clap::Command {
    let describe = |command: clap::Command| {
        let defaults = settings::defaults();
        command.mut_args(|mut arg| {
            // Given twice, the last counts, so that a script can lay its own over a user's.
            if matches!(arg.get_action(), ArgAction::Set) && !arg.is_positional() {
                let id = arg.get_id().clone();
                arg = arg.overrides_with(id);
            }
            let key = arg.get_id().as_str().to_owned();
            let default = match defaults.get(&key) {
                Some(serde_json::Value::String(text)) => text.clone(),
                Some(value @ (serde_json::Value::Number(_) | serde_json::Value::Bool(_))) => {
                    value.to_string()
                }
                _ => return arg,
            };
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            arg.help(format!("{help} [default: {default}]"))
        })
    };
    Cli::command()
        .mut_subcommand("run", describe)
        .mut_subcommand("groups", describe)
        .mut_subcommand("verify-resume", describe)
}

/// Writes a result to stdout, where a terminal finds nothing in it to obey. A closed pipe, as behind
/// `| head`, is not an error.
///
/// # Errors
/// It cannot be written, as to a full disk.
fn print(text: &str) -> Result<()> {
    write(printable::lines(text).as_bytes()).map(drop)
}

/// A JSON value on stdout, for programs and people.
fn print_json(value: &serde_json::Value) -> Result<()> {
    write(printable::json(&format!("{value:#}\n")).as_bytes()).map(drop)
}

/// Writes to stdout; false if the pipe is closed.
///
/// # Errors
/// It cannot be written, as to a full disk.
fn write(bytes: &[u8]) -> Result<bool> {
    // What was said before stands before it on a terminal.
    Printer::flush_process();
    match outlet::write(std::io::stdout().as_fd(), bytes, &|| {}) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => {
            let error = Error::new(ErrorKind::System, format!("cannot write to stdout: {e}"));
            Err(error.hint("free some disk space, or write the output elsewhere"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claps_own_checks_hold() {
        command().debug_assert();
    }

    #[test]
    fn of_a_flag_given_twice_the_last_counts_and_lists_grow() {
        let args = [
            "host", "run", "--seed", "1", "--data", "a", "--seed", "2", "--data", "b",
        ];
        let matches = command().try_get_matches_from(args).expect("matches");
        let (_, run) = matches.subcommand().expect("run");
        assert_eq!(run.get_one::<i64>("seed"), Some(&2));
        assert_eq!(run.get_many::<PathBuf>("data").expect("data").count(), 2);
    }

    #[test]
    fn every_setting_is_a_flag_and_every_flag_a_setting() {
        let mut settings: Vec<String> = settings::defaults().keys().cloned().collect();
        let command = command();
        let run = command.find_subcommand("run").expect("run");
        let mut flags: Vec<String> = run
            .get_arguments()
            .filter(|arg| arg.get_long().is_some_and(|long| long != "json"))
            .map(|arg| {
                let name = arg.get_long().expect("long").replace('-', "_");
                assert_eq!(name, arg.get_id().as_str());
                name
            })
            .collect();
        settings.sort();
        flags.sort();
        assert_eq!(flags, settings);
    }

    #[test]
    fn the_help_shows_every_default_and_every_choice() {
        let command = command();
        let run = command.find_subcommand("run").expect("run");
        for (key, default) in settings::defaults() {
            let arg = run
                .get_arguments()
                .find(|arg| arg.get_id().as_str() == key)
                .expect("an argument");
            let help = arg.get_help().expect("help").to_string();
            let shown = match &default {
                serde_json::Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let has_default = !(default.is_null() || default.is_array());
            assert_eq!(
                help.contains(&format!("[default: {shown}]")),
                has_default,
                "{help}"
            );
            // The configuration's own list of choices is in what it says to a wrong one.
            let wrong = serde_json::json!({ &key: "?" });
            let known = match serde_json::from_value::<host_train::TrainConfig>(wrong) {
                Err(error) if error.to_string().contains("unknown variant") => error.to_string(),
                _ => continue,
            };
            let known: Vec<&str> = known.split('`').skip(3).step_by(2).collect();
            let choices = arg.get_possible_values();
            let choices: Vec<&str> = choices
                .iter()
                .map(clap::builder::PossibleValue::get_name)
                .collect();
            assert_eq!(choices, known, "{key}");
        }
    }
}
