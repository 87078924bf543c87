use std::collections::BTreeMap;
use std::ffi::c_void;

use host_plugin_abi::{HOST_ERROR, HOST_OK, HostMetric, HostOut, HostStatus, HostStr};

use super::host::copied;
use super::plugin::Instance;
use super::{Batch, Failure};

/// A metric of the plugin, called through its vtable.
///
/// ```standalone_crate
/// # use host_plugin_sdk::*;
/// # struct Tokens(i64);
/// # impl Metric for Tokens {
/// #     type Config = NoConfig;
/// #     fn create(_: NoConfig, _: Host) -> Result<Self> { Ok(Self(0)) }
/// #     fn reset(&mut self) { self.0 = 0; }
/// #     fn update(&mut self, batch: &Batch<'_>) -> Result<()> {
/// #         self.0 += batch.scalar_i64("token_count")?;
/// #         Ok(())
/// #     }
/// #     fn export_state(&self) -> Vec<u8> { self.0.to_le_bytes().to_vec() }
/// #     fn merge_state(&mut self, state: &[u8]) -> Result<()> {
/// #         self.0 += i64::from_le_bytes(state.try_into().map_err(|_| Error::new("no state"))?);
/// #         Ok(())
/// #     }
/// #     fn compute(&self, values: &mut Values<'_>) -> Result<()> { values.put_f64("predicted_tokens", self.0 as f64) }
/// # }
/// # export_plugin! { description: "Counts tokens", metric: Tokens, needs: ["token_count"] }
/// use host_plugin_sdk::fake;
///
/// let plugin = fake::Plugin::load(&PLUGIN);
/// let (mut one, mut two) = (plugin.metric("{}")?, plugin.metric("{}")?);
/// one.update(&fake::Batch::new().with("token_count", 3i64))?;
/// two.update(&fake::Batch::new().with("token_count", 4i64))?;
/// one.merge_state(&two.export_state()?)?;
/// assert_eq!(one.compute()?["predicted_tokens"], 7.0);
/// one.reset()?;
/// assert_eq!(one.compute()?["predicted_tokens"], 0.0);
/// assert!(one.merge_state(b"not a state").is_err());
///
/// let (vtable, instance) = one.raw();
/// // SAFETY: the instance is live. The SDK accepts a null batch and returns an error.
/// let status = unsafe { vtable.update.expect("update")(instance, std::ptr::null()) };
/// assert_eq!(status, abi::HOST_ERROR);
/// # Ok::<_, fake::Failure>(())
/// ```
#[derive(Debug)]
pub struct Metric {
    vtable: &'static HostMetric,
    instance: Instance,
}

impl Metric {
    pub(crate) fn new(vtable: &'static HostMetric, instance: Instance) -> Self {
        Self { vtable, instance }
    }

    /// Resets the state to that of a new metric.
    pub fn reset(&mut self) -> Result<(), Failure> {
        // SAFETY: the instance is live.
        let status = unsafe { self.vtable.reset.expect("reset")(self.instance.pointer) };
        self.instance.host.ended(status)
    }

    /// Adds a batch to the state.
    pub fn update(&mut self, batch: &Batch) -> Result<(), Failure> {
        let update = self.vtable.update.expect("update");
        // SAFETY: the instance is live, and the batch outlives the call.
        let status = batch.view(|batch| unsafe { update(self.instance.pointer, batch) });
        self.instance.host.ended(status)
    }

    /// Returns the state as bytes.
    ///
    /// # Panics
    /// Panics if the plugin does not call `put_bytes`.
    pub fn export_state(&mut self) -> Result<Vec<u8>, Failure> {
        let mut result = Results::default();
        let export = self.vtable.export_state.expect("export_state");
        // SAFETY: the instance is live, and the result outlives the call.
        let status = unsafe { export(self.instance.pointer, &result.out()) };
        self.instance.host.ended(status)?;
        Ok(result.bytes.expect("export_state did not call put_bytes"))
    }

    /// Takes a state that another instance exported, and merges it into this instance's state.
    pub fn merge_state(&mut self, state: &[u8]) -> Result<(), Failure> {
        let merge = self.vtable.merge_state.expect("merge_state");
        // SAFETY: the instance is live, and the bytes outlive the call.
        let status = unsafe { merge(self.instance.pointer, HostStr::from_bytes(state)) };
        self.instance.host.ended(status)
    }

    /// Returns the named values of the state.
    pub fn compute(&mut self) -> Result<BTreeMap<String, f64>, Failure> {
        let mut result = Results::default();
        let compute = self.vtable.compute.expect("compute");
        // SAFETY: the instance is live, and the result outlives the call.
        let status = unsafe { compute(self.instance.pointer, &result.out()) };
        self.instance.host.ended(status)?;
        Ok(result.values)
    }

    /// Returns the C interface, for tests that violate its rules.
    pub fn raw(&self) -> (&'static HostMetric, *mut c_void) {
        (self.vtable, self.instance.pointer)
    }
}

/// The results that a plugin passed to the callbacks.
#[derive(Debug, Default)]
pub(crate) struct Results {
    pub(crate) values: BTreeMap<String, f64>,
    pub(crate) bytes: Option<Vec<u8>>,
}

impl Results {
    /// Returns the C struct that a plugin writes its results to during one call. Nothing else may access the
    /// results during the call.
    pub(crate) fn out(&mut self) -> HostOut {
        HostOut {
            struct_size: size_of::<HostOut>() as u32,
            reserved: 0,
            ctx: (&raw mut *self).cast(),
            put_f64: Some(put_f64),
            put_bytes: Some(put_bytes),
        }
    }
}

unsafe extern "C" fn put_f64(ctx: *mut c_void, name: HostStr, value: f64) -> HostStatus {
    // SAFETY: during the call, the plugin passes the `ctx` of `Results::out`, and a name that is valid until
    // this function returns.
    let (results, name) = unsafe { (&mut *ctx.cast::<Results>(), copied(name)) };
    if results.values.insert(name, value).is_some() {
        return HOST_ERROR;
    }
    HOST_OK
}

unsafe extern "C" fn put_bytes(ctx: *mut c_void, bytes: HostStr) -> HostStatus {
    // SAFETY: as in `put_f64`.
    let (results, bytes) = unsafe { (&mut *ctx.cast::<Results>(), bytes.as_bytes()) };
    results.bytes = Some(bytes.to_vec());
    HOST_OK
}
