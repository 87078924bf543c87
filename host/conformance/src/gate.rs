//! What is looked at before the first instance: the file, and what its entry function says.

use std::mem::offset_of;
use std::ptr;
use std::time::{Duration, Instant};

use host_core::ErrorKind;
use host_plugin_abi::{HOST_ABI_MAJOR, HostApi, HostPlugin, HostPluginEntry, HostStr};
use serde_json::Value;

use crate::child::{cannot, stage};
use crate::creation::CREATES;
use crate::lifecycle::exercise;
use crate::memory::Memory;
use crate::setup::Setup;
use crate::subject::Subject;
use crate::test::{Needs, Stop, Test, Topic, Verdict, fault, skip, warning};
use host_plugin::raw::Image;
use host_plugin::raw::compile_schema;
use host_plugin::raw::{Library, description, open};
use host_plugin::raw::{host_api, take_error};

pub(super) const STATIC_GATE: &str = "static-gate";
pub(super) const DESCRIPTION: &str = "description-matches-manifest";
pub(super) const TOPIC: Topic = Topic {
    name: "gate",
    kinds: &[],
};
/// Longest time for which loading a plugin is not worth a word.
const QUICK: Duration = Duration::from_millis(100);

pub(super) const TESTS: &[Test] = &[
    TOPIC
        .test(
            STATIC_GATE,
            "the file passes the look before the load",
            static_gate,
        )
        .needs(Needs::File),
    TOPIC
        .test(
            DESCRIPTION,
            "the code says of itself what the manifest promised, with whole tables of functions",
            description_matches_manifest,
        )
        .needs(Needs::File),
    TOPIC
        .test(
            "settings-schema",
            "the schema of the settings is of an object, knows what it requires, and its defaults fit it",
            settings_schema,
        )
        .needs(Needs::File),
    CREATES,
    TOPIC
        .test(
            "entry-repeats",
            "the entry function called again says the same",
            entry_repeats,
        )
        .needs(Needs::Library),
    TOPIC
        .test(
            "entry-other-major",
            "a host of another major version meets no crash, and a refusal has a reason",
            entry_other_major,
        )
        .needs(Needs::Library),
    TOPIC
        .test(
            "entry-smaller-host",
            "nothing behind the host's struct_size is read",
            entry_smaller_host,
        )
        .needs(Needs::Library),
    TOPIC
        .test(
            "entry-larger-host",
            "a newer host, with fields that the plugin does not know, is welcome",
            entry_larger_host,
        )
        .needs(Needs::Library),
    TOPIC.test(
        "no-extensions",
        "a host without any extension is enough",
        no_extensions,
    ),
    TOPIC
        .test(
            "loads-quickly",
            "loading and describing takes less than 100 ms",
            loads_quickly,
        )
        .needs(Needs::Library),
];

fn static_gate(setup: &Setup) -> Verdict {
    let image = Image::read(&setup.path).or_else(|error| skip(error.message()))?;
    match host_plugin::inspect(image.bytes(), &setup.path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::Plugin => Err(fault(
            format!("is refused: {}", error.message()),
            "the host can trust what the file says without running it",
            error.hint_text().unwrap_or("build it again"),
        )),
        Err(error) => skip(error.message()),
    }
}

fn description_matches_manifest(setup: &Setup) -> Verdict {
    stage("its loading");
    let image = Image::read(&setup.path).or_else(|error| skip(error.message()))?;
    match Library::load(&image, &setup.path) {
        Ok(_) => Ok(()),
        Err(error) => Err(fault(
            format!("cannot be loaded: {}", error.message()),
            "the description in the code agrees with the manifest in the file",
            "write id and version once, and give every function of the kind",
        )),
    }
}

