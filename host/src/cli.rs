//! The command line. Each command has its own file.

mod argv;
mod control;
mod data;
mod deliver;
mod generate;
mod groups;
mod help;
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
  0    success
  1    system error, such as a full disk or a lost device
  2    error in the command line, the configuration or the data
  3    plugin error
  4    the run succeeded, but a checkpoint did not reach every sink
  5    training error, such as a loss that is not finite
  129  stopped by SIGHUP (closed terminal), after a checkpoint; ignored under nohup
  130  stopped by Ctrl-C, after a checkpoint; a second Ctrl-C or SIGTERM exits immediately
  131  killed by SIGQUIT, after a checkpoint, with a core dump if core dumps are enabled
  138  stopped by SIGUSR1 (warning from a job scheduler), after a checkpoint
  140  stopped by SIGUSR2 (warning from a job scheduler), after a checkpoint
  143  stopped by SIGTERM, after a checkpoint

For details, run `host help exit-codes` or `host help metrics`.

A run stopped by signal n exits with 128 + n. SIGPIPE is ignored: training continues when the output \
is closed. A command that prints results exits quietly when its pipe is closed.

Example:
  host run --data ~/src --extensions rs --model tiny --seq-length 128 --num-warmup-steps 10 \\
      --max-train-steps 100";

/// Trains GPT-2 models on source code, with plugins, and serves the metrics live over gRPC
#[derive(Debug, Parser)]
#[command(name = "host", version, after_help = EXIT_CODES, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(run::Run),
    Resume(resume::Resume),
    #[command(flatten)]
    Other(Other),
}

/// The commands other than `run` and `resume`.
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
    /// Whether this process computes with libtorch for a long time.
    fn computes(&self) -> bool {
        matches!(
            self,
            Self::Run(_) | Self::Resume(_) | Self::Other(Other::Generate(_))
        )
    }
}

impl Other {
    /// Runs the command.
    ///
    /// # Errors
    /// Returns the command's error, which `main` prints.
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

/// The folder that is searched for runs.
#[derive(Clone, Debug, clap::Args)]
struct RunsDir {
    /// Folder that contains the run folders
    #[arg(
        long,
        visible_alias = "runs",
        value_name = "DIR",
        default_value = "runs",
        global = true
    )]
    runs_dir: PathBuf,
}

/// Parses the command line. Returns `None` after printing the help or the version.
///
/// # Errors
/// Returns an error if the command line is invalid; `main` prints it.
pub(crate) fn parse(args: Vec<OsString>) -> Result<Option<Command>> {
    if let Some(page) = help::topic(&args) {
        print(&page)?;
        return Ok(None);
    }
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

/// Builds clap's description of the command line, with the configuration's defaults in the help.
fn command() -> clap::Command {
    let describe = |command: clap::Command| {
        let defaults = settings::defaults();
        command.mut_args(|mut arg| {
            // If a flag is repeated, the last value counts. So a script can append its own flags to the
            // user's.
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

/// Writes a result to stdout, without control characters. A closed pipe, as with `| head`, is not an
/// error.
///
/// # Errors
/// Returns an error if the write fails, for example on a full disk.
fn print(text: &str) -> Result<()> {
    write(printable::lines(text).as_bytes()).map(drop)
}

/// Writes a JSON value to stdout, indented.
fn print_json(value: &serde_json::Value) -> Result<()> {
    write(printable::json(&format!("{value:#}\n")).as_bytes()).map(drop)
}

/// Writes to stdout. Returns false if the pipe is closed.
///
/// # Errors
/// Returns an error if the write fails, for example on a full disk.
fn write(bytes: &[u8]) -> Result<bool> {
    // On a terminal, messages that were written earlier must appear first.
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
    fn clap_accepts_the_definition() {
        command().debug_assert();
    }

    #[test]
    fn the_last_of_a_repeated_flag_counts_and_lists_grow() {
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
            // These two concern a command, not a run.
            .filter(|arg| {
                arg.get_long()
                    .is_some_and(|long| !["json", "nproc"].contains(&long))
            })
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

    /// Returns the examples in the help of a command and of its subcommands, each as one line.
    fn examples(command: &clap::Command) -> Vec<String> {
        let help = command.get_after_help().map(ToString::to_string);
        let help = help.unwrap_or_default().replace("\\\n", " ");
        let lines = help.lines().map(str::trim);
        let own = lines.filter(|line| line.starts_with("host "));
        let mut all: Vec<String> = own.map(str::to_owned).collect();
        all.extend(command.get_subcommands().flat_map(examples));
        all
    }

    #[test]
    fn the_examples_fit_the_positions_of_their_models() {
        let examples = examples(&command());
        let mut count = 0;
        for example in &examples {
            let words: Vec<&str> = example.split_whitespace().collect();
            let after = |flag: &str| {
                let at = words.iter().position(|&word| word == flag)?;
                words.get(at + 1).copied()
            };
            let positions = match (words[1], after("--model")) {
                ("run" | "groups" | "verify-resume", Some("tiny")) => 128,
                ("run" | "groups" | "verify-resume", Some("demo")) => 256,
                _ => continue,
            };
            let length = after("--seq-length").and_then(|length| length.parse::<u32>().ok());
            assert!(
                length.is_some_and(|length| length <= positions),
                "{example}"
            );
            count += 1;
        }
        assert!(count >= 5, "{examples:?}");
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
            // For an unknown choice, the error of the configuration lists the known choices.
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
