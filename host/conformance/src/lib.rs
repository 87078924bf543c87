//! The conformance suite: tests that a plugin follows the rules of the ABI.
//!
//! Each test runs in its own child process, which is forked before any code of the plugin is loaded. Crashes,
//! exits and endless loops become findings, and no test affects another. A fork takes a few milliseconds, but
//! starting the program again for each test would take two hundred, because it links libtorch. Forking is
//! sound only while this process has one thread, which is checked.

#![expect(
    unsafe_code,
    reason = "the tests fork, and call plugins through function pointers"
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

/// Options of a check.
#[derive(Clone, Debug)]
pub struct CheckOptions {
    /// The plugin's settings, as on the command line. `{tmp}` in a value is replaced by the test's scratch
    /// folder.
    pub settings: Vec<(String, String)>,
    /// Names of the tests to run; empty for all tests.
    pub only: Vec<String>,
    /// Seed of the random inputs.
    pub seed: u64,
    /// Time limit of a test. Not enforced if the tests run in this process.
    pub time_limit: Duration,
    /// Whether the tests run in this process, for a debugger. The first crash then ends the process.
    pub in_process: bool,
}

/// Returns the whole suite, in the order of execution.
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

/// Runs the tests for the library's kinds, or the requested tests, and reports each test when it ends.
/// Returns the manifest, if the library has a valid manifest.
///
/// # Errors
/// Returns an error if a test or a setting is unknown, a setting is invalid, or the file cannot be read.
/// Faults of the plugin itself are reported as outcomes.
pub fn check_plugin(
    path: &Path,
    options: &CheckOptions,
    report: &mut dyn FnMut(TestReport),
) -> Result<Option<PluginManifest>> {
    let tests = chosen(&options.only)?;
    if !options.in_process && process::threads() > 1 {
        let message =
            "this process has several threads already, so it cannot run tests in forked processes";
        return Err(Error::new(ErrorKind::System, message).hint("run the tests with --in-process"));
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
        // The test's folder is removed now, so that the next test can use the disk space that the plugin may
        // have filled. `scratch` itself is removed when it is dropped.
        let _ = std::fs::remove_dir_all(setup.scratch());
    }
    Ok(manifest)
}

/// Removes the variables that a run would hide from the plugin's child process. They are removed from this
/// process's environment, which the tests inherit. Secrets for the plugin itself remain set, but their values
/// are hidden from `/proc`.
fn keep_secrets(manifest: &PluginManifest, options: &CheckOptions) {
    let given = PluginConfig::Text(options.settings.clone());
    let mut secrets = Secrets::default();
    secrets.add(Some(manifest), &given);
    secrets.conceal();
    for name in secrets.hidden_from(manifest, &given) {
        // SAFETY: this process has one thread. With `in_process` it can have more, but then it was started
        // only for this check.
        unsafe { std::env::remove_var(name) };
    }
}

fn chosen(only: &[String]) -> Result<Vec<&'static Test>> {
    for name in only {
        if conformance_tests().any(|test| test.name == name) {
            continue;
        }
        let known: Vec<&str> = conformance_tests().map(|test| test.name).collect();
        let error = Error::new(
            ErrorKind::Config,
            format!("unknown conformance test: {name:?}"),
        );
        return Err(match nearest(name, known) {
            Some(near) => error.hint(format!("did you mean {near}?")),
            None => error.hint("list the tests with `host plugin check --list`"),
        });
    }
    let is_chosen = |test: &&Test| only.is_empty() || only.iter().any(|name| name == test.name);
    Ok(conformance_tests().filter(is_chosen).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_stable_words_without_repetition() {
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
    fn an_unknown_test_suggests_the_nearest() {
        let error = chosen(&["merge-ordr".to_owned()]).expect_err("unknown");
        assert_eq!(error.hint_text(), Some("did you mean merge-order?"));
    }
}
