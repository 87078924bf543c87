use std::ffi::c_void;
use std::ptr;

use host_core::{Dtype, GroupsRequest, ParamGroup, ParamGroups, ParamInfo, Result};
use host_plugin_abi::{
    DLDataType, HOST_ERROR, HostCreate, HostDestroy, HostGroupsOut, HostGroupsRequest, HostParam,
    HostParamGroups, HostStatus, HostStr,
};

use crate::PluginKind;
use crate::host_api::{cut, message_of, one_line};
use crate::instance::{Collector, Instance};
use crate::out::{answer, checked_name};
use crate::vtable::required;

/// Maximum number of groups that one call may add.
const MOST_GROUPS: usize = 10_000;
/// Maximum number of warnings per call, and the maximum length of a warning in bytes.
const MOST_WARNINGS: usize = 1000;
const LONGEST_WARNING: usize = 4096;

/// A plugin's function table for parameter groups, with all required functions present.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the ABI documents the fields of its table")]
pub struct ParamGroupsFunctions {
    pub create: HostCreate,
    pub destroy: HostDestroy,
    pub group: unsafe extern "C" fn(
        *mut c_void,
        *const HostGroupsRequest,
        *const HostGroupsOut,
    ) -> HostStatus,
}

impl ParamGroupsFunctions {
    pub(crate) fn from_table(table: HostParamGroups) -> Result<Self, String> {
        let kind = PluginKind::ParamGroups;
        Ok(Self {
            create: required(kind, "create", table.create)?,
            destroy: required(kind, "destroy", table.destroy)?,
            group: required(kind, "group", table.group)?,
        })
    }
}

/// Implements the host's `ParamGroups` trait by calling a plugin.
#[derive(Debug)]
pub(crate) struct PluginParamGroups {
    pub(crate) instance: Instance,
    pub(crate) functions: ParamGroupsFunctions,
}

impl ParamGroups for PluginParamGroups {
    fn id(&self) -> &str {
        self.instance.id()
    }

    fn group(&mut self, request: GroupsRequest<'_>) -> Result<(Vec<ParamGroup>, Vec<String>)> {
        let params: Vec<HostParam> = request.params.iter().map(param).collect();
        let abi_request = HostGroupsRequest {
            struct_size: size_of::<HostGroupsRequest>() as u32,
            flags: 0,
            params: params.as_ptr(),
            n_params: params.len(),
            weight_decay: request.weight_decay,
        };
        let group = self.functions.group;
        let call = |instance, groups: &mut Groups| {
            let out = groups.callbacks();
            // SAFETY: the library created the instance; the request, its parameters and the callbacks'
            // context outlive the call.
            unsafe { group(instance, &raw const abi_request, &raw const out) }
        };
        let groups = Groups::new(params.len());
        self.instance
            .call("group", groups, call, Groups::into_result)
            .map_err(|failure| self.instance.error("group", &failure))
    }
}

/// Returns the parameter in the ABI's form. The parameter must outlive the result.
pub fn param(param: &ParamInfo) -> HostParam {
    HostParam {
        struct_size: size_of::<HostParam>() as u32,
        flags: 0,
        name: HostStr::new(&param.name),
        shape: param.shape.as_ptr(),
        ndim: u32::try_from(param.shape.len()).expect("a tensor has few dimensions"),
        dtype: dl_dtype(param.dtype),
    }
}

/// Returns DLPack's code for an element type.
#[inline]
pub(crate) fn dl_dtype(dtype: Dtype) -> DLDataType {
    let (code, bits) = match dtype {
        Dtype::I64 => (0, 64),
        Dtype::F32 => (2, 32),
        Dtype::F64 => (2, 64),
        Dtype::Bf16 => (4, 16),
    };
    DLDataType {
        code,
        bits,
        lanes: 1,
    }
}

/// The output of a call. Lives on the host's stack during one call.
#[derive(Debug)]
pub struct Groups {
    n_params: usize,
    assigned: usize,
    groups: Vec<ParamGroup>,
    warnings: Vec<String>,
    /// The first fault. It fails the call even if the plugin ignores it.
    fault: Option<String>,
}

impl Collector for Groups {
    fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }
}

impl Groups {
    /// Creates an empty output for this number of parameters.
    pub fn new(n_params: usize) -> Self {
        Self {
            n_params,
            assigned: 0,
            groups: Vec::new(),
            warnings: Vec::new(),
            fault: None,
        }
    }