fn settings_schema(setup: &Setup) -> Verdict {
    let Some(schema) = &setup.manifest().config else {
        return skip("the plugin takes no settings");
    };
    let wrong = |did: String| {
        fault(
            did,
            "the schema of the settings is one of a JSON object, and true of itself",
            "correct `config` in the manifest",
        )
    };
    if schema.get("type").and_then(Value::as_str) != Some("object") {
        return Err(wrong(
            "has a settings schema whose type is not \"object\"".to_owned(),
        ));
    }
    let properties = schema.get("properties").and_then(Value::as_object);
    let required = schema.get("required").and_then(Value::as_array);
    for key in required.into_iter().flatten().filter_map(Value::as_str) {
        if properties.is_none_or(|properties| !properties.contains_key(key)) {
            return Err(wrong(format!(
                "requires the setting {key}, which its schema does not describe"
            )));
        }
    }
    for (key, property) in properties.into_iter().flatten() {
        let Some(default) = property.get("default") else {
            continue;
        };
        // The whole schema stands by, for what a `$ref` points to.
        let mut of_one = schema.clone();
        if let Value::Object(of_one) = &mut of_one {
            of_one.remove("required");
        }
        let settings = Value::Object([(key.clone(), default.clone())].into_iter().collect());
        let validator = compile_schema(&of_one);
        let fits = validator.is_ok_and(|validator| validator.is_valid(&settings));
        if !fits {
            return Err(wrong(format!(
                "says that {default} is the default of {key}, which its own schema refuses"
            )));
        }
    }
    if schema.get("additionalProperties") != Some(&Value::Bool(false)) {
        return Err(warning(
            "accepts settings that its schema does not name",
            "a mistyped setting is refused",
            "add \"additionalProperties\": false to the schema",
        ));
    }
    Ok(())
}

/// The entry function of the library, loaded past the host's own look at what it says.
fn entry(setup: &Setup) -> Result<HostPluginEntry, Stop> {
    stage("its loading");
    Image::read(&setup.path)
        .and_then(|image| open(&image, &setup.manifest().id, &setup.path))
        .or_else(|error| skip(format!("the library cannot be loaded: {}", error.message())))
}

/// Asks the entry function, as this host or another.
fn ask(entry: HostPluginEntry, api: *const HostApi, who: &str) -> *const HostPlugin {
    stage(&format!("the entry function, called by {who}"));
    take_error();
    // SAFETY: the function is the library's entry, and the API is as large as it says and lives for
    // as long as the test's process.
    unsafe { entry(api) }
}

fn entry_repeats(setup: &Setup) -> Verdict {
    let entry = entry(setup)?;
    let api = host_api(&setup.manifest().id);
    let first = said(ask(entry, api, "this host"))?;
    let second = said(ask(entry, api, "this host a second time"));
    match second {
        Ok(second) if second == first => Ok(()),
        other => Err(fault(
            match other {
                Ok(_) => "described itself differently when it was asked again".to_owned(),
                Err(_) => "refused the host when it was asked again".to_owned(),
            },
            "the entry function may be called more than once, and says the same",
            "return the address of one static description",
        )),
    }
}

/// What a description says, for comparison.
fn said(plugin: *const HostPlugin) -> Result<(String, String, usize, u32), Stop> {
    if plugin.is_null() {
        return skip("the plugin refuses this host");
    }
    // SAFETY: by the ABI the description has the size that its first four bytes say.
    let plugin = unsafe { description(plugin) }.or_else(skip)?;
    // SAFETY: by the ABI the texts are readable for ever.
    let text = |text: HostStr| unsafe { host_plugin::raw::message_of(text) };
    Ok((
        text(plugin.id),
        text(plugin.version),
        plugin.n_items,
        plugin.abi_major,
    ))
}

