use std::ffi::c_void;
use std::ptr;

use host_plugin_abi::{
    HOST_ABI_MAJOR, HOST_KIND_CHECKPOINT_SINK, HOST_KIND_METRIC, HOST_KIND_OBSERVER,
    HOST_KIND_PARAM_GROUPS, HostCheckpointSink, HostCreate, HostDestroy, HostMetric, HostObserver,
    HostParamGroups, HostPlugin, HostPluginItem, HostStr,
};

use super::host::Host;
use super::{CheckpointSink, Failure, Metric, Observer, ParamGroups};

/// A plugin that a fake host has loaded.
///
/// ```standalone_crate
/// # use host_plugin_sdk::*;
/// # struct Sink;
/// # impl CheckpointSink for Sink {
/// #     type Config = NoConfig;
/// #     fn create(_: NoConfig, _: Host) -> Result<Self> { Ok(Self) }
/// #     fn publish(&mut self, _: &Checkpoint<'_>, _: &Cancel) -> Result<serde_json::Value> { Ok(().into()) }
/// # }
/// # struct Look;
/// # impl Observer for Look {
/// #     type Config = NoConfig;
/// #     fn create(_: NoConfig, _: Host) -> Result<Self> { Ok(Self) }
/// #     fn observe(&mut self, _: u64, _: &Event<'_>, _: &mut Requests<'_>) -> Result<()> { Ok(()) }
/// # }
/// # struct All(i64);
/// # impl Metric for All {
/// #     type Config = NoConfig;
/// #     fn create(_: NoConfig, host: Host) -> Result<Self> { host.info("ready"); Ok(Self(0)) }
/// #     fn reset(&mut self) {}
/// #     fn update(&mut self, _: &Batch<'_>) -> Result<()> { Ok(()) }
/// #     fn export_state(&self) -> Vec<u8> { Vec::new() }
/// #     fn merge_state(&mut self, _: &[u8]) -> Result<()> { Ok(()) }
/// #     fn compute(&self, _: &mut Values<'_>) -> Result<()> { Ok(()) }
/// # }
/// # struct One;
/// # impl ParamGroups for One {
/// #     type Config = NoConfig;
/// #     fn create(_: NoConfig, _: Host) -> Result<Self> { Ok(Self) }
/// #     fn group(&mut self, _: &GroupsRequest<'_>, _: &mut Groups<'_>) -> Result<()> { Ok(()) }
/// # }
/// # export_plugin! {
/// #     description: "Everything",
/// #     param_groups: One,
/// #     metric: All,
/// #     checkpoint_sink: Sink,
/// #     observer: Look,
/// # }
/// use host_plugin_sdk::fake;
///
/// let plugin = fake::Plugin::load(&PLUGIN);
/// assert_eq!(plugin.manifest()["kinds"][1], "metric");
/// let metric = plugin.metric("{}")?;
/// assert_eq!(plugin.log(), ["info: ready"]);
/// // A plugin of several kinds creates one instance for each kind.
/// let (groups, sink) = (plugin.param_groups("{}")?, plugin.checkpoint_sink("{}")?);
/// let refused = plugin.observer(r#"{"no": "setting"}"#).unwrap_err();
/// assert!(refused.message.contains("unknown field `no`"));
/// # Ok::<_, fake::Failure>(())
/// ```
#[derive(Debug)]
pub struct Plugin {
    host: &'static Host,
    items: &'static [HostPluginItem],
    manifest: serde_json::Value,
}

impl Plugin {
    /// Calls the entry function and reads the descriptor and the manifest, as the host does.
    ///
    /// # Panics
    /// Panics if the entry function, the descriptor or the manifest breaks the ABI, or if they contradict
    /// each other.
    pub fn load(plugin: &crate::Plugin) -> Self {
        let host = Host::new();
        let manifest: serde_json::Value =
            serde_json::from_slice(plugin.manifest).expect("the manifest is JSON");
        // SAFETY: the table is leaked, and the entry function is from `export_plugin!`.
        let descriptor = unsafe { (plugin.entry)(host.api()).as_ref() };
        let Some(descriptor) = descriptor else {
            panic!("the plugin rejected the host: {:?}", host.ended(1));
        };
        // SAFETY: the descriptor's texts and items are constants of the plugin.
        let (id, version, items): (_, _, &'static [HostPluginItem]) = unsafe {
            (
                descriptor.id.as_str().expect("the id is UTF-8"),
                descriptor.version.as_str().expect("the version is UTF-8"),
                std::slice::from_raw_parts(descriptor.items, descriptor.n_items),
            )
        };
        assert_eq!(descriptor.struct_size as usize, size_of::<HostPlugin>());
        assert_eq!(descriptor.abi_major, HOST_ABI_MAJOR);
        assert_eq!(manifest["id"], id);
        assert_eq!(manifest["version"], version);
        let kinds: Vec<&str> = items.iter().map(|item| kind_name(item.kind)).collect();
        assert_eq!(manifest["kinds"], serde_json::json!(kinds));
        assert_eq!(
            manifest["config"]["type"], "object",
            "the schema describes an object"
        );
        Self {
            host,
            items,
            manifest,
        }
    }

