use std::fmt;

use host_plugin_abi::{
    HOST_ABI_MAJOR, HOST_ABI_MINOR, HostApi, HostPlugin, HostPluginEntry, HostPluginItem, HostStr,
};

use crate::Host;

/// The plugin that [`export_plugin!`](crate::export_plugin) exports, for tests without the host. See
/// [`fake::Plugin::load`](crate::fake::Plugin::load).
///
/// ```standalone_crate
/// # use host_plugin_sdk::{Event, Host, NoConfig, Observer, Requests, Result, export_plugin};
/// # struct Nothing;
/// # impl Observer for Nothing {
/// #     type Config = NoConfig;
/// #     fn create(_: NoConfig, _: Host) -> Result<Self> { Ok(Self) }
/// #     fn observe(&mut self, _: u64, _: &Event<'_>, _: &mut Requests<'_>) -> Result<()> { Ok(()) }
/// # }
/// export_plugin! { description: "Does nothing", observer: Nothing }
///
/// let plugin: host_plugin_sdk::Plugin = PLUGIN; // defined by the macro
/// let loaded = host_plugin_sdk::fake::Plugin::load(&plugin);
/// assert_eq!(loaded.manifest()["description"], "Does nothing");
/// ```
#[derive(Clone, Copy)]
pub struct Plugin {
    #[doc(hidden)]
    pub entry: HostPluginEntry,
    #[doc(hidden)]
    pub manifest: &'static [u8],
}

impl fmt::Debug for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.manifest))
    }
}

/// The plugin's package.
#[doc(hidden)]
pub trait Package: 'static {
    const ID: &'static str;
}

#[doc(hidden)]
pub const fn descriptor(
    id: &'static str,
    version: &'static str,
    items: &'static [HostPluginItem],
) -> HostPlugin {
    HostPlugin {
        struct_size: size_of::<HostPlugin>() as u32,
        abi_major: HOST_ABI_MAJOR,
        abi_minor: HOST_ABI_MINOR,
        // The SDK does not need any host function that was added after version 1.0 of the ABI.
        min_host_minor: 0,
        id: HostStr::new(id),
        version: HostStr::new(version),
        n_items: items.len(),
        items: items.as_ptr(),
    }
}

#[doc(hidden)]
pub const fn item<V>(kind: u32, vtable: &'static V) -> HostPluginItem {
    HostPluginItem {
        struct_size: size_of::<HostPluginItem>() as u32,
        kind,
        vtable: (&raw const *vtable).cast(),
    }
}

/// Implements the entry function.
///
/// # Safety
/// `api` must be valid according to the ABI.
#[doc(hidden)]
pub unsafe fn enter<P: Package>(
    api: *const HostApi,
    plugin: &'static HostPlugin,
) -> *const HostPlugin {
    // SAFETY: guaranteed by the caller.
    let Ok(host) = (unsafe { Host::new(api, P::ID) }) else {
        return std::ptr::null();
    };
    if host.abi_major() != HOST_ABI_MAJOR {
        host.set_error(&format!(
            "plugin {} needs ABI {HOST_ABI_MAJOR}, but this host has ABI {}",
            P::ID,
            host.abi_major()
        ));
        return std::ptr::null();
    }
    plugin
}