    /// Returns the callbacks that write to this output. They contain its address, so it must not be moved or
    /// accessed until the call returns.
    pub fn callbacks(&mut self) -> HostGroupsOut {
        HostGroupsOut {
            struct_size: size_of::<HostGroupsOut>() as u32,
            reserved: 0,
            ctx: ptr::from_mut(self).cast(),
            add_group: Some(add_group),
            assign: Some(assign),
            warn: Some(warn),
        }
    }

    /// Returns the groups and the warnings.
    ///
    /// # Errors
    /// Returns the first fault in a callback as an error.
    pub fn into_result(self) -> Result<(Vec<ParamGroup>, Vec<String>), String> {
        match self.fault {
            Some(fault) => Err(fault),
            None => Ok((self.groups, self.warnings)),
        }
    }

    fn add(&mut self, name: &str, weight_decay: f64, lr_multiplier: f64) -> Result<u32, String> {
        if self.groups.iter().any(|group| group.name == name) {
            return Err(format!("it added the group {name:?} twice"));
        }
        if self.groups.len() == MOST_GROUPS {
            return Err(format!("it added more than {MOST_GROUPS} groups"));
        }
        self.groups.push(ParamGroup {
            name: name.to_owned(),
            weight_decay,
            lr_multiplier,
            params: Vec::new(),
        });
        Ok(self.groups.len() as u32 - 1)
    }

    /// Assigns a parameter to a group. Accepts a parameter that already has a group, because the check of the
    /// complete result reports all such parameters.
    fn assign(&mut self, param: usize, group: u32) -> Result<(), String> {
        if param >= self.n_params {
            return Err(format!(
                "it used parameter index {param}, but the number of parameters in the model is {}",
                self.n_params
            ));
        }
        let n_groups = self.groups.len();
        let Some(group) = self.groups.get_mut(group as usize) else {
            return Err(format!(
                "it used group index {group}, but the number of groups added so far is {n_groups}"
            ));
        };
        if self.assigned == self.n_params.saturating_mul(MOST_GROUPS) {
            return Err(format!(
                "it assigned parameters more than {} times",
                self.assigned
            ));
        }
        self.assigned += 1;
        group.params.push(param);
        Ok(())
    }

    fn warn(&mut self, message: &str) -> Result<(), String> {
        if self.warnings.len() == MOST_WARNINGS {
            return Err(format!("it issued more than {MOST_WARNINGS} warnings"));
        }
        self.warnings.push(message.to_owned());
        Ok(())
    }
}

unsafe extern "C" fn add_group(
    ctx: *mut c_void,
    name: HostStr,
    weight_decay: f64,
    lr_multiplier: f64,
    group: *mut u32,
) -> HostStatus {
    // SAFETY: the plugin passes the context of this call, which nothing else accesses.
    let Some(groups) = (unsafe { ctx.cast::<Groups>().as_mut() }) else {
        return HOST_ERROR;
    };
    let mut fault = groups.fault.take();
    let status = answer(&mut fault, || {
        // SAFETY: the ABI guarantees that the name is readable until this callback returns.
        let name = unsafe { checked_name(name, "group") }?;
        if group.is_null() {
            return Err("it passed no pointer for a group's index".to_owned());
        }
        let index = groups.add(name, weight_decay, lr_multiplier)?;
        // SAFETY: the ABI guarantees that the pointer is writable until this callback returns.
        unsafe { group.write_unaligned(index) };
        Ok(())
    });
    groups.fault = fault;
    status
}

unsafe extern "C" fn assign(ctx: *mut c_void, param: usize, group: u32) -> HostStatus {
    // SAFETY: the plugin passes the context of this call, which nothing else accesses.
    let Some(groups) = (unsafe { ctx.cast::<Groups>().as_mut() }) else {
        return HOST_ERROR;
    };
    let mut fault = groups.fault.take();
    let status = answer(&mut fault, || groups.assign(param, group));
    groups.fault = fault;
    status
}

unsafe extern "C" fn warn(ctx: *mut c_void, message: HostStr) -> HostStatus {
    // SAFETY: the plugin passes the context of this call, which nothing else accesses.
    let Some(groups) = (unsafe { ctx.cast::<Groups>().as_mut() }) else {
        return HOST_ERROR;
    };
    let mut fault = groups.fault.take();
    let status = answer(&mut fault, || {
        // SAFETY: the ABI guarantees that the message is readable until this callback returns.
        groups.warn(&cut(
            one_line(&unsafe { message_of(message) }),
            LONGEST_WARNING,
        ))
    });
    groups.fault = fault;
    status
}
