use core::ffi::c_void;

use crate::{DLDataType, HostCreate, HostDestroy, HostStatus, HostStr};

/// A trainable parameter of the model. Tied weights appear once.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostParam {
    /// Size of this struct in the host's build; also the stride of its array.
    pub struct_size: u32,
    /// Zero.
    pub flags: u32,
    /// The parameter's name as on the Hub, such as `transformer.h.0.ln_1.weight`.
    pub name: HostStr,
    /// `ndim` sizes.
    pub shape: *const i64,
    /// Number of dimensions.
    pub ndim: u32,
    /// Type of an element.
    pub dtype: DLDataType,
}

/// The input of a grouping.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostGroupsRequest {
    /// Size of this struct in the host's build.
    pub struct_size: u32,
    /// Zero.
    pub flags: u32,
    /// The trainable parameters, in the model's order.
    pub params: *const HostParam,
    /// Length of `params`.
    pub n_params: usize,
    /// The run's `weight_decay`. Use it for groups with weight decay but without a value of their
    /// own.
    pub weight_decay: f64,
}

/// Receives the groups. Valid until the call returns.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostGroupsOut {
    /// Size of this struct in the host's build.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// The first argument to pass to each function below.
    pub ctx: *mut c_void,
    /// `[inst]` Adds a group and writes its index to `group`. The learning rate of the group's
    /// parameters is the schedule's learning rate times `lr_multiplier`. The host copies the name.
    /// Returns `HOST_ERROR` for an invalid or duplicate name. The host rejects the result if a
    /// number is negative or not finite.
    pub add_group: Option<
        unsafe extern "C" fn(
            ctx: *mut c_void,
            name: HostStr,
            weight_decay: f64,
            lr_multiplier: f64,
            group: *mut u32,
        ) -> HostStatus,
    >,
    /// `[inst]` Assigns the parameter with this index in the request to a group. Returns `HOST_ERROR` for
    /// an unknown parameter or group. The host rejects the result unless each parameter is assigned
    /// exactly once.
    pub assign:
        Option<unsafe extern "C" fn(ctx: *mut c_void, param: usize, group: u32) -> HostStatus>,
    /// `[inst]` Reports a warning to the user, such as a pattern without matches. The host copies the
    /// message. The status can be ignored.
    pub warn: Option<unsafe extern "C" fn(ctx: *mut c_void, message: HostStr) -> HostStatus>,
}

/// Assigns the model's parameters to the optimizer's groups.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostParamGroups {
    /// Size of this struct in the plugin's build.
    pub struct_size: u32,
    /// Zero.
    pub flags: u32,
    /// See [`HostCreate`].
    pub create: Option<HostCreate>,
    /// See [`HostDestroy`].
    pub destroy: Option<HostDestroy>,
    /// `[inst]` Assigns every parameter of the request to a group. The result must not depend on the
    /// order of the parameters. The request is borrowed until this returns. If the call fails, the run
    /// does not start.
    pub group: Option<
        unsafe extern "C" fn(
            instance: *mut c_void,
            request: *const HostGroupsRequest,
            out: *const HostGroupsOut,
        ) -> HostStatus,
    >,
}