fn entry_other_major(setup: &Setup) -> Verdict {
    let entry = entry(setup)?;
    for major in [0, HOST_ABI_MAJOR + 1, u32::MAX] {
        let api = HostApi {
            abi_major: major,
            ..*host_api(&setup.manifest().id)
        };
        let who = format!("a host of the major version {major}");
        if ask(entry, Box::leak(Box::new(api)), &who).is_null() && take_error().is_none() {
            return Err(fault(
                format!("refused {who} without a reason"),
                "an entry that refuses a host gives its reason by set_error",
                "call api->set_error(api->ctx, …) before null is returned",
            ));
        }
    }
    Ok(())
}

/// The host's side as bytes of another size, which live for ever.
fn api_of(setup: &Setup, size: usize) -> Result<*const HostApi, Stop> {
    let mut api = *host_api(&setup.manifest().id);
    let whole = size_of::<HostApi>();
    api.struct_size = u32::try_from(size).unwrap_or(u32::MAX);
    // What a newer host has behind the known fields.
    let mut bytes = vec![0xa5; size.max(whole)];
    // SAFETY: the bytes are as many as the struct has.
    unsafe { ptr::copy_nonoverlapping(ptr::from_ref(&api).cast(), bytes.as_mut_ptr(), whole) };
    let memory = Memory::holding(&bytes[..size]).map_err(|error| cannot("map memory", &error))?;
    let memory: &'static Memory = Box::leak(Box::new(memory));
    memory.protect();
    Ok(memory.address().cast_const().cast())
}

fn entry_smaller_host(setup: &Setup) -> Verdict {
    let entry = entry(setup)?;
    // No host was ever smaller than ABI 1.0's, so a refusal is as good as a description; but what is
    // beyond the size cannot be touched.
    for size in [
        offset_of!(HostApi, ctx),
        offset_of!(HostApi, log),
        offset_of!(HostApi, get_extension),
    ] {
        let who = format!("a host whose HostApi has {size} bytes");
        ask(entry, api_of(setup, size)?, &who);
    }
    Ok(())
}

fn entry_larger_host(setup: &Setup) -> Verdict {
    let entry = entry(setup)?;
    let size = size_of::<HostApi>() + 64;
    let who = format!("a newer host, whose HostApi has {size} bytes");
    let plugin = ask(entry, api_of(setup, size)?, &who);
    if plugin.is_null() {
        let reason = take_error().unwrap_or_else(|| "it gave no reason".to_owned());
        return Err(fault(
            format!("refused {who}: {reason}"),
            "minor versions only append fields, so a larger struct is no reason to refuse",
            "compare struct_size by >=, not by ==",
        ));
    }
    said(plugin).map(drop)
}

unsafe extern "C" fn no_extension(_: *mut libc::c_void, _: HostStr) -> *const libc::c_void {
    ptr::null()
}

fn no_extensions(setup: &Setup) -> Verdict {
    let entry = entry(setup)?;
    let api: &'static HostApi = Box::leak(Box::new(HostApi {
        get_extension: Some(no_extension),
        ..*host_api(&setup.manifest().id)
    }));
    let who = "a host that has no extension";
    if ask(entry, api, who).is_null() {
        return Err(fault(
            format!("refused {who}"),
            "every extension is optional",
            "do without it, or say in the manifest which min_host_minor is needed",
        ));
    }
    let subject = Subject::load(setup)?.with_api(api);
    for maker in subject.makers() {
        let created = subject.create_from(maker, subject.config.as_bytes());
        // That it can be destroyed without a call is another test's.
        std::mem::forget(created.result?);
    }
    exercise(setup, &subject)
}

fn loads_quickly(setup: &Setup) -> Verdict {
    let start = Instant::now();
    let plugin = ask(entry(setup)?, host_api(&setup.manifest().id), "this host");
    let took = start.elapsed();
    said(plugin)?;
    if took >= QUICK {
        return Err(warning(
            format!(
                "took {} ms to load and to describe itself",
                took.as_millis()
            ),
            "the entry function only describes the plugin; it is called at every start of a run",
            "do the work in create, or in the first call",
        ));
    }
    Ok(())
}
