use core::ffi::c_void;

use crate::{HostCreate, HostDestroy, HostEvent, HostOut, HostStatus, HostStr};

/// What may be asked of the loop. Training ends, with a checkpoint.
pub const HOST_REQUEST_STOP: u32 = 1;
/// A checkpoint is written, whatever the period says.
pub const HOST_REQUEST_CHECKPOINT: u32 = 2;
/// The next step takes its batches and counts, but its update is not applied.
pub const HOST_REQUEST_SKIP_STEP: u32 = 3;
/// The learning rate is the schedule's times the factor from now on; factors multiply.
pub const HOST_REQUEST_SCALE_LEARNING_RATE: u32 = 4;
/// Weights and optimizer become those of the last complete checkpoint, and training goes on with
/// the batches behind those already seen.
pub const HOST_REQUEST_ROLL_BACK: u32 = 5;
/// The model is evaluated. This request and those after it are people's: observers see that they are
/// carried out, and are answered `HOST_UNSUPPORTED` if they ask for one.
pub const HOST_REQUEST_EVALUATE: u32 = 6;
/// The loop stands still at the step boundary.
pub const HOST_REQUEST_PAUSE: u32 = 7;
/// The loop goes on after a pause.
pub const HOST_REQUEST_CONTINUE: u32 = 8;
/// The learning rate is the schedule's times the factor from now on, whatever it was before; the
/// factor is above 0 and may be above 1.
pub const HOST_REQUEST_SET_LEARNING_RATE: u32 = 9;

/// Where requests go. Valid until the call returns.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostRequestsOut {
    /// Size of this struct in the host's build.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Handed back as the first argument of each function below.
    pub ctx: *mut c_void,
    /// `[main]` Asks the loop for something, a `HOST_REQUEST_*`, which it does at the next step
    /// boundary. `factor` is in (0, 1] for `HOST_REQUEST_SCALE_LEARNING_RATE`, and not looked at
    /// otherwise. `reason` is for people and is recorded; it may not be empty. A host that does
    /// not know the request answers `HOST_UNSUPPORTED`, and the plugin may ask for another;
    /// `HOST_ERROR` is for a factor or a reason that cannot be. The host copies the reason.
    pub ask: Option<
        unsafe extern "C" fn(
            ctx: *mut c_void,
            request: u32,
            factor: f64,
            reason: HostStr,
        ) -> HostStatus,
    >,
}

/// Sees what happens in a run, in order, and may ask for something.
///
/// It is the one kind with a state in the checkpoint: a metric is reset before each evaluation and
/// no checkpoint is taken within one, a grouping is made once, and a sink keeps what it must know
/// in its `state_dir`, since a checkpoint has the same bytes wherever it is delivered.
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
    /// `[main]` Looks at an event of the kinds that the manifest's `events` names, of all if it has
    /// none. The event is borrowed until this returns. The training waits for it.
    pub observe: Option<
        unsafe extern "C" fn(
            instance: *mut c_void,
            event: *const HostEvent,
            out: *const HostRequestsOut,
        ) -> HostStatus,
    >,
    /// `[main]` Puts the state as bytes by `put_bytes`, which copies. They say their own version;
    /// equal states are equal bytes. They go into the checkpoint; after a failure it has none of this
    /// plugin. Null, together with `import_state`, if there is no state.
    pub export_state:
        Option<unsafe extern "C" fn(instance: *mut c_void, out: *const HostOut) -> HostStatus>,
    /// `[main]` Makes the state one that an instance exported before, perhaps of another version of
    /// the plugin. The bytes are borrowed until this returns. Those that it cannot read are an error
    /// and leave the state as it is; the resume fails then.
    pub import_state:
        Option<unsafe extern "C" fn(instance: *mut c_void, state: HostStr) -> HostStatus>,
}
