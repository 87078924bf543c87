use std::path::PathBuf;
use std::time::{Duration, Instant};

use host_conformance::{
    CheckOptions, Finding, Outcome, TestReport, check_plugin, conformance_tests,
};
use host_core::{Error, ErrorKind, Result};
use host_plugin::{PluginConfig, PluginManifest, PluginSpec, SearchPath, Target};
use serde_json::{Value, json};

use super::{print, print_json};
use crate::plugins::kind_word;
use crate::show::event_line::one_line;

/// Maximum width of a line of a test report.
const WIDTH: usize = 100;
/// Maximum number of lines of a plugin's stderr that are shown.
const MOST_STDERR_LINES: usize = 12;

const EXAMPLE: &str = "\
Example:
  host plugin check ./target/release/libmy_plugin.so --set threshold=3";

/// Runs the conformance tests of the plugin ABI, each in a child process
///
/// Only the tests for the plugin's kinds are run. A test that cannot run is skipped, with the reason.
/// The exit code is 3 if a test fails.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(super) struct Check {
    /// Plugin id or path, optionally with settings: local-disk:dir={tmp}/out
    #[arg(required_unless_present = "list")]
    spec: Option<PluginSpec>,

    /// Plugin setting; {tmp} stands for a scratch folder, in which {tmp}/….git is an empty bare git
    /// repository; repeat for more
    #[arg(long, value_name = "KEY=VALUE", value_parser = setting)]
    set: Vec<(String, String)>,

    /// Run only this test; repeat for more
    #[arg(long, value_name = "NAME", action = clap::ArgAction::Append)]
    only: Vec<String>,

    /// List the tests
    #[arg(long)]
    list: bool,

    /// Seed of the random inputs, to repeat an earlier check [default: random]
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,

    /// Time limit for each test, in seconds
    #[arg(long, value_name = "SECS", default_value = "20", value_parser = clap::value_parser!(u64).range(1..=3600))]
    time_limit: u64,

    /// Run the tests in this process, for a debugger; a crash ends the check
    #[arg(long)]
    in_process: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

impl Check {
    pub(super) fn execute(&self, search: &SearchPath) -> Result<()> {
        if self.list {
            return list(self.json);
        }
        let spec = self.spec.as_ref().expect("clap requires it");
        let (path, manifest) = find(search, &spec.target)?;
        let options = CheckOptions {
            settings: self.settings(spec)?,
            only: self.only.clone(),
            seed: self.seed.unwrap_or_else(a_seed),
            time_limit: Duration::from_secs(self.time_limit),
            in_process: self.in_process,
        };
        let title = title(manifest.as_ref(), &path);
        if !self.json {
            print(&format!("{title}\n"))?;
        }
        let start = Instant::now();
        let mut reports: Vec<TestReport> = Vec::new();
        let mut printed = Ok(());
        check_plugin(&path, &options, &mut |report| {
            if !self.json {
                let is_new_topic = reports.last().is_none_or(|last| last.topic != report.topic);
                let lines = lines(&report, is_new_topic);
                printed = std::mem::replace(&mut printed, Ok(())).and_then(|()| print(&lines));
            }
            reports.push(report);
        })?;
        printed?;
        let tally = Tally::of(&reports);
        match self.json {
            true => print_json(&report_json(manifest.as_ref(), options.seed, &reports)),
            false => print(&format!(
                "\n{} in {:.1} s; seed {}\n",
                tally.words(),
                start.elapsed().as_secs_f64(),
                options.seed
            )),
        }?;
        match tally.failed {
            0 => Ok(()),
            failed => {
                let name = manifest
                    .map_or_else(|| "the plugin".to_owned(), |m| format!("plugin {}", m.id));
                let tests = if failed == 1 { "test" } else { "tests" };
                Err(Error::new(
                    ErrorKind::Plugin,
                    format!(
                        "{name} failed {failed} conformance {tests}: {}",
                        path.display()
                    ),
                )
                .hint(format!(
                    "repeat one test with --only NAME --seed {}; to debug it, add --in-process",
                    options.seed
                )))
            }
        }
    }

