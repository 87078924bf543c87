use core::ffi::c_void;

use crate::{HostCreate, HostDestroy, HostEvent, HostOut, HostStatus, HostStr};

/// The next constants are the requests to the training loop.
///
/// Ends training, with a checkpoint.
pub const HOST_REQUEST_STOP: u32 = 1;
/// Writes a checkpoint, regardless of the configured interval.
pub const HOST_REQUEST_CHECKPOINT: u32 = 2;
/// Does not apply the update of the next step. The step still counts and uses its batches.
pub const HOST_REQUEST_SKIP_STEP: u32 = 3;
/// Multiplies the learning rate by the factor from now on, in addition to earlier factors.
pub const HOST_REQUEST_SCALE_LEARNING_RATE: u32 = 4;
/// Restores the weights and the optimizer from the last complete checkpoint. Batches that were
/// already seen are not repeated: training continues with the next batch.
pub const HOST_REQUEST_ROLL_BACK: u32 = 5;
/// Evaluates the model. Only clients can send this request and the following ones. Observers
/// receive the events of these requests, but `ask` returns `HOST_UNSUPPORTED` for the requests.
pub const HOST_REQUEST_EVALUATE: u32 = 6;
/// Pauses the loop at the step boundary.
pub const HOST_REQUEST_PAUSE: u32 = 7;
/// Ends a pause.
pub const HOST_REQUEST_CONTINUE: u32 = 8;
/// From now on, the learning rate is the schedule's rate times the factor, regardless of earlier
/// factors. The factor is above 0 and can be above 1.
pub const HOST_REQUEST_SET_LEARNING_RATE: u32 = 9;

/// Receives requests. Valid until the call returns.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostRequestsOut {
    /// Size of this struct in the host's build.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// The first argument to pass to each function below.
    pub ctx: *mut c_void,
    /// `[main]` Sends a request (a `HOST_REQUEST_*`) to the loop, which carries it out at the next step
    /// boundary. `factor` is in (0, 1] for `HOST_REQUEST_SCALE_LEARNING_RATE` and ignored otherwise.
    /// `reason` is for users and is recorded; it must not be empty. The host copies it. Returns
    /// `HOST_UNSUPPORTED` if the host does not support the request; the plugin can then send another.
    /// Returns `HOST_ERROR` for an invalid factor or reason.
    pub ask: Option<
        unsafe extern "C" fn(
            ctx: *mut c_void,
            request: u32,
            factor: f64,
            reason: HostStr,
        ) -> HostStatus,
    >,
}

/// Receives the events of a run in order and can send requests.
///
/// Only observers have state in the checkpoint. The other kinds do not need it: metrics are reset
/// before each evaluation, and no checkpoint is written during one; parameter groups are computed only
/// once. Sinks keep their state in `state_dir`, so that a checkpoint has the same bytes at every
/// destination.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostObserver {
    /// Size of this struct in the plugin's build.
    pub struct_size: u32,
    /// Zero.
    pub flags: u32,
    /// See [`HostCreate`].
    pub create: Option<HostCreate>,
    /// See [`HostDestroy`].
    pub destroy: Option<HostDestroy>,
    /// `[main]` Receives an event. The manifest's `events` lists the kinds; the default is all. The event
    /// is borrowed until this returns. Training waits for this call.
    pub observe: Option<
        unsafe extern "C" fn(
            instance: *mut c_void,
            event: *const HostEvent,
            out: *const HostRequestsOut,
        ) -> HostStatus,
    >,
    /// `[main]` Passes the state as bytes to `put_bytes`, which copies them, for the checkpoint.
    /// The bytes must contain the version of their format, and equal states must have equal bytes.
    /// If the call fails, the checkpoint has no state of this plugin. If the observer has no state,
    /// this and `import_state` must both be null.
    pub export_state:
        Option<unsafe extern "C" fn(instance: *mut c_void, out: *const HostOut) -> HostStatus>,
    /// `[main]` Replaces the state with an exported state, possibly from another version of the
    /// plugin. The bytes are borrowed until this returns. If the bytes cannot be read, returns an
    /// error and leaves the state unchanged; the resume then fails.
    pub import_state:
        Option<unsafe extern "C" fn(instance: *mut c_void, state: HostStr) -> HostStatus>,
}
