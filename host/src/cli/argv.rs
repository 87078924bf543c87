//! Normalizes the command line for clap, and converts clap's errors.

use std::ffi::OsString;

use clap::Command;
use host_core::{Error, ErrorKind, Result};

use crate::config::script_names;
use crate::show::terminal::can_draw;

/// Accepts the flags of CodeParrot's training script, for example `--train_batch_size 4`,
/// `--gradient_checkpointing False` and `--save_dir out`. Arguments that are not flags of the subcommand stay
/// unchanged.
///
/// # Errors
/// Returns an error for a flag of the script that has no equivalent.
pub(crate) fn normalize(command: &Command, args: Vec<OsString>) -> Result<Vec<OsString>> {
    let Some(subcommand) = args
        .iter()
        .skip(1)
        .find_map(|arg| command.find_subcommand(arg))
    else {
        return Ok(args);
    };
    let mut out: Vec<OsString> = Vec::with_capacity(args.len());
    let mut args = args.into_iter().peekable();
    while let Some(arg) = args.next() {
        let Some(flag) = arg.to_str().and_then(|arg| arg.strip_prefix("--")) else {
            out.push(arg);
            continue;
        };
        if flag.is_empty() {
            out.push(arg);
            break;
        }
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (flag, None),
        };
        let key = name.replace('-', "_");
        let ours = script_names::renamed(&key).replace('_', "-");
        let takes = |name: &str| {
            subcommand.get_arguments().find(|known| {
                known.get_long() == Some(name)
                    || known.get_all_aliases().unwrap_or_default().contains(&name)
            })
        };
        let Some(known) = takes(&ours) else {
            // A command with a `--seed` flag is treated as one that accepts training arguments.
            match script_names::refusal(&key) {
                Some(refusal) if takes("seed").is_some() => return Err(refusal),
                _ => out.push(arg),
            }
            continue;
        };
        let mut normal = format!("--{ours}");
        let value = match value {
            Some(value) => Some(value.to_owned()),
            // The optional value of a switch must follow `=`, since clap would not accept the next word as
            // the value.
            None if known.is_require_equals_set() => args
                .next_if(|next| next.to_str().is_some_and(is_boolean))
                .and_then(|next| next.into_string().ok()),
            None => None,
        };
        if let Some(value) = value {
            normal.push('=');
            normal.push_str(&value);
        }
        out.push(normal.into());
    }
    out.extend(args);
    Ok(out)
}

fn is_boolean(word: &str) -> bool {
    ["true", "false", "yes", "no", "on", "off"].contains(&word.to_lowercase().as_str())
}

/// Prints clap's help or version; converts any other outcome to an error.
pub(crate) fn outcome(error: &clap::Error, command: &Command, args: &[OsString]) -> Result<()> {
    if matches!(
        error.kind(),
        clap::error::ErrorKind::DisplayHelp | clap::error::ErrorKind::DisplayVersion
    ) {
        let text = error.render();
        let text = match can_draw(&std::io::stdout()) {
            true => text.ansi().to_string(),
            false => text.to_string(),
        };
        return super::write(text.as_bytes()).map(drop);
    }
    // The innermost command in the arguments, such as `plugin check`.
    let mut named = String::new();
    let mut at = command;
    for arg in args.iter().skip(1) {
        if let Some(subcommand) = at.find_subcommand(arg) {
            named = format!("{named}{} ", subcommand.get_name());
            at = subcommand;
        }
    }
    let list = match at.has_subcommands() {
        true => "commands",
        false => "arguments",
    };
    let help = format!("run `host {named}--help` for a list of {list}");
    if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return Err(Error::new(ErrorKind::Config, "missing command").hint(help));
    }
    let text = error.render().to_string();
    let (said, rest) = text.split_once("\n\n").unwrap_or((&text, ""));
    let said = said.strip_prefix("error: ").unwrap_or(said);
    let message = said.split_whitespace().collect::<Vec<_>>().join(" ");
    // A tip that suggests a similar name replaces the hint to run `--help`. Other tips are less useful than
    // that hint.
    let tip = rest
        .lines()
        .filter_map(|line| line.trim().strip_prefix("tip: "))
        .find(|tip| tip.contains("similar"));
    Err(Error::new(ErrorKind::Config, message).hint(tip.map_or(help, str::to_owned)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli;

    fn normal(line: &str) -> String {
        let args = line.split(' ').map(OsString::from).collect();
        let words = normalize(&cli::command(), args).expect("normal");
        let words: Vec<&str> = words.iter().filter_map(|word| word.to_str()).collect();
        words.join(" ")
    }

    #[test]
    fn the_scripts_spelling_is_normalized() {
        assert_eq!(
            normal("host run --train_batch_size 4 --save_dir=out c_d.toml"),
            "host run --train-batch-size 4 --runs-dir=out c_d.toml"
        );
        assert_eq!(
            normal("host run --gradient_checkpointing False --eval_on_start c.toml"),
            "host run --gradient-checkpointing=False --eval-on-start c.toml"
        );
        assert_eq!(
            normal("host run --un_known 1 -- --a_b"),
            "host run --un_known 1 -- --a_b"
        );
        assert_eq!(
            normal("host generate r --prompt=a_b"),
            "host generate r --prompt=a_b"
        );
    }

    #[test]
    fn unsupported_flags_of_the_script_are_rejected_with_a_hint() {
        let args = ["host", "run", "--tokenized", "x"].map(OsString::from);
        let error = normalize(&cli::command(), args.to_vec()).expect_err("refused");
        assert!(
            error
                .hint_text()
                .expect("a hint")
                .contains("host data tokenize")
        );
    }

    #[test]
    fn clap_errors_have_one_line_and_one_hint() {
        let refused = |line: &str| {
            let command = cli::command();
            let args: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let error = cli::command()
                .try_get_matches_from(&args)
                .expect_err("refused");
            let error = outcome(&error, &command, &args).expect_err("an error");
            (
                error.message().to_owned(),
                error.hint_text().unwrap_or_default().to_owned(),
            )
        };
        let (message, hint) = refused("host run --train-batch-sise 4");
        assert_eq!(message, "unexpected argument '--train-batch-sise' found");
        assert!(hint.contains("'--train-batch-size'"), "{hint}");
        let (message, hint) = refused("host run --seed abc");
        assert!(
            message.starts_with("invalid value 'abc' for '--seed <N>'"),
            "{message}"
        );
        assert_eq!(hint, "run `host run --help` for a list of arguments");
        let (_, hint) = refused("host plugin check x --time-limit 0");
        assert_eq!(
            hint,
            "run `host plugin check --help` for a list of arguments"
        );
        let (message, hint) = refused("host runs");
        assert_eq!(message, "missing command");
        assert_eq!(hint, "run `host runs --help` for a list of commands");
        let (message, hint) = refused("host nope");
        assert!(message.contains("'nope'"), "{message}");
        assert_eq!(hint, "run `host --help` for a list of commands");
        let (message, _) = refused("host run --precision f16");
        assert!(
            message.contains("[possible values: f32, f64, bf16]"),
            "{message}"
        );
    }
}