/// Turns the crate into a plugin. Use it once, at the crate's root. The crate needs
/// `crate-type = ["cdylib", "lib"]`.
///
/// The plugin's id and version are the package's name and version. The keys must be in this order. Only
/// `description` and at least one kind are required:
///
/// ```text
/// export_plugin! {
///     description: "What it does, in a line",
///     param_groups: MyGroups,             // implements ParamGroups
///     metric: MyMetric,                   // implements Metric
///     checkpoint_sink: MySink,            // implements CheckpointSink
///     observer: MyObserver,               // implements Observer
///     needs: ["loss_sum", "token_count"], // the metric's inputs
///     devices: ["cpu"],                   // where the metric can read them; this is the default
///     events: ["metrics"],                // the observer's events; all by default
///     config: "config.schema.json",       // JSON Schema of the settings, next to Cargo.toml
/// }
/// ```
///
/// Without `config` the plugin has no settings, and its `Config` is [`NoConfig`](crate::NoConfig).
/// Each trait's documentation contains a complete plugin. One crate can implement several kinds:
///
/// ```standalone_crate
/// # use host_plugin_sdk::*;
/// # struct Watch;
/// # impl Observer for Watch {
/// #     type Config = NoConfig;
/// #     fn create(_: NoConfig, _: Host) -> Result<Self> { Ok(Self) }
/// #     fn observe(&mut self, _: u64, _: &Event<'_>, _: &mut Requests<'_>) -> Result<()> { Ok(()) }
/// # }
/// # struct Count(i64);
/// # impl Metric for Count {
/// #     type Config = NoConfig;
/// #     fn create(_: NoConfig, _: Host) -> Result<Self> { Ok(Self(0)) }
/// #     fn reset(&mut self) {}
/// #     fn update(&mut self, _: &Batch<'_>) -> Result<()> { Ok(()) }
/// #     fn export_state(&self) -> Vec<u8> { Vec::new() }
/// #     fn merge_state(&mut self, _: &[u8]) -> Result<()> { Ok(()) }
/// #     fn compute(&self, _: &mut Values<'_>) -> Result<()> { Ok(()) }
/// # }
/// export_plugin! {
///     description: "Counts tokens and observes",
///     metric: Count,
///     observer: Watch,
///     needs: ["token_count"],
///     events: ["metrics"],
/// }
///
/// let plugin = fake::Plugin::load(&PLUGIN);
/// assert_eq!(plugin.manifest()["kinds"], serde_json::json!(["metric", "observer"]));
/// ```
///
/// The macro also defines `PLUGIN`, a [`Plugin`] for the crate's tests. The macro rejects a build with
/// `panic = "abort"`, because a panic would then end the training process.
#[macro_export]
macro_rules! export_plugin {
    (
        description: $description:literal
        $(, param_groups: $groups:ty)?
        $(, metric: $metric:ty)?
        $(, checkpoint_sink: $sink:ty)?
        $(, observer: $observer:ty)?
        $(, needs: [$($need:literal),* $(,)?])?
        $(, devices: [$($device:literal),* $(,)?])?
        $(, events: [$($event:literal),* $(,)?])?
        $(, config: $config:literal)?
        $(,)?
    ) => {
        #[cfg(not(panic = "unwind"))]
        ::core::compile_error!(
            "a plugin must be built with panic = \"unwind\": otherwise a panic would end the host"
        );

        #[doc(hidden)]
        pub enum HostPluginPackage {}

        impl $crate::__private::Package for HostPluginPackage {
            const ID: &'static str = ::core::env!("CARGO_PKG_NAME");
        }

        /// The plugin, for its tests.
        pub const PLUGIN: $crate::Plugin = {
            const MANIFEST: $crate::__private::Manifest = $crate::__private::Manifest {
                id: ::core::env!("CARGO_PKG_NAME"),
                version: ::core::env!("CARGO_PKG_VERSION"),
                description: $description,
                kinds: &[
                    $($crate::export_plugin!(@second $groups, "param_groups"),)?
                    $($crate::export_plugin!(@second $metric, "metric"),)?
                    $($crate::export_plugin!(@second $sink, "checkpoint_sink"),)?
                    $($crate::export_plugin!(@second $observer, "observer"),)?
                ],
                needs: &[$($($need),*)?],
                devices: $crate::export_plugin!(@or [$($($device),*)?] ["cpu"]),
                events: $crate::export_plugin!(@some $([$($event),*])?),
                config: $crate::export_plugin!(@schema $($config)?),
            };

            #[used]
            #[unsafe(link_section = ".host_manifest")]
            static BYTES: [u8; MANIFEST.len()] = MANIFEST.bytes();

            $crate::Plugin {
                entry: host_plugin_entry_v1,
                manifest: &BYTES,
            }
        };

        /// The plugin's only exported symbol. `[main]`
        ///
        /// # Safety
        /// `api` must be the host's table, valid according to the ABI.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn host_plugin_entry_v1(
            api: *const $crate::abi::HostApi,
        ) -> *const $crate::abi::HostPlugin {
            static ITEMS: &[$crate::abi::HostPluginItem] = &[
                $({
                    static VTABLE: $crate::abi::HostParamGroups =
                        $crate::__private::param_groups::<$groups, HostPluginPackage>();
                    $crate::__private::item($crate::abi::HOST_KIND_PARAM_GROUPS, &VTABLE)
                },)?
                $({
                    static VTABLE: $crate::abi::HostMetric =
                        $crate::__private::metric::<$metric, HostPluginPackage>();
                    $crate::__private::item($crate::abi::HOST_KIND_METRIC, &VTABLE)
                },)?
                $({
                    static VTABLE: $crate::abi::HostCheckpointSink =
                        $crate::__private::checkpoint_sink::<$sink, HostPluginPackage>();
                    $crate::__private::item($crate::abi::HOST_KIND_CHECKPOINT_SINK, &VTABLE)
                },)?
                $({
                    static VTABLE: $crate::abi::HostObserver =
                        $crate::__private::observer::<$observer, HostPluginPackage>();
                    $crate::__private::item($crate::abi::HOST_KIND_OBSERVER, &VTABLE)
                },)?
            ];
            static DESCRIPTOR: $crate::abi::HostPlugin = $crate::__private::descriptor(
                ::core::env!("CARGO_PKG_NAME"),
                ::core::env!("CARGO_PKG_VERSION"),
                ITEMS,
            );
            // SAFETY: the host passes its table, which is valid according to the ABI.
            unsafe { $crate::__private::enter::<HostPluginPackage>(api, &DESCRIPTOR) }
        }
    };
    (@second $first:ty, $second:literal) => { $second };
    (@or [] [$($default:literal),*]) => { &[$($default),*] };
    (@or [$($given:literal),+] [$($default:literal),*]) => { &[$($given),+] };
    (@some) => { ::core::option::Option::None };
    (@some [$($given:literal),*]) => { ::core::option::Option::Some(&[$($given),*]) };
    (@schema) => { $crate::__private::NO_CONFIG };
    (@schema $path:literal) => {
        ::core::include_str!(::core::concat!(::core::env!("CARGO_MANIFEST_DIR"), "/", $path))
    };
}
