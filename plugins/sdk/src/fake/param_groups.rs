use std::ffi::c_void;

use host_plugin_abi::{
    DLDataType, HOST_ERROR, HOST_OK, HostGroupsOut, HostGroupsRequest, HostParam, HostParamGroups,
    HostStatus, HostStr,
};

use super::Failure;
use super::host::copied;
use super::plugin::Instance;

/// A trainable parameter of 32-bit floats.
///
/// ```
/// use host_plugin_sdk::fake::Param;
///
/// let param = Param::new("transformer.h.0.ln_1.weight", &[64]);
/// assert_eq!((&*param.name, &*param.shape), ("transformer.h.0.ln_1.weight", &[64][..]));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// The parameter's name.
    pub name: String,
    /// The parameter's shape.
    pub shape: Vec<i64>,
}

/// A group that the plugin added.
///
/// ```
/// use host_plugin_sdk::fake::Group;
///
/// let params = vec!["transformer.h.0.ln_1.weight".to_owned()];
/// let group = Group { name: "no_decay".to_owned(), weight_decay: 0.0, lr_multiplier: 1.0, params };
/// assert_eq!(group.params.len(), 1); // a test compares this with a result
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// The group's name.
    pub name: String,
    /// The group's weight decay.
    pub weight_decay: f64,
    /// The group's multiplier of the learning rate.
    pub lr_multiplier: f64,
    /// Names of the group's parameters, in the order in which they were assigned.
    pub params: Vec<String>,
}

/// The result of a grouping.
///
/// ```
/// use host_plugin_sdk::fake::Grouping;
///
/// fn sizes(grouping: &Grouping) -> Vec<(&str, usize)> {
///     let size = |group: &host_plugin_sdk::fake::Group| group.params.len();
///     grouping.groups.iter().map(|group| (&*group.name, size(group))).collect()
/// }
/// assert!(sizes(&Grouping::default()).is_empty());
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Grouping {
    /// The groups, in the order in which they were added.
    pub groups: Vec<Group>,
    /// The plugin's warnings.
    pub warnings: Vec<String>,
}

/// A `ParamGroups` instance of the plugin, called through its vtable.
///
/// ```standalone_crate
/// # use host_plugin_sdk::*;
/// # struct Two;
/// # impl ParamGroups for Two {
/// #     type Config = NoConfig;
/// #     fn create(_: NoConfig, _: Host) -> Result<Self> { Ok(Self) }
/// #     fn group(&mut self, request: &GroupsRequest<'_>, groups: &mut Groups<'_>) -> Result<()> {
/// #         let decay = groups.add_group("decay", request.weight_decay(), 1.0)?;
/// #         let none = groups.add_group("no_decay", 0.0, 1.0)?;
/// #         for (index, param) in request.params().iter().enumerate() {
/// #             groups.assign(index, if param.shape().len() > 1 { decay } else { none })?;
/// #         }
/// #         groups.warn("only as an example");
/// #         Ok(())
/// #     }
/// # }
/// # export_plugin! { description: "Two groups by shape", param_groups: Two }
/// use host_plugin_sdk::fake;
///
/// let mut grouper = fake::Plugin::load(&PLUGIN).param_groups("{}")?;
/// let params = [fake::Param::new("w", &[2, 3]), fake::Param::new("b", &[3])];
/// let fake::Grouping { groups, warnings } = grouper.group(&params, 0.1)?;
/// assert_eq!(groups[0].params, ["w"]);
/// assert_eq!(warnings, ["only as an example"]);
/// let (vtable, _instance) = grouper.raw();
/// assert!(vtable.group.is_some());
/// # Ok::<_, fake::Failure>(())
/// ```
#[derive(Debug)]
pub struct ParamGroups {
    vtable: &'static HostParamGroups,
    instance: Instance,
}

impl Param {
    /// Creates a parameter.
    pub fn new(name: &str, shape: &[i64]) -> Self {
        Self {
            name: name.to_owned(),
            shape: shape.to_vec(),
        }
    }
}

