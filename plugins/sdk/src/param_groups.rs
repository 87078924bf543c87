use std::ffi::c_void;
use std::fmt;
use std::marker::PhantomData;
use std::mem::size_of;

use host_plugin_abi::{
    HOST_OK, HostApi, HostGroupsOut, HostGroupsRequest, HostParam, HostParamGroups, HostStatus,
    HostStr,
};
use serde::de::DeserializeOwned;

use crate::export::Package;
use crate::{Dtype, Error, Host, Result, instance, sized};

/// Assigns the model's parameters to the optimizer's groups.
///
/// ```standalone_crate
/// use host_plugin_sdk::{Groups, GroupsRequest, Host, NoConfig, ParamGroups, Result, export_plugin, fake};
///
/// struct OneGroup;
///
/// impl ParamGroups for OneGroup {
///     type Config = NoConfig;
///
///     fn create(_config: NoConfig, _host: Host) -> Result<Self> {
///         Ok(Self)
///     }
///     fn group(&mut self, request: &GroupsRequest<'_>, groups: &mut Groups<'_>) -> Result<()> {
///         let all = groups.add_group("all", request.weight_decay(), 1.0)?;
///         for index in 0..request.params().len() {
///             groups.assign(index, all)?;
///         }
///         Ok(())
///     }
/// }
///
/// export_plugin! { description: "All parameters in one group", param_groups: OneGroup }
///
/// let plugin = fake::Plugin::load(&PLUGIN);
/// let mut grouper = plugin.param_groups("{}").expect("created");
/// let grouping = grouper.group(&[fake::Param::new("w", &[2, 3])], 0.1).expect("grouped");
/// assert_eq!(grouping.groups[0].params, ["w"]);
/// ```
pub trait ParamGroups: Sized + Send + 'static {
    /// The configuration, deserialized from JSON that the host has checked against the schema.
    type Config: DeserializeOwned;

    /// Creates the plugin's instance.
    fn create(config: Self::Config, host: Host) -> Result<Self>;

    /// Assigns every parameter to exactly one group. The result must not depend on the order of the
    /// parameters.
    fn group(&mut self, request: &GroupsRequest<'_>, groups: &mut Groups<'_>) -> Result<()>;
}

/// The input of a grouping.
///
/// ```
/// use host_plugin_sdk::GroupsRequest;
///
/// fn summary(request: &GroupsRequest<'_>) -> String {
///     let biases = request.params().iter().filter(|param| param.name().ends_with(".bias"));
///     format!("{} biases, weight decay {}", biases.count(), request.weight_decay())
/// }
/// ```
#[derive(Clone, Debug)]
pub struct GroupsRequest<'a> {
    params: Vec<Param<'a>>,
    weight_decay: f64,
}

/// A trainable parameter of the model. Tied weights appear once.
///
/// ```
/// use host_plugin_sdk::{Dtype, Param};
///
/// /// Matrices and embeddings decay; biases, norms and half-precision parameters do not.
/// fn decays(param: &Param<'_>) -> bool {
///     let is_norm = param.name().contains("ln_");
///     param.shape().len() >= 2 && !is_norm && param.dtype() == Dtype::F32
/// }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Param<'a> {
    name: &'a str,
    shape: &'a [i64],
    dtype: Dtype,
}

/// Receives the groups of [`ParamGroups::group`].
///
/// ```
/// use host_plugin_sdk::{Groups, GroupsRequest, Result};
///
/// /// The embeddings learn half as fast as the rest.
/// fn group(request: &GroupsRequest<'_>, groups: &mut Groups<'_>) -> Result<()> {
///     let rest = groups.add_group("rest", request.weight_decay(), 1.0)?;
///     let embeddings = groups.add_group("embeddings", 0.0, 0.5)?;
///     let mut found = false;
///     for (index, param) in request.params().iter().enumerate() {
///         let is_embedding = param.name().contains(".wte.") || param.name().contains(".wpe.");
///         found |= is_embedding;
///         groups.assign(index, if is_embedding { embeddings } else { rest })?;
///     }
///     if !found {
///         groups.warn("no embedding was found");
///     }
///     Ok(())
/// }
/// ```
pub struct Groups<'a> {
    out: HostGroupsOut,
    call: PhantomData<&'a HostGroupsOut>,
}

/// A group, as returned by [`Groups::add_group`].
///
/// ```
/// use host_plugin_sdk::{Group, Groups, Result};
///
/// /// One group per layer. Lower layers learn more slowly.
/// fn layers(groups: &mut Groups<'_>, count: i32) -> Result<Vec<Group>> {
///     (0..count)
///         .map(|layer| groups.add_group(&format!("h.{layer}"), 0.1, 0.9f64.powi(count - 1 - layer)))
///         .collect()
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group(u32);

impl<'a> GroupsRequest<'a> {
    /// Returns the trainable parameters, in the model's order.
    pub fn params(&self) -> &[Param<'a>] {
        &self.params
    }

