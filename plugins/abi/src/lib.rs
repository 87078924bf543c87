//! The C ABI between the host and its plugins, version 1.
//!
//! A plugin is a shared library that exports one function, [`ENTRY_SYMBOL`], and embeds a JSON
//! manifest in the ELF section [`MANIFEST_SECTION`], which the host reads before it runs any code
//! of the plugin. The C header `host_plugin.h` beside this crate is generated from it.
//!
//! Rules that hold for every type here:
//!
//! - **Growth.** The major version is in the entry symbol's name. A minor version only appends
//!   fields. Every struct but [`HostStr`] and the DLPack ones starts with `struct_size`; read the
//!   field `f` only if `offsetof(f) + sizeof(f) <= struct_size`.
//! - **Ownership.** Who allocates frees, and nothing is freed across the boundary. What a call
//!   receives is borrowed until it returns, unless its comment says otherwise. Output goes only
//!   through the host's callbacks, which copy.
//! - **Strings** are UTF-8, pointer and length, without a terminating zero.
//! - **Threads.** `[main]` the thread that set the host up. `[inst]` one thread at a time for an
//!   instance, which may migrate between calls. `[any]` any thread at any time. `[worker]` a
//!   thread of the instance's own on which it may block.
//! - **Faults.** No panic, exception or `longjmp` leaves a plugin. After [`HOST_PANIC`] the host
//!   only destroys the instance.
//! - A plugin does not link libtorch, and leaves alone signals, the environment, the working
//!   directory, panic hooks and `exit`.

#![no_std]
#![expect(
    unsafe_code,
    reason = "the ABI is where the host and its plugins meet by pointers"
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

/// Major version: part of the entry symbol's name; another major is another ABI.
pub const HOST_ABI_MAJOR: u32 = 1;
/// Minor version: counts the appended fields.
pub const HOST_ABI_MINOR: u32 = 2;

/// The one symbol a plugin exports; its type is [`HostPluginEntry`].
pub const ENTRY_SYMBOL: &str = "host_plugin_entry_v1";
/// The ELF section that holds the plugin's manifest: one JSON object in UTF-8.
///
/// ```json
/// { "abi": [1, 0], "id": "perplexity", "version": "0.1.0", "description": "...",
///   "kinds": ["metric"], "needs": ["loss_sum"], "devices": ["cpu"], "config": { JSON Schema } }
/// ```
///
/// `kinds` has `param_groups`, `metric`, `checkpoint_sink` and `observer`. `needs` and `devices` are a
/// metric's; `devices` has `cpu` and `cuda`, and is `["cpu"]` where it is absent. `events` are an
/// observer's: `run_started`, `superseded`, `metrics`, `checkpoint_written`, `checkpoint_failed`,
/// `delivery`, `plugin_fault`, `request`, `warning`, `run_finished`; it sees those alone, and all where
/// it is absent. Without `config` the plugin takes no settings. An optional
/// `min_host_minor` is the descriptor's. Keys that the host does not know are ignored, and so are
/// zero bytes behind the object, which C puts at the end of a string.
pub const MANIFEST_SECTION: &str = ".host_manifest";

/// What a call ended with. An unknown value counts as [`HOST_ERROR`].
pub type HostStatus = i32;
/// The call did what it says.
pub const HOST_OK: HostStatus = 0;
/// It failed; the reason is what `set_error` was last told on this thread.
pub const HOST_ERROR: HostStatus = 1;
/// The plugin panicked; the instance is poisoned and may only be destroyed.
pub const HOST_PANIC: HostStatus = 2;
/// The plugin cannot do this, and asking again would not help: an unknown dtype, a missing field.
pub const HOST_UNSUPPORTED: HostStatus = 3;
/// The call ended early because `cancel` was called.
pub const HOST_CANCELLED: HostStatus = 4;
/// It failed for a reason that may pass (the network, a lock): the host may try again.
pub const HOST_TEMPORARY: HostStatus = 5;

/// Kinds of a [`HostPluginItem`]. See [`HostParamGroups`].
pub const HOST_KIND_PARAM_GROUPS: u32 = 1;
/// See [`HostMetric`].
pub const HOST_KIND_METRIC: u32 = 2;
/// See [`HostCheckpointSink`].
pub const HOST_KIND_CHECKPOINT_SINK: u32 = 3;
/// See [`HostObserver`].
pub const HOST_KIND_OBSERVER: u32 = 4;

/// Levels of [`HostApi::log`].
pub const HOST_LOG_ERROR: i32 = 1;
/// Something is wrong, and the plugin goes on.
pub const HOST_LOG_WARN: i32 = 2;
/// What a user may like to know.
pub const HOST_LOG_INFO: i32 = 3;
/// What an author may like to know.
pub const HOST_LOG_DEBUG: i32 = 4;

/// Flag of [`HostFetch`]: all that a resume needs is wanted, not the model, its configuration and its
/// tokenizer alone. Since 1.2.
pub const HOST_FETCH_FOR_RESUME: u32 = 1;

/// Flag of [`HostTensor`]: the plugin must not write through `dl.data`.
pub const HOST_TENSOR_READ_ONLY: u32 = 1;