    /// Returns the manifest, which the host reads from the library's file.
    pub fn manifest(&self) -> &serde_json::Value {
        &self.manifest
    }

    /// Returns the lines that the plugin logged, as `LEVEL: MESSAGE`.
    pub fn log(&self) -> Vec<String> {
        self.host.log()
    }

    /// Creates a metric with this configuration (JSON, not checked against the schema).
    pub fn metric(&self, config: &str) -> Result<Metric, Failure> {
        let vtable: &HostMetric = self.vtable(HOST_KIND_METRIC);
        let instance = self.create(vtable.create, vtable.destroy, config)?;
        Ok(Metric::new(vtable, instance))
    }

    /// Creates a `ParamGroups` instance with this configuration (JSON, not checked against the schema).
    pub fn param_groups(&self, config: &str) -> Result<ParamGroups, Failure> {
        let vtable: &HostParamGroups = self.vtable(HOST_KIND_PARAM_GROUPS);
        let instance = self.create(vtable.create, vtable.destroy, config)?;
        Ok(ParamGroups::new(vtable, instance))
    }

    /// Creates a sink with this configuration (JSON, not checked against the schema).
    pub fn checkpoint_sink(&self, config: &str) -> Result<CheckpointSink, Failure> {
        let vtable: &HostCheckpointSink = self.vtable(HOST_KIND_CHECKPOINT_SINK);
        let instance = self.create(vtable.create, vtable.destroy, config)?;
        Ok(CheckpointSink::new(vtable, instance))
    }

    /// Creates an observer with this configuration (JSON, not checked against the schema).
    pub fn observer(&self, config: &str) -> Result<Observer, Failure> {
        let vtable: &HostObserver = self.vtable(HOST_KIND_OBSERVER);
        let instance = self.create(vtable.create, vtable.destroy, config)?;
        Ok(Observer::new(vtable, instance))
    }

    fn vtable<V>(&self, kind: u32) -> &'static V {
        let item = self.items.iter().find(|item| item.kind == kind);
        let item = item.unwrap_or_else(|| panic!("the plugin has no {}", kind_name(kind)));
        let vtable = item.vtable.cast::<V>();
        // SAFETY: the vtable is a constant of the SDK and has the type for its kind. Every vtable starts with
        // its size.
        unsafe {
            assert_eq!(vtable.cast::<u32>().read() as usize, size_of::<V>());
            &*vtable
        }
    }

    fn create(
        &self,
        create: Option<HostCreate>,
        destroy: Option<HostDestroy>,
        config: &str,
    ) -> Result<Instance, Failure> {
        let mut pointer = ptr::null_mut();
        let create = create.expect("create");
        // SAFETY: the table is leaked. The text outlives the call, and so does the variable for the
        // instance's pointer.
        let status = unsafe { create(self.host.api(), HostStr::new(config), &raw mut pointer) };
        self.host.ended(status)?;
        assert!(!pointer.is_null(), "create returned no instance");
        Ok(Instance {
            host: self.host,
            pointer,
            destroy: destroy.expect("destroy"),
        })
    }
}

/// An instance of the plugin. It is destroyed on drop.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) host: &'static Host,
    pub(crate) pointer: *mut c_void,
    destroy: HostDestroy,
}

// SAFETY: the ABI allows an instance to move between threads.
unsafe impl Send for Instance {}

impl Drop for Instance {
    fn drop(&mut self) {
        // SAFETY: `create` created the instance, and it is not used again.
        unsafe { (self.destroy)(self.pointer) };
    }
}

fn kind_name(kind: u32) -> &'static str {
    match kind {
        HOST_KIND_PARAM_GROUPS => "param_groups",
        HOST_KIND_METRIC => "metric",
        HOST_KIND_CHECKPOINT_SINK => "checkpoint_sink",
        HOST_KIND_OBSERVER => "observer",
        _ => "unknown",
    }
}
