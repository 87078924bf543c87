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
    /// The optimizer step it was taken at.
    pub step: u64,
    /// The run's name: letters, digits, `.`, `_` and `-`; a valid branch name.
    pub run: HostStr,
    /// Absolute path of the checkpoint's folder. Not to be written to.
    pub dir: HostStr,
    /// The folder's `manifest.json`: `{"files": {"PATH": {"sha256": HEX, "size": BYTES}, …}}`.
    pub manifest_json: HostStr,
    /// The evaluation's values at this step, `{"loss/eval": 1.5, …}`; those that are not finite
    /// are strings (`"inf"`, `"nan"`).
    pub metrics_json: HostStr,
    /// Absolute path of a folder of the sink's own, which exists, survives the run and is part of
    /// no checkpoint.
    pub state_dir: HostStr,
}

/// What a sink may know of a run before its first step.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostPreflight {
    /// Size of this struct in the host's build.
    pub struct_size: u32,
    /// Zero.
    pub flags: u32,
    /// The run's name, as its checkpoints will have it.
    pub run: HostStr,
    /// Absolute path of the sink's own folder, as its checkpoints will have it.
    pub state_dir: HostStr,
    /// About how many bytes a checkpoint of the run takes, with all that a resume needs.
    pub checkpoint_bytes: u64,
    /// About how many of them are the model, its configuration and its tokenizer.
    pub model_bytes: u64,
}

/// Which checkpoint of a destination is wanted back, and where it may be kept.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostFetch {
    /// Size of this struct in the host's build.
    pub struct_size: u32,
    /// [`HOST_FETCH_FOR_RESUME`](crate::HOST_FETCH_FOR_RESUME), or zero.
    pub flags: u32,
    /// Which one, in the destination's own words: a branch, a commit. Empty: the newest.
    pub revision: HostStr,
    /// Absolute path of a folder of the sink's own, which exists and survives the process.
    pub state_dir: HostStr,
}

/// Delivers checkpoints somewhere. The host owns the queue and the ledger; the sink reports.
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
    /// `[worker]` Delivers the checkpoint and puts a receipt by `put_bytes`: a JSON object of the
    /// sink's, with what lets a person find it (`commit`, `path`). Delivering the same again changes
    /// nothing. The checkpoint is borrowed until this returns. After `HOST_TEMPORARY` and
    /// `HOST_CANCELLED` it stays queued and is tried again, after `HOST_PANIC` by another instance. Any
    /// other failure is final for it in this process; another that takes up the run offers it again.
    pub publish: Option<
        unsafe extern "C" fn(
            instance: *mut c_void,
            checkpoint: *const HostCheckpoint,
            out: *const HostOut,
        ) -> HostStatus,
    >,
    /// `[any]` Asks the `publish` or `preflight` that is running, if any, to end soon with
    /// `HOST_CANCELLED`. Returns at once, and cannot fail.
    pub cancel: Option<unsafe extern "C" fn(instance: *mut c_void)>,
    /// `[worker]` Since 1.1; may be null. Looks, before the first step of a run or of its resume,
    /// whether checkpoints will arrive: whether the destination is there, may be written to and has
    /// room. Delivers nothing. `HOST_OK` if so; what was found may be put by `put_bytes`, as a short
    /// text for people. `HOST_TEMPORARY` if the world is not ready (no network), any other failure if
    /// it never will be. `preflight` is borrowed until this returns.
    pub preflight: Option<
        unsafe extern "C" fn(
            instance: *mut c_void,
            preflight: *const HostPreflight,
            out: *const HostOut,
        ) -> HostStatus,
    >,
    /// `[worker]` Since 1.2; may be null, in a sink that brings nothing back. Brings a checkpoint that
    /// the destination has into a folder below `state_dir`, laid out as it was delivered, and puts a
    /// receipt by `put_bytes`: a JSON object whose `path` is the folder, absolute, and which says for
    /// people and for the next time what it is (`commit`). The folder is whole, and the host may read
    /// it for as long as it likes. Fetching the same again changes nothing. `HOST_TEMPORARY` if the
    /// world is not ready (no network), any other failure if the destination has no such checkpoint.
    /// `fetch` is borrowed until this returns. `cancel` ends it, too.
    pub fetch: Option<
        unsafe extern "C" fn(
            instance: *mut c_void,
            fetch: *const HostFetch,
            out: *const HostOut,
        ) -> HostStatus,
    >,
}
