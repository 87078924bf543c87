//! Plugins that cannot be, or do not behave: each ends in the one error that names it.

use std::fs;

use host_core::{DeliveryState, EventBody};
use serde_json::json;

use crate::support::{Fixture, Home, built, events_of, fake_libtorch};

/// Trains with a plugin, which must end it; the error.
fn refusal(home: &Home, plugin: &str) -> String {
    let output = home.train("refused", &["--plugin", plugin]);
    let (error, hint) = output.failed_with(3);
    assert!(!hint.is_empty());
    error.to_owned()
}

/// The path of the plugin that misbehaves as its setting says, and the setting.
fn misbehaving(setting: &str) -> String {
    format!("{}:{setting}", built("libmisbehaving.so").display())
}

#[test]
fn what_cannot_be_a_plugin_is_refused_before_anything_happens() {
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
        (text, "plugin is no ELF file, not a shared library"),
        (
            another_major.build(&dir),
            "plugin another-major speaks ABI 2, this host speaks 1",
        ),
        (
            no_entry.build(&dir),
            "plugin no-entry exports no function host_plugin_entry_v1",
        ),
        (
            links_torch.build(&dir),
            "plugin links-torch links libtorch_cpu.so, which is the host's alone",
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
fn groups_that_cannot_be_used_name_the_parameter() {
    let home = Home::new();
    for (fault, what) in [
        (
            "twice",
            "in more than one group: transformer.wte.weight (\"all\" and \"all\")",
        ),
        ("leave_out", "in no group: transformer.wte.weight"),
    ] {
        let error = refusal(&home, &misbehaving(&format!("grouping={fault}")));
        let by = "plugin misbehaving gave parameter groups that cannot be used";
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

/// A metric is shown one batch before the first step, so that it does not fail after hours.
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
fn a_metric_may_not_take_a_name_of_the_hosts() {
    let home = Home::new();
    let hosts = "is a name of the host's own";
    for (run, name, why) in [
        ("a", "lr", hosts),
        ("b", "plugin/perplexity/calls", hosts),
        ("c", "system/cpu_percent", hosts),
        (
            "d",
            "Loss/Train",
            "looks like loss/train, a name of the host's own",
        ),
        ("e", "tokens ", "has white space that is not shown"),
        ("f", "a\u{200b}b", "has characters that are not shown"),
    ] {
        let in_c = name.replace('\u{200b}', "\\342\\200\\213");
        let metric = Fixture::metric("borrower").flag(format!("-DTOKENS=\"{in_c}\""));
        let library = metric.build(&home.path("")).display().to_string();
        let output = home.train(run, &["--plugin", &library]);
        let (error, hint) = output.failed_with(3);
        let start = "plugin borrower failed in compute: it gives a value called ";
        assert!(error.starts_with(start) && error.ends_with(why), "{error}");
        assert_eq!(
            hint,
            "leave borrower out; its author must choose another name"
        );
        assert!(!home.run_dir(run).exists(), "{name}");
    }
}

/// A name that is given later than at the first batch mixes with nothing either.
#[test]
fn two_metrics_that_give_one_name_are_both_named() {
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
        "plugin other failed in compute: it gives a value called \"loss/mean\", and so does plugin one"
    );
    assert_eq!(hint, "leave other or one out");
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
        // It is made anew three times for the first, which then waits as the others do.
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
        // Everything else is as ever.
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
fn a_plugin_that_panics_when_it_is_let_go_spoils_nothing() {
    let home = Home::new();
    let plugin = misbehaving("panic_in=destroy");
    home.train("let-go", &["--plugin", &plugin]).succeeded();
    assert_eq!(home.checkpoints("let-go"), [5, 10, 15, 20]);
}
