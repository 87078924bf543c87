use core::ffi::c_void;

use crate::{HostStatus, HostStr};

/// The functions that the host provides to a plugin. Valid until the process ends.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostApi {
    /// Size of this struct in the host's build.
    pub struct_size: u32,
    /// The host's [`HOST_ABI_MAJOR`](crate::HOST_ABI_MAJOR).
    pub abi_major: u32,
    /// The host's [`HOST_ABI_MINOR`](crate::HOST_ABI_MINOR).
    pub abi_minor: u32,
    /// Zero.
    pub reserved: u32,
    /// The first argument to pass to each function below.
    pub ctx: *mut c_void,
    /// `[any]` Returns whether messages of this level are logged, so that a plugin can avoid
    /// creating costly messages.
    pub log_enabled: Option<unsafe extern "C" fn(ctx: *mut c_void, level: i32) -> bool>,
    /// `[any]` Writes one line to the run's log. The host copies both texts. Cannot fail.
    pub log: Option<
        unsafe extern "C" fn(ctx: *mut c_void, level: i32, target: HostStr, message: HostStr),
    >,
    /// `[any]` Sets a one-line reason for the failure of the current call on this thread. The host
    /// copies the message. If this is called several times, the host uses the last message before
    /// the call returns.
    pub set_error: Option<unsafe extern "C" fn(ctx: *mut c_void, message: HostStr)>,
    /// `[any]` Returns a named extension, such as `host.retain-tensor/1`, or null if the host does not have
    /// it. The extension belongs to the host and is valid until the process ends.
    pub get_extension: Option<unsafe extern "C" fn(ctx: *mut c_void, id: HostStr) -> *const c_void>,
}

// SAFETY: the functions are `[any]`, and the host keeps `ctx` valid for all threads.
unsafe impl Send for HostApi {}
// SAFETY: as above.
unsafe impl Sync for HostApi {}

/// The function `create` of every kind. `[main]` Creates an instance and writes it to `instance`.
/// `config_json` is a JSON object that the host has checked against the manifest's schema, with the
/// schema's defaults filled in; `{}` without a schema. The plugin owns the instance until
/// `destroy`. The plugin may keep `api`, but not the text of `config_json`. On failure, this
/// function writes null, and the host does not call `destroy`.
pub type HostCreate = unsafe extern "C" fn(
    api: *const HostApi,
    config_json: HostStr,
    instance: *mut *mut c_void,
) -> HostStatus;

/// The function `destroy` of every kind. `[inst]` Joins the instance's threads and frees the
/// instance. Called exactly once, as the last call, even after a panic. Cannot fail.
pub type HostDestroy = unsafe extern "C" fn(instance: *mut c_void);
