use core::ffi::c_void;

use crate::{HostStatus, HostStr};

/// What the host gives to a plugin. It lives until the process ends.
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
    /// Handed back as the first argument of each function below.
    pub ctx: *mut c_void,
    /// `[any]` Whether a message of this level would be kept, for messages that are costly to make.
    pub log_enabled: Option<unsafe extern "C" fn(ctx: *mut c_void, level: i32) -> bool>,
    /// `[any]` Writes one line to the run's log. The host copies both texts. It cannot fail.
    pub log: Option<
        unsafe extern "C" fn(ctx: *mut c_void, level: i32, target: HostStr, message: HostStr),
    >,
    /// `[any]` Says why the call now running on this thread will fail, in one line. The host copies it;
    /// the last one before the call returns counts.
    pub set_error: Option<unsafe extern "C" fn(ctx: *mut c_void, message: HostStr)>,
    /// `[any]` A named extension such as `host.retain-tensor/1`, or null if the host has none. What it
    /// points to is the host's and lives until the process ends.
    pub get_extension: Option<unsafe extern "C" fn(ctx: *mut c_void, id: HostStr) -> *const c_void>,
}

// SAFETY: the functions are `[any]`, and `ctx` is the host's, which keeps it valid for all threads.
unsafe impl Send for HostApi {}
// SAFETY: as above.
unsafe impl Sync for HostApi {}

/// `create` of every kind. `[main]` Reads the configuration (a JSON object that the host has
/// checked against the manifest's schema, with the schema's defaults filled in; `{}` without a schema)
/// and writes the new instance to `instance`, which is the plugin's until `destroy`. It may keep `api`,
/// but not the text. On a failure it leaves null there, and nothing to destroy.
pub type HostCreate = unsafe extern "C" fn(
    api: *const HostApi,
    config_json: HostStr,
    instance: *mut *mut c_void,
) -> HostStatus;

/// `destroy` of every kind. `[inst]` The last call of the instance, made once, also after a panic:
/// joins the instance's threads and frees it. It cannot fail.
pub type HostDestroy = unsafe extern "C" fn(instance: *mut c_void);
