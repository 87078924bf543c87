use core::ffi::c_void;

use crate::{HostCreate, HostDestroy, HostOut, HostStatus, HostStr};

/// A complete checkpoint in the run folder. The host keeps it until the sink has returned.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostCheckpoint {
    /// Size of this struct in the host's build.
    pub struct_size: u32,
    /// Zero.
    pub flags: u32,
    /// The optimizer step of the checkpoint.
    pub step: u64,
    /// The run's name: letters, digits, `.`, `_` and `-`; a valid branch name.
    pub run: HostStr,
    /// Absolute path of the checkpoint's folder. Do not write to it.
    pub dir: HostStr,
    /// The folder's `manifest.json`: `{"files": {"PATH": {"sha256": HEX, "size": BYTES}, …}}`.
    pub manifest_json: HostStr,
    /// The evaluation's values at this step: `{"loss/eval": 1.5, …}`. Values that are not finite
    /// are strings (`"inf"`, `"nan"`).
    pub metrics_json: HostStr,
    /// Absolute path of the sink's own folder. It exists, is kept after the run, and is not part of any
    /// checkpoint.
    pub state_dir: HostStr,
}

/// Information about a run, available before its first step.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostPreflight {
    /// Size of this struct in the host's build.
    pub struct_size: u32,
    /// Zero.
    pub flags: u32,
    /// The run's name, the same as in its checkpoints.
    pub run: HostStr,
    /// Absolute path of the sink's own folder: the `state_dir` of every [`HostCheckpoint`] of the run.
    pub state_dir: HostStr,
    /// Approximate size of a checkpoint of the run, with everything that a resume needs.
    pub checkpoint_bytes: u64,
    /// Approximate size of the model, its configuration and its tokenizer within a checkpoint.
    pub model_bytes: u64,
}

/// A request to fetch a checkpoint from a sink's destination.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostFetch {
    /// Size of this struct in the host's build.
    pub struct_size: u32,
    /// [`HOST_FETCH_FOR_RESUME`](crate::HOST_FETCH_FOR_RESUME), or zero.
    pub flags: u32,
    /// The checkpoint to fetch, as the destination identifies it, for example a branch or a commit.
    /// If empty, the sink fetches the newest checkpoint.
    pub revision: HostStr,
    /// Absolute path of the sink's own folder. It exists and is kept after the process ends.
    pub state_dir: HostStr,
}

/// Delivers checkpoints to a destination. The host manages the queue and the ledger.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostCheckpointSink {
    /// Size of this struct in the plugin's build.
    pub struct_size: u32,
    /// Zero.
    pub flags: u32,
    /// See [`HostCreate`].
    pub create: Option<HostCreate>,
    /// See [`HostDestroy`].
    pub destroy: Option<HostDestroy>,
    /// `[worker]` Delivers the checkpoint and passes a receipt to `put_bytes`: a JSON object by
    /// which users can find the checkpoint (`commit`, `path`). Delivering a checkpoint again must
    /// change nothing. The checkpoint is borrowed until this returns. After `HOST_TEMPORARY` or
    /// `HOST_CANCELLED`, the checkpoint stays queued and the host tries again. After `HOST_PANIC`,
    /// the host tries again with a new instance. Any other failure is final in this process, but a
    /// process that resumes the run tries again.
    pub publish: Option<
        unsafe extern "C" fn(
            instance: *mut c_void,
            checkpoint: *const HostCheckpoint,
            out: *const HostOut,
        ) -> HostStatus,
    >,
    /// `[any]` Requests that the current call of `publish`, `preflight` or `fetch`, if there is
    /// one, end soon with `HOST_CANCELLED`. Returns immediately and cannot fail.
    pub cancel: Option<unsafe extern "C" fn(instance: *mut c_void)>,
    /// `[worker]` Since 1.1; can be null. Called before the first step of a new or resumed run.
    /// Checks that checkpoints can be delivered. For this, the destination must exist, be writable
    /// and have enough space. Delivers nothing. Returns `HOST_OK` if checkpoints can be delivered,
    /// and can pass a short text for users to `put_bytes`. Returns `HOST_TEMPORARY` if the
    /// destination is not ready (no network), and another failure if the destination will never be
    /// ready. `preflight` is borrowed until this returns.
    pub preflight: Option<
        unsafe extern "C" fn(
            instance: *mut c_void,
            preflight: *const HostPreflight,
            out: *const HostOut,
        ) -> HostStatus,
    >,
    /// `[worker]` Since 1.2; null if the sink cannot fetch. Copies a checkpoint from the
    /// destination into a folder below `state_dir`. The folder has the layout of a delivered
    /// checkpoint. Passes a receipt to `put_bytes`: a JSON object with the folder's absolute `path`
    /// and an identifier for users and for later fetches (`commit`). The folder must be complete
    /// and must be kept, since the host can read it at any later time. Fetching a checkpoint again
    /// must change nothing. Returns `HOST_TEMPORARY` if the destination is not ready (no network),
    /// and another failure if the destination does not have the checkpoint. `fetch` is borrowed
    /// until this returns.
    pub fetch: Option<
        unsafe extern "C" fn(
            instance: *mut c_void,
            fetch: *const HostFetch,
            out: *const HostOut,
        ) -> HostStatus,
    >,
}
