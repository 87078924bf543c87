use core::ptr;

use crate::HostStr;

/// The next constants are the kinds of a [`HostEvent`].
///
/// Training starts or, if `generation` is above 0, continues.
pub const HOST_EVENT_RUN_STARTED: u32 = 1;
/// Earlier events at steps above `of_step` are no longer valid. `generation`: the number of
/// resumes.
pub const HOST_EVENT_SUPERSEDED: u32 = 2;
/// Measured `values`.
pub const HOST_EVENT_METRICS: u32 = 3;
/// A checkpoint is complete. `name`: its folder. `bytes`: its size.
pub const HOST_EVENT_CHECKPOINT_WRITTEN: u32 = 4;
/// A checkpoint could not be written. `text`: the reason.
pub const HOST_EVENT_CHECKPOINT_FAILED: u32 = 5;
/// The delivery of the checkpoint of step `of_step` to the sink `name` has a new state. `code`: a
/// `HOST_DELIVERY_*`. `text`: the receipt or the reason.
pub const HOST_EVENT_DELIVERY: u32 = 6;
/// The plugin `name` failed in `call`. `text`: the reason.
pub const HOST_EVENT_PLUGIN_FAULT: u32 = 7;
/// The training loop carries out a request from `name`. `code`: a `HOST_REQUEST_*`. `factor`: the
/// factor, if the request has one. `text`: the reason.
pub const HOST_EVENT_REQUEST: u32 = 8;
/// A warning. `text`: the message.
pub const HOST_EVENT_WARNING: u32 = 9;
/// Training ended. `code`: a `HOST_STOP_*`. `text`: the error, if an error ended it.
pub const HOST_EVENT_RUN_FINISHED: u32 = 10;

/// The next constants are the states of a delivery.
///
/// The checkpoint is in the sink's queue.
pub const HOST_DELIVERY_QUEUED: u32 = 1;
/// The sink is sending the checkpoint.
pub const HOST_DELIVERY_SENDING: u32 = 2;
/// The sink returned a receipt.
pub const HOST_DELIVERY_DELIVERED: u32 = 3;
/// An attempt failed. The host can try again.
pub const HOST_DELIVERY_FAILED: u32 = 4;
/// A newer checkpoint replaced this one in a queue that keeps only the latest. Since 1.1.
pub const HOST_DELIVERY_DROPPED: u32 = 5;

/// The next constants are the reasons for the end of training.
///
/// All steps are done.
pub const HOST_STOP_COMPLETED: u32 = 1;
/// A user interrupted training (SIGINT).
pub const HOST_STOP_INTERRUPTED: u32 = 2;
/// The system ended training (SIGTERM).
pub const HOST_STOP_TERMINATED: u32 = 3;
/// An error ended training.
pub const HOST_STOP_FAILED: u32 = 4;
/// An observer or a client requested the end of training.
pub const HOST_STOP_REQUESTED: u32 = 5;

/// A metric's name and value.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostValue {
    /// Size of this struct in the host's build; also the stride of its array.
    pub struct_size: u32,
    /// Zero.
    pub flags: u32,
    /// The metric's name, such as `loss/train`, `loss/eval` or `lr`.
    pub name: HostStr,
    /// The value; can be infinite or NaN.
    pub value: f64,
}

/// Something that happened in a run. The comment of each `HOST_EVENT_*` lists the fields of its kind;
/// all others are zero or empty.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostEvent {
    /// Size of this struct in the host's build.
    pub struct_size: u32,
    /// One of the `HOST_EVENT_*`. A plugin must skip unknown kinds, which a newer host can add.
    pub kind: u32,
    /// Number of optimizer steps finished at the time of the event.
    pub step: u64,
    /// Measured values. Each name appears once.
    pub values: *const HostValue,
    /// Length of `values`.
    pub n_values: usize,
    /// A checkpoint's folder (`step-000100`), a plugin's id, or the sender of a request.
    pub name: HostStr,
    /// The call that failed, such as `update` or `publish`.
    pub call: HostStr,
    /// A message or reason for users; for a completed delivery, the sink's receipt (JSON).
    pub text: HostStr,
    /// Total size of a checkpoint's files.
    pub bytes: u64,
    /// A step other than that of the event; see the kind.
    pub of_step: u64,
    /// Number of times the run was resumed.
    pub generation: u32,
    /// A constant; see the kind.
    pub code: u32,
    /// The factor by which a request multiplies the learning rate.
    pub factor: f64,
}

impl HostEvent {
    /// Creates an event of this kind. All other fields are zero or empty.
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