    /// Returns the settings from the SPEC, overridden by those from `--set`.
    fn settings(&self, spec: &PluginSpec) -> Result<Vec<(String, String)>> {
        let PluginConfig::Text(mut settings) = spec.config.clone() else {
            unreachable!("a SPEC of the command line is text");
        };
        for (key, value) in &self.set {
            settings.retain(|(known, _)| known != key);
            settings.push((key.clone(), value.clone()));
        }
        Ok(settings)
    }
}

/// Finds the plugin. If a library was given by its path but cannot be used, returns the path without a
/// manifest. The inspection test then reports the reason.
fn find(search: &SearchPath, target: &Target) -> Result<(PathBuf, Option<PluginManifest>)> {
    match (search.find(target), target) {
        (Ok(found), _) => Ok((found.path, Some(found.manifest))),
        (Err(error), Target::Path(path)) if error.kind() == ErrorKind::Plugin => {
            Ok((path.clone(), None))
        }
        (Err(error), _) => Err(error),
    }
}

/// Returns a seed that is different each time. The seed is printed, so that the check can be repeated.
fn a_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(1, |now| u64::from(now.subsec_nanos()))
}

fn list(json: bool) -> Result<()> {
    if json {
        let tests = conformance_tests()
            .map(|test| json!({ "name": test.name, "topic": test.topic, "about": test.about }));
        return print_json(&tests.collect());
    }
    let width = name_width();
    let mut text = String::new();
    let mut topic = "";
    for test in conformance_tests() {
        if test.topic != topic {
            let gap = if topic.is_empty() { "" } else { "\n" };
            text.push_str(&format!("{gap}{}\n", test.topic));
            topic = test.topic;
        }
        text.push_str(&format!("  {:<width$}  {}\n", test.name, test.about));
    }
    print(&text)
}

fn name_width() -> usize {
    let names = conformance_tests().map(|test| test.name.len());
    names.max().unwrap_or(0)
}

fn title(manifest: Option<&PluginManifest>, path: &std::path::Path) -> String {
    match manifest {
        Some(manifest) => {
            let kinds: Vec<&str> = manifest.kinds.iter().copied().map(kind_word).collect();
            format!(
                "{} {} ({}): {}",
                manifest.id,
                manifest.version,
                kinds.join(", "),
                path.display()
            )
        }
        None => path.display().to_string(),
    }
}

/// Formats a test's line and, unless the test passed, the details.
fn lines(report: &TestReport, is_new_topic: bool) -> String {
    let mut text = match is_new_topic {
        true => format!("\n{}\n", report.topic),
        false => String::new(),
    };
    let word = match &report.outcome {
        Outcome::Failed(_) => "FAILED",
        outcome => outcome.word(),
    };
    let took = match report.secs {
        secs if secs >= 0.5 => format!("  {secs:.1} s"),
        _ => String::new(),
    };
    let line = match &report.outcome {
        Outcome::Skipped(reason) => {
            let width = name_width();
            format!("  {word:<7}  {:<width$}  {}", report.name, one_line(reason))
        }
        _ => format!("  {word:<7}  {}{took}", report.name),
    };
    text.push_str(&line);
    text.push('\n');
    match &report.outcome {
        Outcome::Passed | Outcome::Skipped(_) => {}
        Outcome::Warned(Finding { did, expected, fix })
        | Outcome::Failed(Finding { did, expected, fix }) => {
            text.push_str(&paragraph("it", did));
            text.push_str(&paragraph("expected", expected));
            text.push_str(&paragraph("fix", fix));
        }
    }
    if matches!(report.outcome, Outcome::Failed(_)) {
        let said: Vec<&str> = report
            .stderr
            .lines()
            .filter(|line| !line.is_empty())
            .collect();
        let first = said.len().saturating_sub(MOST_STDERR_LINES);
        for (n, line) in said[first..].iter().enumerate() {
            text.push_str(&paragraph(if n == 0 { "stderr" } else { "" }, line));
        }
    }
    text
}

