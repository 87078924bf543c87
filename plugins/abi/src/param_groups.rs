use core::ffi::c_void;

use crate::{DLDataType, HostCreate, HostDestroy, HostStatus, HostStr};

/// A trainable parameter of the model. Tied weights appear once.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostParam {
    /// Size of this struct in the host's build; also the stride of the array it lies in.
    pub struct_size: u32,
    /// Zero.
    pub flags: u32,
    /// Its name as on the Hub: `transformer.h.0.ln_1.weight`.
    pub name: HostStr,
    /// `ndim` sizes.
    pub shape: *const i64,
    /// Number of dimensions.
    pub ndim: u32,
    /// Type of an element.
    pub dtype: DLDataType,
}

/// What a grouping is made from.
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
    /// The run's `weight_decay`, for groups that decay and say no other.
    pub weight_decay: f64,
}

/// Where the groups go. Valid until the call returns.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostGroupsOut {
    /// Size of this struct in the host's build.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Handed back as the first argument of each function below.
    pub ctx: *mut c_void,
    /// `[inst]` Adds a group and writes its index to `group`. The learning rate of its parameters
    /// is the schedule's times `lr_multiplier`. The host copies the name. `HOST_ERROR` for one that
    /// cannot be a group's. Numbers that are not finite, or below 0, make the result unusable.
    pub add_group: Option<
        unsafe extern "C" fn(
            ctx: *mut c_void,
            name: HostStr,
            weight_decay: f64,
            lr_multiplier: f64,
            group: *mut u32,
        ) -> HostStatus,
    >,
    /// `[inst]` Puts the parameter with this index of the request into a group. `HOST_ERROR` if there
    /// is no such parameter or group. The host refuses the result unless each parameter was put into
    /// one group once.
    pub assign:
        Option<unsafe extern "C" fn(ctx: *mut c_void, param: usize, group: u32) -> HostStatus>,
    /// `[inst]` Tells the user of something odd, such as a pattern that matches nothing. The host
    /// copies the message. What it returns can be ignored.
    pub warn: Option<unsafe extern "C" fn(ctx: *mut c_void, message: HostStr) -> HostStatus>,
}

/// Decides the optimizer's parameter groups.
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
    /// `[inst]` Puts every parameter of the request into a group. The order of the parameters does
    /// not matter to the result. The request is borrowed until this returns. After a failure the run
    /// does not start.
    pub group: Option<
        unsafe extern "C" fn(
            instance: *mut c_void,
            request: *const HostGroupsRequest,
            out: *const HostGroupsOut,
        ) -> HostStatus,
    >,
}
