use core::ffi::c_void;

use crate::{HostApi, HostStr};

/// The entry function. `[main]` Returns a description that lives until the process ends, or null
/// to refuse this host after saying why by `set_error`. It may be called more than once.
pub type HostPluginEntry = unsafe extern "C" fn(api: *const HostApi) -> *const HostPlugin;

/// What a plugin library is.
#[repr(C)]
#[derive(Debug)]
pub struct HostPlugin {
    /// Size of this struct in the plugin's build.
    pub struct_size: u32,
    /// The major version it was built against.
    pub abi_major: u32,
    /// The minor version it was built against.
    pub abi_minor: u32,
    /// The smallest minor version of a host that it can work with.
    pub min_host_minor: u32,
    /// As in the manifest.
    pub id: HostStr,
    /// As in the manifest.
    pub version: HostStr,
    /// Length of `items`.
    pub n_items: usize,
    /// The kinds it implements, each at most once.
    pub items: *const HostPluginItem,
}

// SAFETY: a description is constant data.
unsafe impl Sync for HostPlugin {}

/// One kind that a plugin implements.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostPluginItem {
    /// Size of this struct in the plugin's build; also the stride of the array it lies in.
    pub struct_size: u32,
    /// One of the `HOST_KIND_*`.
    pub kind: u32,
    /// A [`HostParamGroups`](crate::HostParamGroups), [`HostMetric`](crate::HostMetric),
    /// [`HostCheckpointSink`](crate::HostCheckpointSink) or
    /// [`HostObserver`](crate::HostObserver), as `kind` says.
    pub vtable: *const c_void,
}

// SAFETY: an item is constant data.
unsafe impl Sync for HostPluginItem {}
