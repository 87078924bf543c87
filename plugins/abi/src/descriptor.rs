use core::ffi::c_void;

use crate::{HostApi, HostStr};

/// The entry function. `[main]` Returns the plugin's description, which is valid until the process ends.
/// To reject the host, it calls `set_error` and returns null. Can be called more than once.
pub type HostPluginEntry = unsafe extern "C" fn(api: *const HostApi) -> *const HostPlugin;

/// Description of a plugin library.
#[repr(C)]
#[derive(Debug)]
pub struct HostPlugin {
    /// Size of this struct in the plugin's build.
    pub struct_size: u32,
    /// The major version that the plugin was built against.
    pub abi_major: u32,
    /// The minor version that the plugin was built against.
    pub abi_minor: u32,
    /// The minimum minor version of a host that the plugin supports.
    pub min_host_minor: u32,
    /// The plugin's id, as in the manifest.
    pub id: HostStr,
    /// The plugin's version, as in the manifest.
    pub version: HostStr,
    /// Length of `items`.
    pub n_items: usize,
    /// The kinds that the plugin implements, each at most once.
    pub items: *const HostPluginItem,
}

// SAFETY: a description is constant data.
unsafe impl Sync for HostPlugin {}

/// A kind that a plugin implements.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostPluginItem {
    /// Size of this struct in the plugin's build; also the stride of `HostPlugin.items`.
    pub struct_size: u32,
    /// One of the `HOST_KIND_*`.
    pub kind: u32,
    /// A [`HostParamGroups`](crate::HostParamGroups), [`HostMetric`](crate::HostMetric),
    /// [`HostCheckpointSink`](crate::HostCheckpointSink) or
    /// [`HostObserver`](crate::HostObserver), depending on `kind`.
    pub vtable: *const c_void,
}

// SAFETY: an item is constant data.
unsafe impl Sync for HostPluginItem {}
