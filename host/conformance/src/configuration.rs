//! Tests of settings that the schema allows. `create` must return an instance, or reject the settings with a
//! reason and create no instance. Settings that the schema does not allow never reach `create`, neither here
//! nor in a run, because the host checks the settings first.

use std::time::{Duration, Instant};

use host_plugin_abi::HOST_PANIC;
use serde_json::{Map, Value, json};

use crate::child::panicked;
use crate::setup::Setup;
use crate::subject::{Created, Failure, Subject, has_reason};
use crate::test::{Needs, Stop, Test, Topic, Verdict, fault, skip};
use host_plugin::raw::compile_schema;
use host_plugin::raw::resolved;

const TOPIC: Topic = Topic {
    name: "settings",
    kinds: &[],
};
/// Total time limit for the calls of `create` in one test.
const LONG: Duration = Duration::from_secs(5);
/// Number of characters in an unexpectedly long text.
const MANY: usize = 10_000;

pub(super) const ALLOWED: &str = "allowed-settings";

pub(super) const TESTS: &[Test] = &[
    TOPIC.test(
        ALLOWED,
        "with any settings that the schema allows, create returns an instance or an error, and does not crash",
        allowed_settings,
    ),
    TOPIC.test(
        "settings-order",
        "the order of the settings does not matter",
        settings_order,
    ),
    TOPIC
        .test(
            "refusals-have-reasons",
            "if create fails, it reports a reason",
            refusals_have_reasons,
        )
        .needs(Needs::Settings),
    TOPIC
        .test(
            "refusals-make-nothing",
            "if create fails, it returns no instance",
            refusals_make_nothing,
        )
        .needs(Needs::Settings),
];

/// Returns values that a setting may have, including unusual values.
fn candidates(property: &Value, root: &Value, depth: u32) -> Vec<Value> {
    let property = resolved(property, root);
    let mut found: Vec<Value> = ["minimum", "maximum", "default", "const"]
        .into_iter()
        .filter_map(|key| property.get(key).cloned())
        .collect();
    for key in ["enum", "examples"] {
        let listed = property.get(key).and_then(Value::as_array);
        found.extend(listed.into_iter().flatten().cloned());
    }
    found.extend([json!(null), json!(true), json!(false)]);
    found.extend([
        json!(0),
        json!(1),
        json!(-1),
        json!(i64::MAX),
        json!(i64::MIN),
    ]);
    found.extend([json!(u64::MAX), json!(0.5), json!(-0.0), json!(3.0)]);
    found.extend([json!(f64::MAX), json!(f64::MIN), json!(5e-324)]);
    found.extend(["", "a", " ", "\"\\/\n\t\u{1}", "é😀", "{\"a\": [1]}"].map(Value::from));
    found.push("x".repeat(MANY).into());
    found.extend([json!([]), json!({})]);
    let items = property.get("items").filter(|_| depth > 0);
    for item in items
        .into_iter()
        .flat_map(|items| candidates(items, root, depth - 1))
    {
        found.push(json!([item]));
    }
    found
}

/// Returns variants of the valid settings. In each variant, one setting is changed, and the schema allows the
/// result.
fn allowed(setup: &Setup, subject: &Subject) -> Vec<String> {
    let good = good(subject);
    let Some(schema) = &setup.manifest().config else {
        return Vec::new();
    };
    let Ok(validator) = compile_schema(schema) else {
        return Vec::new();
    };
    let properties = resolved(schema, schema)
        .get("properties")
        .and_then(Value::as_object);
    let mut found = Vec::new();
    for (key, property) in properties.into_iter().flatten() {
        for value in candidates(property, schema, 1) {
            // If the tests run in process, strings are skipped. A string could be a relative path, and
            // without a separate process the working directory is not a scratch folder.
            if setup.in_process && value.is_string() {
                continue;
            }
            let mut settings = good.clone();
            settings.insert(key.clone(), value);
            let settings = Value::Object(settings);
            if validator.is_valid(&settings) {
                found.push(settings.to_string());
            }
        }
    }
    found.sort();
    found.dedup();
    found
}

