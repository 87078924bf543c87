//! `host plugin check`: every shipped plugin passes, and for each conformance test there is a plugin that
//! fails only this test.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Fixture, Home, built};

/// The faults of a metric. Each entry contains the name that the fixture gives to a fault, and the test that
/// finds the fault.
const METRIC: [(&str, &str); 61] = [
    ("another-id", "description-matches-manifest"),
    ("crashes-at-load", "description-matches-manifest"),
    ("never-creates", "creates"),
    ("entry-repeats", "entry-repeats"),
    ("other-major", "entry-other-major"),
    ("reads-beyond", "entry-smaller-host"),
    ("refuses-larger", "entry-larger-host"),
    ("uses-extension", "no-extensions"),
    ("slow", "loads-quickly"),
    ("destroy-unused", "destroy-unused"),
    ("leaks-descriptor", "no-growth-in-descriptors"),
    ("leaks-threads", "no-growth-in-threads"),
    ("leaks-memory", "no-growth-in-memory"),
    ("shares-state", "instances-share-nothing"),
    ("settings-crash", "allowed-settings"),
    ("settings-order", "settings-order"),
    ("silent-refusal", "refusals-have-reasons"),
    ("makes-anyway", "refusals-make-nothing"),
    ("thread", "threads"),
    ("child-processes", "child-processes"),
    ("working-directory", "working-directory"),
    ("signal-handlers", "signal-handlers"),
    ("umask", "umask"),
    ("environment", "environment"),
    ("locale", "locale"),
    ("floating-point", "floating-point"),
    ("openmp", "openmp"),
    ("resource-limits", "resource-limits"),
    ("standard-streams", "standard-streams"),
    ("scheduling", "scheduling"),
    ("timers", "timers"),
    ("stdout", "stdout"),
    ("not-finite", "ordinary-batches"),
    ("no-values", "ordinary-batches"),
    ("value-names", "value-names"),
    ("host-name", "value-names"),
    ("system-name", "value-names"),
    ("like-a-host-name", "value-names"),
    ("padded-name", "value-names"),
    ("zero-dim", "zero-dim-inputs"),
    ("exits-on-zero-dim", "zero-dim-inputs"),
    ("hangs-on-zero-dim", "zero-dim-inputs"),
    ("panics-on-zero-dim", "zero-dim-inputs"),
    ("counts-empty", "empty-batch"),
    ("no-strides", "strided-inputs"),
    ("no-offset", "offset-inputs"),
    ("indexes-tensors", "newer-host-batch"),
    ("takes-any-dtype", "odd-dtypes"),
    ("takes-missing", "missing-input"),
    ("silent-update", "update-failures-have-reasons"),
    ("writes-inputs", "inputs-unmodified"),
    ("drops-nan", "not-a-number-inputs"),
    ("merge-adds-one", "merge-equals-whole"),
    ("merge-order", "merge-order"),
    ("merge-empty", "merge-empty"),
    ("reset-forgets", "reset-equals-new"),
    ("export-empties", "export-changes-nothing"),
    ("compute-changes", "compute-repeats"),
    ("compute-of-nothing", "compute-of-nothing"),
    ("takes-truncated", "truncated-state"),
    ("half-merges", "truncated-state"),
];

/// The faults of a metric's state.
const STATE: [(&str, &str); 3] = [
    ("takes-foreign", "foreign-state"),
    ("random-state", "random-state"),
    ("silent-merge", "state-refusals-have-reasons"),
];

const GROUPS: [(&str, &str); 7] = [
    ("not-finite", "groups-gpt2"),
    ("drops-odd-names", "groups-odd-names"),
    ("drops-scalars", "groups-zero-dim"),
    ("empty-list", "groups-empty-list"),
    ("groups-order", "groups-order"),
    ("groups-repeat", "groups-repeat"),
    ("indexes-params", "newer-host-params"),
];

const SINK: [(&str, &str); 11] = [
    ("no-receipt", "publish"),
    ("publish-repeats", "publish-repeats"),
    ("writes-checkpoint", "checkpoint-unmodified"),
    ("absent-checkpoint", "absent-checkpoint"),
    ("keeps-cancel", "idle-cancel"),
    ("ignores-cancel", "cancel"),
    ("lock-file", "killed-publish"),
    ("preflight-delivers", "preflight"),
    ("silent-preflight", "preflight-refusal"),
    ("fetch-differs", "fetch"),
    ("absent-fetch", "absent-fetch"),
];