impl ParamGroups {
    pub(crate) fn new(vtable: &'static HostParamGroups, instance: Instance) -> Self {
        Self { vtable, instance }
    }

    /// Groups the parameters of a run. `weight_decay` is the run's weight decay.
    ///
    /// # Panics
    /// Panics if the plugin does not assign each parameter exactly once.
    pub fn group(&mut self, params: &[Param], weight_decay: f64) -> Result<Grouping, Failure> {
        let views: Vec<HostParam> = params.iter().map(Param::view).collect();
        let request = HostGroupsRequest {
            struct_size: size_of::<HostGroupsRequest>() as u32,
            flags: 0,
            params: views.as_ptr(),
            n_params: views.len(),
            weight_decay,
        };
        let mut collected = Collected {
            names: params.iter().map(|param| param.name.as_str()).collect(),
            times: vec![0; params.len()],
            grouping: Grouping::default(),
        };
        let group = self.vtable.group.expect("group");
        // SAFETY: the instance is live. The request and the result outlive the call.
        let status = unsafe { group(self.instance.pointer, &request, &collected.out()) };
        self.instance.host.ended(status)?;
        for (name, times) in std::iter::zip(&collected.names, &collected.times) {
            assert_eq!(*times, 1, "{name:?} was assigned {times} times");
        }
        Ok(collected.grouping)
    }

    /// Returns the C interface, for tests that violate its rules.
    pub fn raw(&self) -> (&'static HostParamGroups, *mut c_void) {
        (self.vtable, self.instance.pointer)
    }
}

impl Param {
    fn view(&self) -> HostParam {
        HostParam {
            struct_size: size_of::<HostParam>() as u32,
            flags: 0,
            name: HostStr::new(&self.name),
            shape: self.shape.as_ptr(),
            ndim: u32::try_from(self.shape.len()).expect("few dimensions"),
            dtype: DLDataType {
                code: 2,
                bits: 32,
                lanes: 1,
            },
        }
    }
}

struct Collected<'a> {
    names: Vec<&'a str>,
    times: Vec<u32>,
    grouping: Grouping,
}

impl Collected<'_> {
    /// Returns a view for one call. Nothing else may access `self` during the call.
    fn out(&mut self) -> HostGroupsOut {
        HostGroupsOut {
            struct_size: size_of::<HostGroupsOut>() as u32,
            reserved: 0,
            ctx: (&raw mut *self).cast(),
            add_group: Some(add_group),
            assign: Some(assign),
            warn: Some(warn),
        }
    }
}

unsafe extern "C" fn add_group(
    ctx: *mut c_void,
    name: HostStr,
    weight_decay: f64,
    lr_multiplier: f64,
    group: *mut u32,
) -> HostStatus {
    // SAFETY: the plugin calls this function during the call of `group`, and passes the `ctx` of
    // `Collected::out`. The name is valid until this function returns. `group` can be written to.
    unsafe {
        let groups = &mut (*ctx.cast::<Collected<'_>>()).grouping.groups;
        group.write(u32::try_from(groups.len()).expect("few groups"));
        groups.push(Group {
            name: copied(name),
            weight_decay,
            lr_multiplier,
            params: Vec::new(),
        });
    }
    HOST_OK
}

unsafe extern "C" fn assign(ctx: *mut c_void, param: usize, group: u32) -> HostStatus {
    // SAFETY: as in `add_group`.
    let collected = unsafe { &mut *ctx.cast::<Collected<'_>>() };
    let group = collected.grouping.groups.get_mut(group as usize);
    let (Some(group), Some(name)) = (group, collected.names.get(param)) else {
        return HOST_ERROR;
    };
    collected.times[param] += 1;
    group.params.push((*name).to_owned());
    HOST_OK
}

unsafe extern "C" fn warn(ctx: *mut c_void, message: HostStr) -> HostStatus {
    // SAFETY: as in `add_group`.
    unsafe {
        let warnings = &mut (*ctx.cast::<Collected<'_>>()).grouping.warnings;
        warnings.push(copied(message));
    }
    HOST_OK
}
