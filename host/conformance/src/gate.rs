//! Tests that run before the first instance is created. They check the library's file, and the description
//! that its entry function returns.

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
/// A longer loading time causes a warning.
const QUICK: Duration = Duration::from_millis(100);

pub(super) const TESTS: &[Test] = &[
    TOPIC
        .test(
            STATIC_GATE,
            "the file passes the host's inspection before it is loaded",
            static_gate,
        )
        .needs(Needs::File),
    TOPIC
        .test(
            DESCRIPTION,
            "the description in the code matches the manifest, and the function tables are complete",
            description_matches_manifest,
        )
        .needs(Needs::File),
    TOPIC
        .test(
            "settings-schema",
            "the settings schema describes an object and every required setting, and accepts its own defaults",
            settings_schema,
        )
        .needs(Needs::File),
    CREATES,
    TOPIC
        .test(
            "entry-repeats",
            "a second call of the entry function returns the same description",
            entry_repeats,
        )
        .needs(Needs::Library),
    TOPIC
        .test(
            "entry-other-major",
            "with a host of another major version, the entry function does not crash, and a rejection has a reason",
            entry_other_major,
        )
        .needs(Needs::Library),
    TOPIC
        .test(
            "entry-smaller-host",
            "nothing beyond the host's struct_size is read",
            entry_smaller_host,
        )
        .needs(Needs::Library),
    TOPIC
        .test(
            "entry-larger-host",
            "a newer host, with fields that the plugin does not know, is accepted",
            entry_larger_host,
        )
        .needs(Needs::Library),
    TOPIC.test(
        "no-extensions",
        "the plugin works with a host without extensions",
        no_extensions,
    ),
    TOPIC
        .test(
            "loads-quickly",
            "loading and the entry function take less than 100 ms",
            loads_quickly,
        )
        .needs(Needs::Library),
];

fn static_gate(setup: &Setup) -> Verdict {
    let image = Image::read(&setup.path).or_else(|error| skip(error.message()))?;
    match host_plugin::inspect(image.bytes(), &setup.path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::Plugin => Err(fault(
            format!("is rejected: {}", error.message()),
            "the host can read and check the file without running it",
            error.hint_text().unwrap_or("build it again"),
        )),
        Err(error) => skip(error.message()),
    }
}

fn description_matches_manifest(setup: &Setup) -> Verdict {
    stage("load");
    let image = Image::read(&setup.path).or_else(|error| skip(error.message()))?;
    match Library::load(&image, &setup.path) {
        Ok(_) => Ok(()),
        Err(error) => Err(fault(
            format!("cannot be loaded: {}", error.message()),
            "the description in the code agrees with the manifest in the file",
            "define id and version in one place, and set every function of the kind",
        )),
    }
}

fn settings_schema(setup: &Setup) -> Verdict {
    let Some(schema) = &setup.manifest().config else {
        return skip("the plugin has no settings");
    };
    let wrong = |did: String| {
        fault(
            did,
            "the settings schema describes a JSON object and is consistent",
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
        // Removes only `required`, since a `$ref` can point to any other part of the schema.
        let mut of_one = schema.clone();
        if let Value::Object(of_one) = &mut of_one {
            of_one.remove("required");
        }
        let settings = Value::Object([(key.clone(), default.clone())].into_iter().collect());
        let validator = compile_schema(&of_one);
        let fits = validator.is_ok_and(|validator| validator.is_valid(&settings));
        if !fits {
            return Err(wrong(format!(
                "has the default {default} for {key}, which its own schema rejects"
            )));
        }
    }
    if schema.get("additionalProperties") != Some(&Value::Bool(false)) {
        return Err(warning(
            "accepts settings that its schema does not name",
            "a setting with a misspelled name is rejected",
            "add \"additionalProperties\": false to the schema",
        ));
    }
    Ok(())
}

/// Loads the library and returns its entry function. Omits the host's checks of the description.
fn entry(setup: &Setup) -> Result<HostPluginEntry, Stop> {
    stage("load");
    Image::read(&setup.path)
        .and_then(|image| open(&image, &setup.manifest().id, &setup.path))
        .or_else(|error| skip(format!("the library cannot be loaded: {}", error.message())))
}

/// Calls the entry function with `api`. This can be the API of this host, or imitate the API of another host.
fn ask(entry: HostPluginEntry, api: *const HostApi, who: &str) -> *const HostPlugin {
    stage(&format!("the entry function, called by {who}"));
    take_error();
    // SAFETY: the function is the library's entry function. The API has the size that it declares, and lives
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
                Ok(_) => "returned a different description in the second call".to_owned(),
                Err(_) => "rejected the host in the second call".to_owned(),
            },
            "the entry function may be called more than once, and returns the same description",
            "return the address of one static description",
        )),
    }
}

/// Extracts the fields of a description for comparison.
fn said(plugin: *const HostPlugin) -> Result<(String, String, usize, u32), Stop> {
    if plugin.is_null() {
        return skip("the plugin rejects this host");
    }
    // SAFETY: by the ABI the description has the size that its first four bytes declare.
    let plugin = unsafe { description(plugin) }.or_else(skip)?;
    // SAFETY: by the ABI the texts are readable forever.
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
                format!("rejected {who} without a reason"),
                "an entry function that rejects a host passes a reason to set_error",
                "call api->set_error(api->ctx, …) before returning null",
            ));
        }
    }
    Ok(())
}

/// Returns the host's API as a struct of `size` bytes. The struct lives forever.
fn api_of(setup: &Setup, size: usize) -> Result<*const HostApi, Stop> {
    let mut api = *host_api(&setup.manifest().id);
    let whole = size_of::<HostApi>();
    api.struct_size = u32::try_from(size).unwrap_or(u32::MAX);
    // The struct of a newer host can be larger than this host's struct. The additional fields keep the fill
    // value.
    let mut bytes = vec![0xa5; size.max(whole)];
    // SAFETY: the vector is at least as large as the struct.
    unsafe { ptr::copy_nonoverlapping(ptr::from_ref(&api).cast(), bytes.as_mut_ptr(), whole) };
    let memory = Memory::holding(&bytes[..size]).map_err(|error| cannot("map memory", &error))?;
    let memory: &'static Memory = Box::leak(Box::new(memory));
    memory.protect();
    Ok(memory.address().cast_const().cast())
}

fn entry_smaller_host(setup: &Setup) -> Verdict {
    let entry = entry(setup)?;
    // These structs are smaller than in ABI 1.0. No real host has such a struct, so the plugin may reject it.
    // But it must not read anything beyond the declared size.
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
            format!("rejected {who}: {reason}"),
            "minor versions only append fields, so a larger struct is no reason for a rejection",
            "compare struct_size with >=, not with ==",
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
    let who = "a host without extensions";
    if ask(entry, api, who).is_null() {
        return Err(fault(
            format!("rejected {who}"),
            "every extension is optional",
            "make the plugin work without the extension, or set min_host_minor in the manifest",
        ));
    }
    let subject = Subject::load(setup)?.with_api(api);
    for maker in subject.makers() {
        let created = subject.create_from(maker, subject.config.as_bytes());
        // Leaks the instance. Whether an instance can be destroyed before its first call is checked by
        // another test.
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
                "took {} ms to load and to return its description",
                took.as_millis()
            ),
            "the entry function only describes the plugin; it is called at every start of a run",
            "do the work in create or in the first call instead",
        ));
    }
    Ok(())
}