const OBSERVER: [(&str, &str); 12] = [
    ("shares-state", "instances-share-nothing"),
    ("every-event", "every-event"),
    ("known-events-only", "unknown-event"),
    ("huge-texts", "odd-values"),
    ("indexes-values", "newer-host-event"),
    ("no-reason", "valid-requests"),
    ("state-changes", "state-round-trip"),
    ("forgets-the-best", "state-continues"),
    ("takes-truncated", "observer-truncated-state"),
    ("takes-foreign", "observer-foreign-state"),
    ("random-state", "observer-random-state"),
    ("silent-import", "observer-state-refusals-have-reasons"),
];

/// The conformance tests that the tables above do not contain. Separate functions below check that these
/// tests can fail.
const ELSEWHERE: [&str; 3] = ["static-gate", "settings-schema", "batch-order"];

#[test]
fn every_fault_of_a_metric_is_found_by_its_test() {
    each_is_found("metric", &METRIC);
    each_is_found("metric", &STATE);
}

#[test]
fn every_fault_of_a_grouper_is_found_by_its_test() {
    each_is_found("param_groups", &GROUPS);
}

#[test]
fn every_fault_of_a_sink_is_found_by_its_test() {
    each_is_found("checkpoint_sink", &SINK);
}

#[test]
fn every_fault_of_an_observer_is_found_by_its_test() {
    each_is_found("observer", &OBSERVER);
}

#[test]
fn every_conformance_test_can_fail() {
    let home = Home::new();
    let listed = home.host(&["plugin", "check", "--list", "--json"]);
    let listed = listed.succeeded().json();
    let listed: BTreeSet<&str> = names(&listed).collect();
    let tried: BTreeSet<&str> = [&METRIC[..], &STATE, &GROUPS, &SINK, &OBSERVER]
        .into_iter()
        .flatten()
        .map(|&(_, test)| test)
        .chain(ELSEWHERE)
        .collect();
    assert_eq!(listed, tried);
}

/// A metric that depends on the order of batches fails a second conformance test, too.
#[test]
fn a_metric_that_depends_on_the_order_of_batches_breaks_two_laws() {
    let home = Home::new();
    let library = Fixture::defect("metric", "batch-order").build(&home.path(""));
    let (report, _) = check(&home, &library, &[]);
    let broken = BTreeSet::from(["batch-order", "merge-equals-whole"]);
    assert_eq!(found(&report), broken);
}

#[test]
fn a_rejected_file_fails_the_static_gate_and_its_code_does_not_run() {
    let home = Home::new();
    let library = Fixture::defect("metric", "none").flag("-DNO_MANIFEST");
    let library = library.build(&home.path(""));
    let (report, error) = check(&home, &library, &[]);
    assert_eq!(found(&report), BTreeSet::from(["static-gate"]));
    assert_eq!(report["plugin"], Value::Null);
    assert_eq!(report["passed"], 0);
    assert_eq!(
        error,
        format!(
            "the plugin failed 1 conformance test: {}",
            library.display()
        )
    );
}

/// The report lists the failure once. Tests that need the missing instance or library are not run.
#[test]
fn a_create_that_fails_is_one_failure() {
    let home = Home::new();
    for (defect, test) in [
        ("never-creates", "creates"),
        ("crashes-at-load", "description-matches-manifest"),
    ] {
        let library = Fixture::defect("metric", defect).build(&home.path(""));
        let (report, error) = check(&home, &library, &[]);
        assert!(
            error.starts_with("plugin defect failed 1 conformance test: "),
            "{error}"
        );
        let tests = report["tests"].as_array().expect("tests").iter();
        let reason = format!("not run: {test} failed");
        let not_run = tests.filter(|test| test["message"] == *reason);
        assert!(not_run.count() > 30, "{report:#}");
    }
}

/// A change of a signal's handler is reported with the names of the signal and the handler.
#[test]
fn a_changed_signal_handler_is_named() {
    let home = Home::new();
    let library = Fixture::defect("metric", "signal-handlers").build(&home.path(""));
    let (report, _) = check(&home, &library, &["--only", "signal-handlers"]);
    let message = report["tests"][0]["message"].as_str().expect("a message");
    let words = "changed the action for a signal during the life of an instance: SIGUSR1: default \
                 -> handled by a function of the plugin; expected";
    assert!(message.contains(words), "{message}");
}