    /// Returns the run's `weight_decay`, for groups that have weight decay but no value of their own.
    pub fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    /// # Safety
    /// `request` is null, or points to data that is valid for `'a` according to the ABI.
    unsafe fn new(request: *const HostGroupsRequest) -> Result<Self> {
        // SAFETY: guaranteed by the caller.
        let request = unsafe { sized::read(request) }?;
        // SAFETY: as above.
        let params = unsafe { sized::read_array(request.params, request.n_params) }?;
        let params = params.map(|param| {
            // SAFETY: as above. The guarantee includes the data of each parameter.
            unsafe { Param::new(&param?) }
        });
        Ok(Self {
            params: params.collect::<Result<_>>()?,
            weight_decay: request.weight_decay,
        })
    }
}

impl<'a> Param<'a> {
    /// Returns the parameter's name, such as `transformer.h.0.ln_1.weight`. The Hub uses the same name.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// Returns the parameter's shape.
    pub fn shape(&self) -> &'a [i64] {
        self.shape
    }

    /// Returns the type of the parameter's elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// # Safety
    /// The data that `param` points to is valid for `'a` according to the ABI.
    unsafe fn new(param: &HostParam) -> Result<Self> {
        // SAFETY: guaranteed by the caller.
        let name = unsafe { instance::text(param.name, "a parameter's name") }?;
        let shape = match param.ndim {
            0 => &[][..],
            _ if param.shape.is_null() => {
                let message = format!("the host passed parameter {name:?} without a shape");
                return Err(Error::new(message));
            }
            // SAFETY: the caller guarantees that the pointer points to `ndim` sizes.
            ndim => unsafe { std::slice::from_raw_parts(param.shape, ndim as usize) },
        };
        Ok(Self {
            name,
            shape,
            dtype: param.dtype.into(),
        })
    }
}

impl Groups<'_> {
    /// Adds a group. The learning rate of the group's parameters is the schedule's learning rate times
    /// `lr_multiplier`.
    pub fn add_group(
        &mut self,
        name: &str,
        weight_decay: f64,
        lr_multiplier: f64,
    ) -> Result<Group> {
        let add = self.out.add_group.ok_or_else(|| missing("add_group"))?;
        let mut group = 0;
        let name_view = HostStr::new(name);
        // SAFETY: the host's function and `ctx` are valid until `group` returns. The function copies the name
        // and writes the index.
        let status = unsafe {
            add(
                self.out.ctx,
                name_view,
                weight_decay,
                lr_multiplier,
                &raw mut group,
            )
        };
        match status {
            HOST_OK => Ok(Group(group)),
            _ => Err(Error::new(format!("the host rejected the group {name:?}"))),
        }
    }

    /// Assigns the parameter with this index in [`GroupsRequest::params`] to a group.
    pub fn assign(&mut self, param: usize, group: Group) -> Result<()> {
        let assign = self.out.assign.ok_or_else(|| missing("assign"))?;
        // SAFETY: as in `add_group`.
        match unsafe { assign(self.out.ctx, param, group.0) } {
            HOST_OK => Ok(()),
            _ => Err(Error::new(format!(
                "the host rejected parameter {param} for group {}",
                group.0
            ))),
        }
    }

    /// Reports a warning to the user, such as a pattern without matches.
    pub fn warn(&mut self, message: &str) {
        if let Some(warn) = self.out.warn {
            // SAFETY: as in `add_group`. The status can be ignored.
            unsafe { warn(self.out.ctx, HostStr::new(message)) };
        }
    }
}

impl fmt::Debug for Groups<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Groups").finish_non_exhaustive()
    }
}

#[doc(hidden)]
pub const fn vtable<T: ParamGroups, P: Package>() -> HostParamGroups {
    HostParamGroups {
        struct_size: size_of::<HostParamGroups>() as u32,
        flags: 0,
        create: Some(create::<T, P>),
        destroy: Some(instance::destroy::<T>),
        group: Some(group::<T>),
    }
}

unsafe extern "C" fn create<T: ParamGroups, P: Package>(
    api: *const HostApi,
    config_json: HostStr,
    instance: *mut *mut c_void,
) -> HostStatus {
    // SAFETY: the host guarantees what `instance::create` requires.
    unsafe { instance::create(P::ID, api, config_json, instance, T::create) }
}

unsafe extern "C" fn group<T: ParamGroups>(
    instance: *mut c_void,
    request: *const HostGroupsRequest,
    out: *const HostGroupsOut,
) -> HostStatus {
    // SAFETY: the host passes an instance that `create` returned and that is not destroyed. The request and
    // `out` are valid until this function returns.
    unsafe {
        instance::call(instance, |grouper: &mut T, _| {
            let request = GroupsRequest::new(request)?;
            let mut groups = Groups {
                out: sized::read(out)?,
                call: PhantomData,
            };
            grouper.group(&request, &mut groups)
        })
    }
}

fn missing(function: &str) -> Error {
    Error::new(format!("the host has no function {function}"))
}
