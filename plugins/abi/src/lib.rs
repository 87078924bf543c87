//! The C ABI between the host and its plugins, version 1.
//!
//! A plugin is a shared library that exports one function, [`ENTRY_SYMBOL`], and contains a JSON
//! manifest in the ELF section [`MANIFEST_SECTION`]. The host reads the manifest before it runs any
//! code of the plugin. The C header `host_plugin.h` is generated from this crate.
//!
//! Rules for all types:
//!
//! - **Versions.** The major version is part of the entry symbol's name. A minor version only
//!   appends fields. Every struct except [`HostStr`] and the DLPack structs starts with
//!   `struct_size`. Read a field `f` only if `offsetof(f) + sizeof(f) <= struct_size`.
//! - **Ownership.** Each side frees only its own allocations. Arguments are borrowed until the call
//!   returns, unless a comment says otherwise. Results are passed only to the host's callbacks,
//!   which copy them.
//! - **Strings** are UTF-8, with pointer and length, and without a terminating zero.
//! - **Threads.** `[main]`: the thread that initialized the host. `[inst]`: one thread at a time per
//!   instance, possibly another thread for each call. `[any]`: any thread at any time. `[worker]`: a
//!   thread of the instance, which may block.
//! - **Faults.** No panic, exception or `longjmp` may leave a plugin. After [`HOST_PANIC`] the host
//!   only destroys the instance.
//! - A plugin must not link libtorch, and must not change signals, the environment, the working
//!   directory or panic hooks, or call `exit`.

#![no_std]
#![expect(
    unsafe_code,
    reason = "the host and its plugins exchange pointers through the ABI"
)]

mod checkpoint_sink;
mod descriptor;
mod event;
mod host_api;
mod metric;
mod observer;
mod out;
mod param_groups;
mod string;
mod tensor;

pub use checkpoint_sink::{HostCheckpoint, HostCheckpointSink, HostFetch, HostPreflight};
pub use descriptor::{HostPlugin, HostPluginEntry, HostPluginItem};
pub use event::{
    HOST_DELIVERY_DELIVERED, HOST_DELIVERY_DROPPED, HOST_DELIVERY_FAILED, HOST_DELIVERY_QUEUED,
    HOST_DELIVERY_SENDING, HOST_EVENT_CHECKPOINT_FAILED, HOST_EVENT_CHECKPOINT_WRITTEN,
    HOST_EVENT_DELIVERY, HOST_EVENT_METRICS, HOST_EVENT_PLUGIN_FAULT, HOST_EVENT_REQUEST,
    HOST_EVENT_RUN_FINISHED, HOST_EVENT_RUN_STARTED, HOST_EVENT_SUPERSEDED, HOST_EVENT_WARNING,
    HOST_STOP_COMPLETED, HOST_STOP_FAILED, HOST_STOP_INTERRUPTED, HOST_STOP_REQUESTED,
    HOST_STOP_TERMINATED, HostEvent, HostValue,
};
pub use host_api::{HostApi, HostCreate, HostDestroy};
pub use metric::{HostBatch, HostMetric};
pub use observer::{
    HOST_REQUEST_CHECKPOINT, HOST_REQUEST_CONTINUE, HOST_REQUEST_EVALUATE, HOST_REQUEST_PAUSE,
    HOST_REQUEST_ROLL_BACK, HOST_REQUEST_SCALE_LEARNING_RATE, HOST_REQUEST_SET_LEARNING_RATE,
    HOST_REQUEST_SKIP_STEP, HOST_REQUEST_STOP, HostObserver, HostRequestsOut,
};
pub use out::HostOut;
pub use param_groups::{HostGroupsOut, HostGroupsRequest, HostParam, HostParamGroups};
pub use string::HostStr;
pub use tensor::{DLDataType, DLDevice, DLTensor, HostTensor};

/// Major version: part of the entry symbol's name. Different major versions are incompatible.
pub const HOST_ABI_MAJOR: u32 = 1;
/// Minor version: increases when fields are appended.
pub const HOST_ABI_MINOR: u32 = 2;

/// The only symbol that a plugin exports. Its type is [`HostPluginEntry`].
pub const ENTRY_SYMBOL: &str = "host_plugin_entry_v1";
/// The ELF section that holds the plugin's manifest: one JSON object in UTF-8.
///
/// ```json
/// { "abi": [1, 0], "id": "perplexity", "version": "0.1.0", "description": "...",
///   "kinds": ["metric"], "needs": ["loss_sum"], "devices": ["cpu"], "config": { JSON Schema } }
/// ```
///
/// `kinds`: `param_groups`, `metric`, `checkpoint_sink`, `observer`. `needs` and `devices` apply to
/// metrics; `devices` can contain `cpu` and `cuda`, the default is `["cpu"]`. `events` applies to
/// observers: `run_started`, `superseded`, `metrics`, `checkpoint_written`, `checkpoint_failed`,
/// `delivery`, `plugin_fault`, `request`, `warning`, `run_finished`. The observer receives only the
/// listed kinds of events; the default is all kinds. Without `config` the plugin has no settings.
/// The optional `min_host_minor` is the same as in [`HostPlugin`]. The host ignores unknown keys
/// and trailing zero bytes, such as the end of a C string.
pub const MANIFEST_SECTION: &str = ".host_manifest";

/// The result of a call. Unknown values count as [`HOST_ERROR`].
pub type HostStatus = i32;
/// The call succeeded.
pub const HOST_OK: HostStatus = 0;
/// The call failed. The reason is the last message passed to `set_error` on this thread.
pub const HOST_ERROR: HostStatus = 1;
/// The plugin panicked. The instance is poisoned and can only be destroyed.
pub const HOST_PANIC: HostStatus = 2;
/// The call is not supported, and a retry would not help. Examples are an unknown dtype and a
/// missing field.
pub const HOST_UNSUPPORTED: HostStatus = 3;
/// The call ended early because `cancel` was called.
pub const HOST_CANCELLED: HostStatus = 4;
/// The call failed for a temporary reason, such as the network or a lock. The host can try again.
pub const HOST_TEMPORARY: HostStatus = 5;

/// The next constants are the kinds of a [`HostPluginItem`].
///
/// See [`HostParamGroups`].
pub const HOST_KIND_PARAM_GROUPS: u32 = 1;
/// See [`HostMetric`].
pub const HOST_KIND_METRIC: u32 = 2;
/// See [`HostCheckpointSink`].
pub const HOST_KIND_CHECKPOINT_SINK: u32 = 3;
/// See [`HostObserver`].
pub const HOST_KIND_OBSERVER: u32 = 4;

/// The next constants are the levels of [`HostApi::log`].
///
/// A failure.
pub const HOST_LOG_ERROR: i32 = 1;
/// A problem. The plugin continues.
pub const HOST_LOG_WARN: i32 = 2;
/// Information for users.
pub const HOST_LOG_INFO: i32 = 3;
/// Information for plugin authors.
pub const HOST_LOG_DEBUG: i32 = 4;

/// Flag of [`HostFetch`]: fetch everything that a resume needs, not only the model, its configuration
/// and its tokenizer. Since 1.2.
pub const HOST_FETCH_FOR_RESUME: u32 = 1;

/// Flag of [`HostTensor`]: the plugin must not write through `dl.data`.
pub const HOST_TENSOR_READ_ONLY: u32 = 1;
