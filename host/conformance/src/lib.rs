//! The conformance suite: whether a plugin keeps the promises of the ABI.
//!
//! Each test runs in a child process of its own, forked before anything of the plugin is loaded: a
//! crash, an exit and an endless loop are findings, and no test meets what another left behind. A
//! fork costs a few milliseconds where a new process, which links libtorch, costs two hundred; it
//! is sound as long as this process has one thread, which is looked at.

#![expect(
    unsafe_code,
    reason = "the tests call plugins by their tables, and fork"
)]

mod batch;
mod child;
mod configuration;
mod creation;
mod gate;
mod groups;
mod lifecycle;
mod memory;
mod metric_inputs;
mod metric_laws;
mod observer;
mod process;
mod setup;
mod sink;
mod state;
mod subject;
mod test;

use std::path::Path;
use std::time::{Duration, Instant};

use host_core::{Error, ErrorKind, Result, nearest};

use host_plugin::{PluginConfig, PluginManifest, SearchPath, Secrets, Target};
use setup::Setup;
use test::Needs;

pub use test::{Finding, Outcome, Test, TestReport};

/// How a plugin is checked.
#[derive(Clone, Debug)]
pub struct CheckOptions {
    /// Its settings, as on the command line. `{tmp}` in a value is a scratch folder of the test.
    pub settings: Vec<(String, String)>,
    /// Names of the tests to run; all if empty.
    pub only: Vec<String>,
    /// What the random inputs come from: the same number gives the same inputs.
    pub seed: u64,
    /// How long a test may take. It is not kept in process.
    pub time_limit: Duration,
    /// Whether the tests run in this process, for a debugger; the first crash ends it.
    pub in_process: bool,
}

/// The whole suite, in the order in which it runs.
pub fn conformance_tests() -> impl Iterator<Item = &'static Test> {
    [
        gate::TESTS,
        lifecycle::TESTS,
        configuration::TESTS,
        process::TESTS,
        metric_inputs::TESTS,
        metric_laws::TESTS,
        groups::TESTS,
        sink::TESTS,
        observer::TESTS,
    ]
    .into_iter()
    .flatten()
}

/// Runs the tests that the library's kinds have, or those that were asked for, and tells of each
/// when it is over. Gives the manifest, if the library has one that can be used.
///
/// # Errors
/// A test or a setting is not known, a setting is wrong, or the file cannot be read. What is wrong
/// with the plugin itself is a report.
pub fn check_plugin(
    path: &Path,
    options: &CheckOptions,
    report: &mut dyn FnMut(TestReport),
) -> Result<Option<PluginManifest>> {
    let tests = chosen(&options.only)?;
    if !options.in_process && process::threads() > 1 {
        let message = "this process has several threads already, so it cannot fork tests";
        return Err(Error::new(ErrorKind::System, message).hint("run the tests in process"));
    }
    let manifest = match SearchPath::new([]).find(&Target::Path(path.to_owned())) {
        Ok(found) => Some(found.manifest),
        Err(error) if error.kind() == ErrorKind::Plugin => None,
        Err(error) => return Err(error),
    };
    let scratch = tempfile::Builder::new()
        .prefix("host-plugin-check-")
        .tempdir()
        .map_err(|error| Error::io("create a scratch folder", &std::env::temp_dir(), &error))?;
    let setup = Setup::new(path, manifest.as_ref(), options, scratch.path());
    setup.check_settings()?;
    if let Some(manifest) = &manifest {
        keep_secrets(manifest, options);
    }
    let mut missing: Option<(Needs, &str)> = None;
    for test in tests {
        if options.only.is_empty() && !test.is_for(manifest.as_ref()) {
            continue;
        }
        let setup = setup.for_test(test.name)?;
        let start = Instant::now();
        let reason_to_skip = test.reason_to_skip(manifest.as_ref()).or_else(|| {
            let (_, failed) = missing.filter(|(missing, _)| test.needs >= *missing)?;
            Some(format!("not run: {failed} failed"))
        });
        let (outcome, stderr) = match reason_to_skip {
            Some(reason) => (Outcome::Skipped(reason), String::new()),
            None if options.in_process => (Outcome::of((test.run)(&setup)), String::new()),
            None => child::contained(setup.time_limit, || (test.run)(&setup))
                .map(|ended| (ended.outcome(setup.time_limit), ended.stderr))
                .map_err(|error| Error::io("start a test", path, &error))?,
        };
        if matches!(outcome, Outcome::Failed(_)) {
            missing = missing.or(match test.name {
                gate::DESCRIPTION => Some((Needs::Library, test.name)),
                configuration::ALLOWED => Some((Needs::Settings, test.name)),
                name if name == creation::CREATES.name => Some((Needs::Instance, name)),
                _ => None,
            });
        }
        report(TestReport {
            name: test.name,
            topic: test.topic,
            outcome,
            secs: start.elapsed().as_secs_f64(),
            stderr,
        });
        // A plugin that filled it should not starve the next test; the rest goes with `scratch`.
        let _ = std::fs::remove_dir_all(setup.scratch());
    }
    Ok(manifest)
}

/// Takes out of the environment what a child of the plugin would not see in a run, and lets what it sees
/// not be shown by `/proc`. The tests inherit that.
fn keep_secrets(manifest: &PluginManifest, options: &CheckOptions) {
    let given = PluginConfig::Text(options.settings.clone());
    let mut secrets = Secrets::default();
    secrets.add(Some(manifest), &given);
    secrets.conceal();
    for name in secrets.hidden_from(manifest, &given) {
        // SAFETY: this process has one thread, or it is one that was started for this check alone.
        unsafe { std::env::remove_var(name) };
    }
}

fn chosen(only: &[String]) -> Result<Vec<&'static Test>> {
    for name in only {
        if conformance_tests().any(|test| test.name == name) {
            continue;
        }
        let known: Vec<&str> = conformance_tests().map(|test| test.name).collect();
        let error = Error::new(ErrorKind::Config, format!("no test is called {name:?}"));
        return Err(match nearest(name, known) {
            Some(near) => error.hint(format!("did you mean {near}?")),
            None => error.hint("`host plugin check --list` names the tests"),
        });
    }
    let is_chosen = |test: &&Test| only.is_empty() || only.iter().any(|name| name == test.name);
    Ok(conformance_tests().filter(is_chosen).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_stable_words_and_each_is_there_once() {
        let mut names: Vec<&str> = conformance_tests().map(|test| test.name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        for test in conformance_tests() {
            let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            assert!(test.name.chars().all(is_word), "{}", test.name);
            assert!(!test.about.is_empty() && !test.about.ends_with('.'));
        }
    }

    #[test]
    fn an_unknown_test_names_the_nearest() {
        let error = chosen(&["merge-ordr".to_owned()]).expect_err("unknown");
        assert_eq!(error.hint_text(), Some("did you mean merge-order?"));
    }
}