/// Settings that the schema rejects never reach `create`, as the header promises.
#[test]
fn a_plugin_that_relies_on_checked_settings_passes() {
    let home = Home::new();
    let names: Vec<String> = {
        let listed = home.host(&["plugin", "check", "--list", "--json"]);
        let listed = listed.succeeded().json();
        names(&listed).map(str::to_owned).collect()
    };
    assert!(
        !names.iter().any(|name| name.starts_with("refuses-")),
        "{names:?}"
    );
    let library = Fixture::defect("metric", "none").build(&home.path(""));
    let (report, _) = check(
        &home,
        &library,
        &["--set", "level=3", "--set", "name=\"x\\y\""],
    );
    assert_eq!(report["failed"], 0, "{report:#}");
    let order = outcome(&report, "settings-order");
    assert_eq!(order, "passed");
}

#[test]
fn a_schema_that_refuses_its_own_default_is_found() {
    let home = Home::new();
    let schema = json!({
        "type": "object",
        "additionalProperties": false,
        "properties": { "level": { "type": "number", "default": "high" } },
    });
    let library = Fixture::defect("metric", "none").settings(schema);
    let (report, _) = check(&home, &library.build(&home.path("")), &[]);
    assert_eq!(found(&report), BTreeSet::from(["settings-schema"]));
}

#[test]
fn a_failure_explains_what_happened_and_how_to_fix_it() {
    let home = Home::new();
    let dir = home.path("");
    for (defect, test, words) in [
        (
            "writes-inputs",
            "inputs-unmodified",
            "it wrote into its inputs",
        ),
        (
            "zero-dim",
            "zero-dim-inputs",
            "it was killed by SIGABRT in update, given zero-dimensional inputs",
        ),
        (
            "hangs-on-zero-dim",
            "zero-dim-inputs",
            "it did not return within 2 s in update, given zero-dimensional inputs",
        ),
        (
            "exits-on-zero-dim",
            "zero-dim-inputs",
            "it ended the process with status 7 in update",
        ),
        (
            "panics-on-zero-dim",
            "zero-dim-inputs",
            "it panicked in update, given zero-dimensional inputs: panicked: no matrix",
        ),
    ] {
        let library = Fixture::defect("metric", defect).build(&dir);
        let path = library.to_str().expect("UTF-8");
        let args = ["plugin", "check", path, "--time-limit", "2", "--only", test];
        let output = home.host(&args);
        let (error, hint) = output.failed_with(3);
        assert!(error.starts_with("plugin defect failed 1 conformance test: "));
        assert!(hint.contains("--seed"), "{hint}");
        // The output is wrapped, so it is compared without line breaks.
        let said: Vec<&str> = output.stdout.split_whitespace().collect();
        let said = said.join(" ");
        for part in [words, "expected", "fix", "1 failed"] {
            assert!(said.contains(part), "{said}");
        }
        assert!(said.contains(&format!("FAILED {test}")), "{said}");
    }
}

#[test]
fn every_shipped_plugin_and_example_passes() {
    let home = Home::new();
    for (library, settings) in [
        ("weight_decay", &[][..]),
        ("perplexity", &[]),
        ("token_accuracy", &[]),
        ("bits_per_byte", &[]),
        ("sequence_loss", &[]),
        ("early_stopping", &[]),
        ("loss_guard", &[]),
        ("local_disk", &["--set", "dir={tmp}/out"]),
        (
            "local_disk",
            &["--set", "dir={tmp}/out", "--set", "link=hard"],
        ),
        (
            "local_disk",
            &["--set", "dir={tmp}/out", "--set", "link=reflink"],
        ),
        (
            "local_disk",
            &["--set", "dir={tmp}/out", "--set", "link=copy"],
        ),
        ("hub_git", &["--set", "repo=file://{tmp}/x.git"]),
    ] {
        let path = built(&format!("lib{library}.so"));
        let path = path.to_str().expect("UTF-8");
        let args = ["plugin", "check", path, "--json", "--seed", "1"];
        let report = home.host(&[&args, settings].concat()).succeeded().json();
        assert_eq!(report["failed"], 0);
        assert!(report["passed"].as_u64() > Some(20), "{report}");
        for test in report["tests"].as_array().expect("tests") {
            // A test that lacks a setting would be skipped with this message.
            let message = test["message"].as_str().expect("a message");
            assert!(!message.contains("needs the setting"), "{library}: {test}");
        }
    }
}