/// Formats a label and a text, wrapped to `WIDTH` columns.
fn paragraph(label: &str, words: &str) -> String {
    const INDENT: usize = 11;
    let hang = match label {
        "" => INDENT,
        _ => INDENT + 10,
    };
    let mut text = String::new();
    let mut line = match label {
        "" => " ".repeat(INDENT),
        label => format!("{:INDENT$}{label:<10}", ""),
    };
    let mut is_begun = false;
    for word in one_line(words).split(' ') {
        if is_begun && line.chars().count() + 1 + word.chars().count() > WIDTH {
            text.push_str(line.trim_end());
            text.push('\n');
            line = " ".repeat(hang);
            is_begun = false;
        }
        if is_begun {
            line.push(' ');
        }
        line.push_str(word);
        is_begun = true;
    }
    text.push_str(line.trim_end());
    text.push('\n');
    text
}

/// Counts the tests by outcome.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: usize,
    warned: usize,
    failed: usize,
    skipped: usize,
}

impl Tally {
    fn of(reports: &[TestReport]) -> Self {
        let mut tally = Self::default();
        for report in reports {
            *match report.outcome {
                Outcome::Passed => &mut tally.passed,
                Outcome::Warned(_) => &mut tally.warned,
                Outcome::Failed(_) => &mut tally.failed,
                Outcome::Skipped(_) => &mut tally.skipped,
            } += 1;
        }
        tally
    }

    fn words(&self) -> String {
        let mut words = vec![format!("{} passed", self.passed)];
        for (count, word) in [
            (self.warned, "warned"),
            (self.failed, "failed"),
            (self.skipped, "skipped"),
        ] {
            if count > 0 {
                words.push(format!("{count} {word}"));
            }
        }
        words.join(", ")
    }
}

/// Returns the report as JSON. A test with a warning counts as passed and as warned.
fn report_json(manifest: Option<&PluginManifest>, seed: u64, reports: &[TestReport]) -> Value {
    let tally = Tally::of(reports);
    let tests: Vec<Value> = reports
        .iter()
        .map(|report| {
            json!({
                "name": report.name,
                "topic": report.topic,
                "outcome": report.outcome.word(),
                "message": report.outcome.message(),
                "stderr": report.stderr,
                "secs": report.secs,
            })
        })
        .collect();
    json!({
        "plugin": manifest.map(|manifest| &manifest.id),
        "version": manifest.map(|manifest| &manifest.version),
        "seed": seed,
        "tests": tests,
        "passed": tally.passed + tally.warned,
        "warned": tally.warned,
        "failed": tally.failed,
        "skipped": tally.skipped,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(outcome: Outcome) -> TestReport {
        TestReport {
            name: "merge-order",
            topic: "metric laws",
            outcome,
            secs: 0.01,
            stderr: "a trace\n".to_owned(),
        }
    }

    #[test]
    fn a_failure_is_reported_with_expectation_and_fix() {
        let finding = Finding {
            did: "computed one thing ".to_owned() + &"and another ".repeat(7),
            expected: "the order does not matter".to_owned(),
            fix: "keep sums".to_owned(),
        };
        assert_eq!(
            lines(&report(Outcome::Failed(finding)), true),
            "\nmetric laws\n\
             \x20 FAILED   merge-order\n\
             \x20          it        computed one thing and another and another and another and another and another\n\
             \x20                    and another and another\n\
             \x20          expected  the order does not matter\n\
             \x20          fix       keep sums\n\
             \x20          stderr    a trace\n"
        );
        assert_eq!(
            lines(&report(Outcome::Passed), false),
            "  passed   merge-order\n"
        );
        let skipped = lines(&report(Outcome::Skipped("no reason".to_owned())), false);
        let words: Vec<&str> = skipped.split_whitespace().collect();
        assert_eq!(words, ["skipped", "merge-order", "no", "reason"]);
    }

    #[test]
    fn zero_counts_are_left_out() {
        let skipped = || Outcome::Skipped("no reason".to_owned());
        let reports = [
            report(Outcome::Passed),
            report(skipped()),
            report(skipped()),
        ];
        assert_eq!(Tally::of(&reports).words(), "1 passed, 2 skipped");
    }
}