fn good(subject: &Subject) -> Map<String, Value> {
    serde_json::from_str(&subject.config).unwrap_or_default()
}

/// Loads the plugin, and makes the test's scratch folder the working directory, since a setting may name a
/// file.
fn load(setup: &Setup) -> Result<Subject, Stop> {
    // Load before changing the directory, because the plugin's path may be relative.
    let subject = Subject::load(setup)?;
    if !setup.in_process {
        std::env::set_current_dir(setup.scratch())
            .or_else(|error| skip(format!("cannot enter the scratch folder: {error}")))?;
    }
    Ok(subject)
}

/// Calls the `create` of each kind with each of the settings. Stops at the time limit.
fn each(
    subject: &Subject,
    settings: &[String],
    look: impl Fn(&str, Created) -> Verdict,
) -> Verdict {
    let ends = Instant::now() + LONG;
    for maker in subject.makers() {
        for text in settings {
            if Instant::now() >= ends {
                return Ok(());
            }
            let created = subject.create_from(maker, text.as_bytes());
            if let Err(failure) = &created.result
                && failure.status() == HOST_PANIC
            {
                return Err(panicked(failure.words()));
            }
            look(text, created)?;
        }
    }
    Ok(())
}

/// Returns whether `create` succeeded. Leaks the instance, because another test checks that it can be
/// destroyed.
fn keep(created: Created) -> Result<(), Failure> {
    created.result.map(std::mem::forget)
}

fn allowed_settings(setup: &Setup) -> Verdict {
    let subject = load(setup)?;
    let settings = allowed(setup, &subject);
    if settings.is_empty() {
        return skip("the plugin has no settings");
    }
    // The plugin may reject settings; another test checks that it reports a reason.
    each(&subject, &settings, |_, created| {
        let _ = keep(created);
        Ok(())
    })
}

fn settings_order(setup: &Setup) -> Verdict {
    let subject = load(setup)?;
    let mut settings = good(&subject);
    for text in allowed(setup, &subject) {
        // If `text` contains settings that are not in `settings` yet, adds them, provided that the plugin
        // accepts the combination.
        let more: Map<String, Value> = serde_json::from_str(&text).unwrap_or_default();
        let mut both = settings.clone();
        for (key, value) in more {
            both.entry(key).or_insert(value);
        }
        let text = Value::Object(both.clone()).to_string();
        let mut makers = subject.makers().into_iter();
        let mut is_taken =
            || makers.all(|maker| keep(subject.create_from(maker, text.as_bytes())).is_ok());
        if both.len() > settings.len() && is_taken() {
            settings = both;
        }
    }
    if settings.len() < 2 {
        return skip("the plugin accepts fewer than two settings at once");
    }
    let reversed: Map<String, Value> = settings.into_iter().rev().collect();
    let text = Value::Object(reversed).to_string();
    each(&subject, &[text], |text, created| match keep(created) {
        Ok(()) => Ok(()),
        Err(failure) => Err(fault(
            format!(
                "{}, but accepted these settings in another order; the rejected order is {text}",
                failure.words()
            ),
            "settings are a JSON object, whose members have no order",
            "look up each setting by its name",
        )),
    })
}

fn refusals_have_reasons(setup: &Setup) -> Verdict {
    let subject = load(setup)?;
    each(&subject, &allowed(setup, &subject), |_, created| {
        keep(created).or_else(|failure| has_reason(&failure))
    })
}

fn refusals_make_nothing(setup: &Setup) -> Verdict {
    let subject = load(setup)?;
    each(
        &subject,
        &allowed(setup, &subject),
        |text, created| match created.made_one_anyway {
            false => {
                let _ = keep(created);
                Ok(())
            }
            true => Err(fault(
                format!("returned an instance although create failed, given {text:?}"),
                "if create fails, it leaves the instance null, because the host never destroys that instance",
                "free everything that was allocated, and write to `instance` only at the end",
            )),
        },
    )
}
