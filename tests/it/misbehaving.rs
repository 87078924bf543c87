//! Tests invalid and misbehaving plugins. Each plugin leads to one error, which names the plugin.

use std::fs;

use host_core::{DeliveryState, EventBody};
use serde_json::json;

use crate::support::{Fixture, Home, built, events_of, fake_libtorch};

/// Trains with a plugin that must end the run. Returns the error.
fn refusal(home: &Home, plugin: &str) -> String {
    let output = home.train("refused", &["--plugin", plugin]);
    let (error, hint) = output.failed_with(3);
    assert!(!hint.is_empty());
    error.to_owned()
}

/// Returns the SPEC of the fixture `misbehaving` with a setting.
fn misbehaving(setting: &str) -> String {
    format!("{}:{setting}", built("libmisbehaving.so").display())
}

#[test]
fn an_invalid_plugin_is_rejected_before_a_run_is_created() {
    let home = Home::new();
    let dir = home.path("");
    let text = home.path("libnotes.so");
    fs::write(&text, "[[plugin]]\nid = \"perplexity\"\n").expect("written");
    let another_major = Fixture::metric("another-major").flag("-DENTRY=host_plugin_entry_v2");
    let no_entry = Fixture::metric("no-entry").flag("-DNO_ENTRY");
    let torch = fake_libtorch(&dir);
    let links_torch = Fixture::metric("links-torch")
        .flag("-DFAKE_TORCH")
        .flag(torch.to_str().expect("UTF-8"));
    for (library, reason) in [
        (
            text,
            "plugin is a file without an ELF header, not a shared library",
        ),
        (
            another_major.build(&dir),
            "plugin another-major uses ABI 2, but this host supports ABI 1",
        ),
        (
            no_entry.build(&dir),
            "plugin no-entry exports no function host_plugin_entry_v1",
        ),
        (
            links_torch.build(&dir),
            "plugin links-torch links libtorch_cpu.so, which only the host may use",
        ),
    ] {
        let path = library.display();
        assert_eq!(
            refusal(&home, &path.to_string()),
            format!("{reason}: {path}")
        );
        assert!(!home.path("runs").exists(), "{path} left a run");
    }
}

#[test]
fn the_error_for_invalid_groups_names_the_parameter() {
    let home = Home::new();
    for (fault, what) in [
        (
            "twice",
            "in more than one group: transformer.wte.weight (\"all\" and \"all\")",
        ),
        ("leave_out", "in no group: transformer.wte.weight"),
    ] {
        let error = refusal(&home, &misbehaving(&format!("grouping={fault}")));
        let by = "plugin misbehaving returned unusable parameter groups";
        assert_eq!(error, format!("{by}: {what}"));
        assert!(!home.path("runs").exists(), "{fault} left a run");
    }
}

#[test]
fn a_plugin_that_fails_or_panics_before_the_training_leaves_no_run() {
    let home = Home::new();
    for call in ["create", "group"] {
        for (how, words) in [("fail", "was told to fail"), ("panic", "was told to panic")] {
            let error = refusal(&home, &misbehaving(&format!("{how}_in={call}")));
            let start = format!("plugin misbehaving failed in {call}: ");
            assert!(error.starts_with(&start), "{error}");
            assert!(error.ends_with(&format!("{call} {words}")), "{error}");
            assert!(!home.path("runs").exists(), "{how} in {call} left a run");
        }
    }
}

/// A metric is tried with one batch before the first step. Otherwise, it might fail only after hours.
#[test]
fn a_metric_that_cannot_work_ends_the_run_at_its_first_batch() {
    let home = Home::new();
    for setting in [
        "panic_in=reset",
        "panic_in=update",
        "panic_in=compute",
        "fail_in=update",
    ] {
        let (_, call) = setting.split_once('=').expect("a setting");
        let name = setting.replace('=', "-");
        let output = home.train(&name, &["--plugin", &misbehaving(setting)]);
        let (error, _) = output.failed_with(3);
        let start = format!("plugin misbehaving failed in {call}: ");
        assert!(error.starts_with(&start), "{error}");
        assert!(!home.run_dir(&name).join("checkpoints/step-000005").exists());
    }
}

