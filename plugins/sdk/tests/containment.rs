//! Checks that faults in a metric affect only that metric.

#![expect(
    unsafe_code,
    reason = "some tests violate the rules of the C interface"
)]

use std::ffi::c_void;
use std::panic::panic_any;
use std::ptr;

use host_plugin_sdk::abi::{HOST_ERROR, HOST_OK, HOST_PANIC, HostApi, HostOut, HostStr};
use host_plugin_sdk::{Batch, Error, Host, Metric, Result, Values, export_plugin, fake};

/// A metric that panics in one of its calls. The configuration selects the call.
struct Fragile {
    panic_in: String,
    seen: u64,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    #[serde(default)]
    panic_in: String,
}

/// A panic payload that panics when dropped.
struct Grenade;

impl Drop for Grenade {
    fn drop(&mut self) {
        panic_any("the grenade");
    }
}

impl Fragile {
    fn at(&self, call: &str) {
        assert!(self.panic_in != call, "the {call} of {}", self.seen);
    }
}

impl Metric for Fragile {
    type Config = Config;

    fn create(config: Config, host: Host) -> Result<Self> {
        host.debug("created");
        let made = Self {
            panic_in: config.panic_in,
            seen: 0,
        };
        match made.panic_in.as_str() {
            "create" => panic!("no {}", "instance"),
            "create with an error" => Err(Error::new("refused: /x")),
            _ => Ok(made),
        }
    }

    fn reset(&mut self) {
        self.at("reset");
        if self.panic_in == "reset with a grenade" {
            panic_any(Grenade);
        }
        self.seen = 0;
    }

    fn update(&mut self, batch: &Batch<'_>) -> Result<()> {
        self.at("update");
        self.seen += batch.step();
        Ok(())
    }

    fn export_state(&self) -> Vec<u8> {
        self.at("export_state");
        self.seen.to_le_bytes().to_vec()
    }

    fn merge_state(&mut self, _state: &[u8]) -> Result<()> {
        self.at("merge_state");
        Ok(())
    }

    fn compute(&self, values: &mut Values<'_>) -> Result<()> {
        self.at("compute");
        values.put_f64("seen", self.seen as f64)?;
        if self.panic_in == "nothing, but a name twice" {
            values.put_f64("seen", 0.0)?;
        }
        Ok(())
    }
}

impl Drop for Fragile {
    fn drop(&mut self) {
        if self.panic_in == "drop" {
            panic!("not dropped");
        }
    }
}

export_plugin! {
    description: "Panics in a configured call",
    metric: Fragile,
    needs: [],
}

fn metric(plugin: &fake::Plugin, panic_in: &str) -> fake::Metric {
    let config = serde_json::json!({ "panic_in": panic_in }).to_string();
    plugin.metric(&config).expect("created")
}

fn call(metric: &mut fake::Metric, name: &str) -> Result<(), fake::Failure> {
    match name {
        "reset" => metric.reset(),
        "update" => metric.update(&fake::Batch::new()),
        "export_state" => metric.export_state().map(drop),
        "merge_state" => metric.merge_state(&[]),
        "compute" => metric.compute().map(drop),
        _ => unreachable!("{name}"),
    }
}

const CALLS: [&str; 5] = ["reset", "update", "export_state", "merge_state", "compute"];

#[test]
fn a_panic_in_any_call_becomes_an_error_and_poisons_the_instance() {
    let plugin = fake::Plugin::load(&PLUGIN);
    for panics in CALLS {
        let mut metric = metric(&plugin, panics);
        let failure = call(&mut metric, panics).expect_err(panics);
        assert!(failure.is_panic());
        assert_eq!(failure.message, format!("panicked: the {panics} of 0"));
        for later in CALLS {
            let failure = call(&mut metric, later).expect_err(later);
            assert_eq!(failure.status, HOST_PANIC);
            assert_eq!(failure.message, "panicked in an earlier call");
        }
    }
}