#[test]
fn skipped_tests_have_reasons_and_invalid_arguments_are_rejected() {
    let home = Home::new();
    let path = built("liblocal_disk.so");
    let path = path.to_str().expect("UTF-8");
    let report = home.host(&["plugin", "check", path, "--json"]);
    let report = report.succeeded().json();
    let skipped = report["tests"].as_array().expect("tests").iter();
    let reasons: BTreeSet<&str> = skipped
        .filter(|test| test["outcome"] == "skipped")
        .map(|test| test["message"].as_str().expect("a reason"))
        .collect();
    let needed = "the plugin needs the setting dir: pass --set dir=…";
    assert_eq!(reasons, BTreeSet::from([needed]));
    for (args, error) in [
        (
            ["--only", "merge-ordr"],
            "unknown conformance test: \"merge-ordr\"",
        ),
        (
            ["--set", "keep=some"],
            "plugin local-disk cannot use the setting keep: \"some\" is not of type \"integer\"",
        ),
    ] {
        let check = ["plugin", "check", path, "--set", "dir={tmp}"];
        let output = home.host(&[&check, &args[..]].concat());
        assert_eq!(output.failed_with(2).0, error);
    }
}

/// Builds a plugin for each fault and asserts that only the expected test fails.
fn each_is_found(kind: &'static str, defects: &[(&'static str, &str)]) {
    let home = Home::new();
    for &(defect, test) in defects {
        let library = Fixture::defect(kind, defect).build(&home.path(""));
        let (report, _) = check(&home, &library, &["--time-limit", "4"]);
        let mut found = found(&report);
        // On a busy machine, every load can be slow. The stacks of threads that were not joined are memory, too.
        let possible: &[&str] = match defect {
            "leaks-threads" => &["loads-quickly", "no-growth-in-memory"],
            _ => &["loads-quickly"],
        };
        found.extend(possible);
        let expected: BTreeSet<&str> = possible.iter().copied().chain([test]).collect();
        assert_eq!(found, expected, "{kind} {defect}\n{report:#}");
        let outcome = outcome(&report, test);
        assert!(matches!(outcome, "failed" | "warned"), "{outcome}");
    }
    let good = Fixture::defect(kind, "none").build(&home.path(""));
    let (report, _) = check(&home, &good, &[]);
    assert_eq!(report["failed"], 0, "{kind}\n{report:#}");
}

/// Checks a plugin. Returns the report, and the error or an empty string.
fn check(home: &Home, library: &Path, more: &[&str]) -> (Value, String) {
    let path = library.to_str().expect("UTF-8");
    let args = ["plugin", "check", path, "--json", "--seed", "1"];
    let output = home.host(&[&args, more].concat());
    let report: Value = serde_json::from_str(&output.stdout).expect("a report");
    let error = match report["failed"].as_u64() {
        Some(0) => {
            output.succeeded();
            String::new()
        }
        _ => output.failed_with(3).0.to_owned(),
    };
    (report, error)
}

/// Returns the outcome of a test.
fn outcome<'a>(report: &'a Value, name: &str) -> &'a str {
    let tests = report["tests"].as_array().expect("tests");
    let test = tests.iter().find(|test| test["name"] == name);
    test.and_then(|test| test["outcome"].as_str())
        .expect("an outcome")
}

/// Returns the tests that failed or warned.
fn found(report: &Value) -> BTreeSet<&str> {
    let tests = report["tests"].as_array().expect("tests");
    tests
        .iter()
        .filter(|test| test["outcome"] == "failed" || test["outcome"] == "warned")
        .map(|test| test["name"].as_str().expect("a name"))
        .collect()
}

fn names(tests: &Value) -> impl Iterator<Item = &str> {
    let tests = tests.as_array().expect("tests").iter();
    tests.map(|test| test["name"].as_str().expect("a name"))
}