#[test]
fn a_metric_may_not_use_a_name_of_the_host() {
    let home = Home::new();
    let hosts = "is reserved for the host";
    for (run, name, why) in [
        ("a", "lr", hosts),
        ("b", "plugin/perplexity/calls", hosts),
        ("c", "system/cpu_percent", hosts),
        (
            "d",
            "Loss/Train",
            "is too similar to loss/train, which is reserved for the host",
        ),
        ("e", "tokens ", "contains invisible white space"),
        ("f", "a\u{200b}b", "contains invisible characters"),
    ] {
        let in_c = name.replace('\u{200b}', "\\342\\200\\213");
        let metric = Fixture::metric("borrower").flag(format!("-DTOKENS=\"{in_c}\""));
        let library = metric.build(&home.path("")).display().to_string();
        let output = home.train(run, &["--plugin", &library]);
        let (error, hint) = output.failed_with(3);
        let start = "plugin borrower failed in compute: the value name ";
        assert!(error.starts_with(start) && error.ends_with(why), "{error}");
        assert_eq!(
            hint,
            "remove plugin borrower; its author must rename the value"
        );
        assert!(!home.run_dir(run).exists(), "{name}");
    }
}

#[test]
fn two_metrics_with_the_same_value_name_are_both_named() {
    let home = Home::new();
    let library = |id| {
        let path = Fixture::metric(id).build(&home.path(""));
        path.display().to_string()
    };
    let (one, other) = (library("one"), library("other"));
    let output = home.train("both", &["--plugin", &one, "--plugin", &other]);
    let (error, hint) = output.failed_with(3);
    assert_eq!(
        error,
        "plugin other failed in compute: the value name \"loss/mean\" is already used by plugin one"
    );
    assert_eq!(hint, "remove plugin other or one");
}

#[test]
fn a_sink_that_fails_or_panics_does_not_stop_the_training() {
    let home = Home::new();
    for (setting, words, refused) in [
        (
            "fail_in=publish",
            "publish was told to fail",
            &[5, 10, 15, 20][..],
        ),
        // The sink is recreated three times for the first checkpoint. After that, all checkpoints stay
        // queued.
        (
            "panic_in=publish",
            "panicked: publish was told to panic",
            &[5],
        ),
    ] {
        let name = setting.replace('=', "-");
        let output = home.train(&name, &["--plugin", &misbehaving(setting)]);
        let (error, _) = output.failed_with(4);
        assert_eq!(error, "checkpoints did not reach misbehaving");
        // The training itself is not affected.
        assert_eq!(home.checkpoints(&name), [5, 10, 15, 20]);
        let shown = home
            .host(&["runs", "show", &name, "--json"])
            .succeeded()
            .json();
        assert_eq!(
            (&shown["status"], &shown["last_step"]),
            (&json!("completed"), &json!(20))
        );

        let events = events_of(&home.run_dir(&name));
        let fault = events.iter().find_map(|event| match &event.body {
            EventBody::PluginFault {
                plugin,
                call,
                message,
            } => Some((plugin.as_str(), call.as_str(), message.as_str())),
            _ => None,
        });
        let (plugin, call, message) = fault.expect("a fault is an event");
        assert_eq!((plugin, call), ("misbehaving", "publish"));
        assert!(message.ends_with(words), "{message}");
        let failed = events.iter().filter_map(|event| match &event.body {
            EventBody::Delivery {
                checkpoint,
                state: DeliveryState::Failed,
                retry_time_us: None,
                ..
            } => Some(checkpoint.0),
            _ => None,
        });
        assert_eq!(failed.collect::<Vec<_>>(), refused);
    }
}

#[test]
fn a_plugin_that_panics_in_destroy_does_no_harm() {
    let home = Home::new();
    let plugin = misbehaving("panic_in=destroy");
    home.train("let-go", &["--plugin", &plugin]).succeeded();
    assert_eq!(home.checkpoints("let-go"), [5, 10, 15, 20]);
}
