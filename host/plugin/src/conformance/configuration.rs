//! Settings that cannot be are refused, in words, and make nothing.

use host_plugin_abi::HOST_PANIC;
use serde_json::{Map, Value, json};

use crate::conformance::child::panicked;
use crate::conformance::setup::Setup;
use crate::conformance::subject::{Created, Subject, has_reason};
use crate::conformance::test::{Test, Topic, Verdict, fault, skip};
use crate::schema;

const TOPIC: Topic = Topic {
    name: "settings",
    kinds: &[],
};
/// A setting that no plugin has.
const UNKNOWN: &str = "no_such_setting_of_any_plugin";

pub(super) const TESTS: &[Test] = &[
    TOPIC.test(
        "refuses-no-json",
        "settings that are no JSON are an error of create",
        refuses_no_json,
    ),
    TOPIC.test(
        "refuses-wrong-types",
        "settings of a wrong type are an error of create",
        refuses_wrong_types,
    ),
    TOPIC.test(
        "refuses-unknown-settings",
        "a setting that the schema does not know is an error of create",
        refuses_unknown_settings,
    ),
    TOPIC.test(
        "refusals-have-reasons",
        "a create that fails gives its reason",
        refusals_have_reasons,
    ),
    TOPIC.test(
        "refusals-make-nothing",
        "a create that fails gives no instance",
        refusals_make_nothing,
    ),
];

/// Texts that are no JSON object at all.
fn no_json() -> Vec<String> {
    ["", "{", "settings", "\u{0}", "{\"a\": }"]
        .map(str::to_owned)
        .to_vec()
}

/// Values of another type than the schema says, beside settings that are good.
fn wrong_types(setup: &Setup, subject: &Subject) -> Vec<String> {
    // Some readers of structs take a list for one.
    let mut found = ["[]", "[1]", "3", "null"].map(str::to_owned).to_vec();
    let good: Map<String, Value> = serde_json::from_str(&subject.config).unwrap_or_default();
    let schema = setup.manifest().config.as_ref();
    let properties = schema
        .and_then(|schema| schema.get("properties"))
        .and_then(Value::as_object);
    let odd = [json!({"a": []}), json!([[]]), json!("text"), json!(-1.5)];
    for key in properties.into_iter().flatten().map(|(key, _)| key) {
        let refused = odd.iter().find_map(|value| {
            let mut settings = good.clone();
            settings.insert(key.clone(), value.clone());
            let settings = Value::Object(settings);
            is_refused(schema, &settings).then(|| settings.to_string())
        });
        found.extend(refused);
    }
    found
}

fn is_refused(schema: Option<&Value>, settings: &Value) -> bool {
    let validator = schema.map(schema::compile);
    matches!(validator, Some(Ok(validator)) if !validator.is_valid(settings))
}

fn unknown(setup: &Setup, subject: &Subject) -> Option<String> {
    let mut settings: Map<String, Value> =
        serde_json::from_str(&subject.config).unwrap_or_default();
    settings.insert(UNKNOWN.to_owned(), json!(1));
    let settings = Value::Object(settings);
    is_refused(setup.manifest().config.as_ref(), &settings).then(|| settings.to_string())
}

/// Tries each of the settings with each of the kinds.
fn each(
    subject: &Subject,
    settings: &[String],
    look: impl Fn(&str, Created) -> Verdict,
) -> Verdict {
    for maker in subject.makers() {
        for text in settings {
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

fn must_refuse(setup: &Setup, settings: impl FnOnce(&Subject) -> Vec<String>) -> Verdict {
    let subject = Subject::load(setup)?;
    let settings = settings(&subject);
    // Who takes no settings need not read them, but may not stumble over them either.
    let reads_none = setup.manifest().config.is_none();
    each(&subject, &settings, |text, created| match created.result {
        Ok(_) if !reads_none => Err(fault(
            format!("made an instance of the settings {text:?}"),
            "create refuses what the schema refuses: a host may pass it on unchecked",
            "check the settings in create, and tell set_error what is wrong with them",
        )),
        _ => Ok(()),
    })?;
    match reads_none {
        true => skip("the plugin takes no settings; it did not stumble over these"),
        false => Ok(()),
    }
}

fn refuses_no_json(setup: &Setup) -> Verdict {
    must_refuse(setup, |_| no_json())
}

fn refuses_wrong_types(setup: &Setup) -> Verdict {
    must_refuse(setup, |subject| wrong_types(setup, subject))
}

fn refuses_unknown_settings(setup: &Setup) -> Verdict {
    let schema = setup.manifest().config.as_ref();
    let is_open = |schema: &Value| schema.get("additionalProperties") != Some(&json!(false));
    if schema.is_some_and(is_open) {
        return skip("its schema lets any setting through");
    }
    must_refuse(setup, |subject| {
        let unknown = unknown(setup, subject);
        unknown.into_iter().collect()
    })
}

/// All of the above.
fn bad(setup: &Setup, subject: &Subject) -> Vec<String> {
    let mut all = no_json();
    all.extend(wrong_types(setup, subject));
    all.extend(unknown(setup, subject));
    all
}

fn refusals_have_reasons(setup: &Setup) -> Verdict {
    let subject = Subject::load(setup)?;
    each(&subject, &bad(setup, &subject), |_, created| {
        created
            .result
            .map_or_else(|failure| has_reason(&failure), |_| Ok(()))
    })
}

fn refusals_make_nothing(setup: &Setup) -> Verdict {
    let subject = Subject::load(setup)?;
    each(
        &subject,
        &bad(setup, &subject),
        |text, created| match created.made_one_anyway {
            false => Ok(()),
            true => Err(fault(
                format!("gave an instance although create failed, given {text:?}"),
                "a create that fails leaves the instance null: the host never destroys it",
                "free what was made, and write to `instance` only at the very end",
            )),
        },
    )
}
