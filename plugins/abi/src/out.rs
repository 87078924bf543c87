use core::ffi::c_void;

use crate::{HostStatus, HostStr};

/// Receives the results of a call. Valid until the call returns. The functions copy their arguments.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostOut {
    /// Size of this struct in the host's build.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// The first argument to pass to each function below.
    pub ctx: *mut c_void,
    /// `[inst]` Adds a named number; a call can add at most 1,000. The name has 1 to 200 bytes; the
    /// host copies it. Returns `HOST_ERROR` for a duplicate or invalid name. The plugin's call then
    /// fails, regardless of the status that the plugin returns. When the plugin's call has
    /// returned, the host checks the names. The call fails if a name is one of these: a name of the
    /// host (`lr`, `loss/train`, names that start with `system/`, `plugin/`, `baseline/` or
    /// `rank/`); a name that resembles a name of the host; a name of another plugin.
    pub put_f64:
        Option<unsafe extern "C" fn(ctx: *mut c_void, name: HostStr, value: f64) -> HostStatus>,
    /// `[inst]` Sets the bytes of the result. The host copies them. If this is called several
    /// times, the host uses the last bytes. Returns `HOST_ERROR` for more than 64 MiB.
    pub put_bytes: Option<unsafe extern "C" fn(ctx: *mut c_void, bytes: HostStr) -> HostStatus>,
}