#[test]
fn another_instance_than_the_poisoned_one_still_works() {
    let plugin = fake::Plugin::load(&PLUGIN);
    let mut poisoned = metric(&plugin, "update");
    assert!(call(&mut poisoned, "update").is_err());
    let mut sound = metric(&plugin, "");
    sound
        .update(&fake::Batch::new().at_step(5))
        .expect("updated");
    assert_eq!(sound.compute().expect("computed")["seen"], 5.0);
}

#[test]
fn a_failed_create_leaves_no_instance() {
    let plugin = fake::Plugin::load(&PLUGIN);
    let failure = plugin
        .metric(r#"{"panic_in": "create"}"#)
        .expect_err("panics");
    assert!(failure.is_panic());
    assert_eq!(failure.message, "panicked: no instance");
    let failure = plugin.metric(r#"{"panic_in": "create with an error"}"#);
    assert_eq!(failure.expect_err("refuses").message, "refused: /x");
}

#[test]
fn a_bad_configuration_is_an_error_with_the_reason() {
    let plugin = fake::Plugin::load(&PLUGIN);
    for (config, says) in [
        ("", "not a JSON object"),
        ("{", "EOF"),
        ("7", "not a JSON object"),
        ("[]", "not a JSON object"),
        (r#"{"unknown": 1}"#, "unknown field `unknown`"),
        (r#"{"panic_in": 1}"#, "expected a string"),
    ] {
        let failure = plugin.metric(config).expect_err(config);
        assert_eq!(failure.status, HOST_ERROR, "{config}");
        assert!(failure.message.starts_with("bad configuration: "));
        assert!(failure.message.contains(says), "{failure}");
    }
}

#[test]
fn a_panic_while_dropping_is_logged() {
    let plugin = fake::Plugin::load(&PLUGIN);
    drop(metric(&plugin, "drop"));
    let log = plugin.log();
    assert_eq!(log, ["debug: created", "error: panicked: not dropped"]);
}

#[test]
fn a_payload_that_panics_when_dropped_is_contained() {
    let plugin = fake::Plugin::load(&PLUGIN);
    let mut metric = metric(&plugin, "reset with a grenade");
    let failure = metric.reset().expect_err("panics");
    assert_eq!(failure.message, "panicked with a value that is not text");
}

#[test]
fn a_duplicate_name_is_an_error() {
    let plugin = fake::Plugin::load(&PLUGIN);
    let failure = metric(&plugin, "nothing, but a name twice").compute();
    let failure = failure.expect_err("refused");
    assert_eq!(failure.message, "the host rejected the value \"seen\"");
}

#[test]
fn null_pointers_are_errors() {
    let plugin = fake::Plugin::load(&PLUGIN);
    let metric = metric(&plugin, "");
    let (vtable, instance) = metric.raw();
    let config = HostStr::new("{}");
    let api = fake::api();
    let mut made: *mut c_void = ptr::null_mut();
    // SAFETY: the SDK accepts null, and all other arguments are valid.
    unsafe {
        let create = vtable.create.expect("create");
        assert_eq!(create(ptr::null(), config, &raw mut made), HOST_ERROR);
        assert_eq!(create(&raw const api, config, ptr::null_mut()), HOST_ERROR);
        assert!(made.is_null());
        vtable.destroy.expect("destroy")(ptr::null_mut());
        assert_eq!(vtable.reset.expect("reset")(ptr::null_mut()), HOST_ERROR);
        let update = vtable.update.expect("update");
        assert_eq!(update(ptr::null_mut(), ptr::null()), HOST_ERROR);
        assert_eq!(update(instance, ptr::null()), HOST_ERROR);
        let compute = vtable.compute.expect("compute");
        assert_eq!(compute(instance, ptr::null()), HOST_ERROR);
        let null = HostStr {
            ptr: ptr::null(),
            len: 3,
        };
        assert_eq!(create(&raw const api, null, &raw mut made), HOST_ERROR);
    }
}

#[test]
fn a_struct_with_a_small_size_is_an_error_and_one_with_a_large_size_is_read() {
    let plugin = fake::Plugin::load(&PLUGIN);
    let metric = metric(&plugin, "");
    let (vtable, instance) = metric.raw();
    let update = vtable.update.expect("update");
    fake::Batch::new().view(|batch| {
        let mut lying = *batch;
        lying.struct_size = 8;
        // SAFETY: the instance is live, and the batch is longer than its `struct_size`.
        assert_eq!(unsafe { update(instance, &raw const lying) }, HOST_ERROR);
        #[repr(C)]
        struct Grown(host_plugin_sdk::abi::HostBatch, u64);
        let mut grown = Grown(*batch, u64::MAX);
        grown.0.struct_size = u32::try_from(size_of::<Grown>()).expect("small");
        // SAFETY: the instance is live, and the batch is as long as its `struct_size`.
        let status = unsafe { update(instance, (&raw const grown).cast()) };
        assert_eq!(status, HOST_OK);
        assert_eq!(grown.1, u64::MAX);
    });
    let out = HostOut {
        struct_size: 4,
        reserved: 0,
        ctx: ptr::null_mut(),
        put_f64: None,
        put_bytes: None,
    };
    // SAFETY: the instance is live, and `out` is longer than its `struct_size`.
    unsafe {
        assert_eq!(
            vtable.compute.expect("compute")(instance, &raw const out),
            HOST_ERROR
        );
    }
}

#[test]
fn missing_host_functions_are_errors_or_have_no_effect() {
    let plugin = fake::Plugin::load(&PLUGIN);
    let metric = metric(&plugin, "");
    let (vtable, instance) = metric.raw();
    let out = HostOut {
        struct_size: u32::try_from(size_of::<HostOut>()).expect("small"),
        reserved: 0,
        ctx: ptr::null_mut(),
        put_f64: None,
        put_bytes: None,
    };
    let silent = HostApi {
        log_enabled: None,
        log: None,
        set_error: None,
        get_extension: None,
        ..fake::api()
    };
    let mut made: *mut c_void = ptr::null_mut();
    // SAFETY: the instances are live, and the structs are valid. Only optional functions are absent.
    unsafe {
        assert_eq!(
            vtable.compute.expect("compute")(instance, &raw const out),
            HOST_ERROR
        );
        let export = vtable.export_state.expect("export_state");
        assert_eq!(export(instance, &raw const out), HOST_ERROR);
        let create = vtable.create.expect("create");
        assert_eq!(
            create(&raw const silent, HostStr::new("{}"), &raw mut made),
            HOST_OK
        );
        vtable.destroy.expect("destroy")(made);
    }
}

#[test]
fn a_host_of_another_major_version_is_rejected() {
    let other = HostApi {
        abi_major: 2,
        ..fake::api()
    };
    // SAFETY: the tables are valid, and the SDK accepts null.
    unsafe {
        assert!(host_plugin_entry_v1(&raw const other).is_null());
        assert!(host_plugin_entry_v1(ptr::null()).is_null());
        let first = host_plugin_entry_v1(&raw const *Box::leak(Box::new(fake::api())));
        assert!(!first.is_null());
        assert_eq!(
            first,
            host_plugin_entry_v1(&raw const *Box::leak(Box::new(fake::api())))
        );
    }
}

#[test]
fn the_manifest_contains_the_macro_s_arguments() {
    let plugin = fake::Plugin::load(&PLUGIN);
    let manifest = plugin.manifest();
    assert_eq!(manifest["id"], "host-plugin-sdk");
    assert_eq!(manifest["kinds"], serde_json::json!(["metric"]));
    assert_eq!(manifest["needs"], serde_json::json!([]));
    assert_eq!(manifest["devices"], serde_json::json!(["cpu"]));
    assert_eq!(manifest["panic"], "unwind");
    assert_eq!(manifest["config"]["additionalProperties"], false);
}
