use core::ffi::c_void;

use crate::{HostStatus, HostStr};

/// Where a call puts its results. Valid until the call returns; the functions copy.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostOut {
    /// Size of this struct in the host's build.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Handed back as the first argument of each function below.
    pub ctx: *mut c_void,
    /// `[inst]` Adds a named number, at most 1,000 in a call. The host copies the name, which has 1 to 200
    /// bytes. `HOST_ERROR` for the same name twice, or one that cannot be a name; the call fails then,
    /// whatever it returns. It fails afterwards where a name is the host's (`lr`, `loss/train`, what
    /// begins with `system/`, `plugin/` or `baseline/`), looks like one of those, or is another plugin's.
    pub put_f64:
        Option<unsafe extern "C" fn(ctx: *mut c_void, name: HostStr, value: f64) -> HostStatus>,
    /// `[inst]` Sets the bytes of the result, which the host copies; the last call counts. `HOST_ERROR`
    /// for more than 64 MiB.
    pub put_bytes: Option<unsafe extern "C" fn(ctx: *mut c_void, bytes: HostStr) -> HostStatus>,
}
