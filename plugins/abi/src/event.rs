use core::ptr;

use crate::HostStr;

/// Kinds of a [`HostEvent`]. Training begins or, with a `generation` above 0, goes on.
pub const HOST_EVENT_RUN_STARTED: u32 = 1;
/// What was recorded above `of_step` no longer counts; `generation`.
pub const HOST_EVENT_SUPERSEDED: u32 = 2;
/// Measured `values`.
pub const HOST_EVENT_METRICS: u32 = 3;
/// A complete checkpoint stands: its folder's `name` and its `bytes`.
pub const HOST_EVENT_CHECKPOINT_WRITTEN: u32 = 4;
/// A checkpoint could not be written; `text`.
pub const HOST_EVENT_CHECKPOINT_FAILED: u32 = 5;
/// The checkpoint of `of_step` on its way to the sink `name`: how far it came is the `code`, a
/// `HOST_DELIVERY_*`; the receipt or reason is the `text`.
pub const HOST_EVENT_DELIVERY: u32 = 6;
/// The plugin `name` failed in `call`; `text`.
pub const HOST_EVENT_PLUGIN_FAULT: u32 = 7;
/// The loop carries out what `name` asked for: the `code` is a `HOST_REQUEST_*`, with its `factor`;
/// the reason is the `text`.
pub const HOST_EVENT_REQUEST: u32 = 8;
/// Something odd; `text`.
pub const HOST_EVENT_WARNING: u32 = 9;
/// Training ended: why is the `code`, a `HOST_STOP_*`; the error, if it was one, is the `text`.
pub const HOST_EVENT_RUN_FINISHED: u32 = 10;

/// How far a delivery came. It waits for the sink.
pub const HOST_DELIVERY_QUEUED: u32 = 1;
/// The sink is at work.
pub const HOST_DELIVERY_SENDING: u32 = 2;
/// The sink gave a receipt.
pub const HOST_DELIVERY_DELIVERED: u32 = 3;
/// The sink gave up.
pub const HOST_DELIVERY_FAILED: u32 = 4;
/// A newer checkpoint took its place in a queue that keeps the latest alone. Since 1.1.
pub const HOST_DELIVERY_DROPPED: u32 = 5;

/// Why training ended. All steps were done.
pub const HOST_STOP_COMPLETED: u32 = 1;
/// A person interrupted it (SIGINT).
pub const HOST_STOP_INTERRUPTED: u32 = 2;
/// The system asked it to end (SIGTERM).
pub const HOST_STOP_TERMINATED: u32 = 3;
/// An error.
pub const HOST_STOP_FAILED: u32 = 4;
/// A request for it was carried out.
pub const HOST_STOP_REQUESTED: u32 = 5;

/// A named number.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostValue {
    /// Size of this struct in the host's build; also the stride of the array it lies in.
    pub struct_size: u32,
    /// Zero.
    pub flags: u32,
    /// `loss/train`, `loss/eval`, `lr`.
    pub name: HostStr,
    /// Infinity and NaN are values.
    pub value: f64,
}

/// Something that happened in a run. The comment of each `HOST_EVENT_*` says which fields its kind
/// has; all others are zero or empty.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostEvent {
    /// Size of this struct in the host's build.
    pub struct_size: u32,
    /// One of the `HOST_EVENT_*`. A plugin skips those that it does not know: a newer host has more.
    pub kind: u32,
    /// The optimizer steps finished by then.
    pub step: u64,
    /// Measured values, each name once.
    pub values: *const HostValue,
    /// Length of `values`.
    pub n_values: usize,
    /// A checkpoint's folder (`step-000100`), or the id of the plugin that the event is about.
    pub name: HostStr,
    /// The call that failed: `update`, `publish`.
    pub call: HostStr,
    /// A message or reason, for people; of a delivery that was made, the sink's receipt (JSON).
    pub text: HostStr,
    /// Size of a checkpoint's files.
    pub bytes: u64,
    /// Another step than the event's own.
    pub of_step: u64,
    /// How often the run was resumed.
    pub generation: u32,
    /// A number whose meaning the kind says.
    pub code: u32,
    /// What a request multiplies the learning rate by.
    pub factor: f64,
}

impl HostEvent {
    /// An event of this kind that says nothing more yet.
    pub const fn new(kind: u32, step: u64) -> Self {
        let nothing = HostStr {
            ptr: ptr::null(),
            len: 0,
        };
        Self {
            struct_size: size_of::<Self>() as u32,
            kind,
            step,
            values: ptr::null(),
            n_values: 0,
            name: nothing,
            call: nothing,
            text: nothing,
            bytes: 0,
            of_step: 0,
            generation: 0,
            code: 0,
            factor: 0.0,
        }
    }
}
