use std::ffi::c_void;
use std::fmt;
use std::marker::PhantomData;
use std::mem::size_of;

use host_plugin_abi::{HostApi, HostBatch, HostMetric, HostOut, HostStatus, HostStr};
use serde::de::DeserializeOwned;

use crate::export::Package;
use crate::out::Out;
use crate::{Batch, Host, Result, instance};

/// An evaluation metric. Batches are added to its state, and the states of ranks are merged.
///
/// Merging must be associative and commutative: exactly for integers, and within 1e-12 for sums of `f64`. A
/// panic is caught. All later calls then fail, and the host destroys the metric.
///
/// ```standalone_crate
/// use host_plugin_sdk::{Batch, Error, Host, Metric, NoConfig, Result, Values, export_plugin, fake};
///
/// struct TokenCount(i64);
///
/// impl Metric for TokenCount {
///     type Config = NoConfig;
///
///     fn create(_config: NoConfig, _host: Host) -> Result<Self> {
///         Ok(Self(0))
///     }
///     fn reset(&mut self) {
///         self.0 = 0;
///     }
///     fn update(&mut self, batch: &Batch<'_>) -> Result<()> {
///         self.0 += batch.scalar_i64("token_count")?;
///         Ok(())
///     }
///     fn export_state(&self) -> Vec<u8> {
///         self.0.to_le_bytes().to_vec()
///     }
///     fn merge_state(&mut self, state: &[u8]) -> Result<()> {
///         let state = state.try_into().map_err(|_| Error::new("a state has 8 bytes"))?;
///         self.0 += i64::from_le_bytes(state);
///         Ok(())
///     }
///     fn compute(&self, values: &mut Values<'_>) -> Result<()> {
///         values.put_f64("predicted_tokens", self.0 as f64)
///     }
/// }
///
/// export_plugin! {
///     description: "Number of predicted tokens of the evaluation set",
///     metric: TokenCount,
///     needs: ["token_count"],
///     devices: ["cpu"],
/// }
///
/// let plugin = fake::Plugin::load(&PLUGIN);
/// let mut metric = plugin.metric("{}").expect("created");
/// metric.update(&fake::Batch::new().with("token_count", 7i64)).expect("updated");
/// assert_eq!(metric.compute().expect("computed")["predicted_tokens"], 7.0);
/// ```
pub trait Metric: Sized + Send + 'static {
    /// The configuration, deserialized from JSON that the host has checked against the schema.
    type Config: DeserializeOwned;

    /// Creates a metric that has seen no batch.
    fn create(config: Self::Config, host: Host) -> Result<Self>;

    /// Resets the state to that of a new metric.
    fn reset(&mut self);

    /// Adds a batch to the state.
    fn update(&mut self, batch: &Batch<'_>) -> Result<()>;

    /// Returns the state as bytes. They must contain the version number of their layout.
    fn export_state(&self) -> Vec<u8>;

    /// Merges the exported state of another instance into this state. If the bytes are not a valid state, the
    /// method must return an error and leave this state unchanged.
    fn merge_state(&mut self, state: &[u8]) -> Result<()>;

    /// Passes the named values to `values`. Values can be infinite or NaN.
    fn compute(&self, values: &mut Values<'_>) -> Result<()>;
}

/// Receives the values of [`Metric::compute`].
///
/// ```
/// use host_plugin_sdk::{Result, Values};
///
/// fn compute(counts: &[u64; 3], values: &mut Values<'_>) -> Result<()> {
///     for (index, &count) in counts.iter().enumerate() {
///         values.put_f64(&format!("confusion/class_{index}"), count as f64)?;
///     }
///     Ok(())
/// }
/// ```
pub struct Values<'a> {
    out: Out,
    call: PhantomData<&'a HostOut>,
}

impl Values<'_> {
    /// Adds a value. A duplicate name is an error.
    pub fn put_f64(&mut self, name: &str, value: f64) -> Result<()> {
        self.out.put_f64(name, value)
    }
}

impl fmt::Debug for Values<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Values").finish_non_exhaustive()
    }
}

#[doc(hidden)]
pub const fn vtable<T: Metric, P: Package>() -> HostMetric {
    HostMetric {
        struct_size: size_of::<HostMetric>() as u32,
        flags: 0,
        create: Some(create::<T, P>),
        destroy: Some(instance::destroy::<T>),
        reset: Some(reset::<T>),
        update: Some(update::<T>),
        export_state: Some(export_state::<T>),
        merge_state: Some(merge_state::<T>),
        compute: Some(compute::<T>),
    }
}

unsafe extern "C" fn create<T: Metric, P: Package>(
    api: *const HostApi,
    config_json: HostStr,
    instance: *mut *mut c_void,
) -> HostStatus {
    // SAFETY: the host guarantees what `instance::create` requires.
    unsafe { instance::create(P::ID, api, config_json, instance, T::create) }
}

unsafe extern "C" fn reset<T: Metric>(instance: *mut c_void) -> HostStatus {
    // SAFETY: the host passes an instance that `create` returned and that is not destroyed.
    unsafe {
        instance::call(instance, |metric: &mut T, _| {
            metric.reset();
            Ok(())
        })
    }
}

unsafe extern "C" fn update<T: Metric>(
    instance: *mut c_void,
    batch: *const HostBatch,
) -> HostStatus {
    // SAFETY: as in `reset`. The batch is valid until this function returns.
    unsafe {
        instance::call(instance, |metric: &mut T, _| {
            metric.update(&Batch::new(batch)?)
        })
    }
}

unsafe extern "C" fn export_state<T: Metric>(
    instance: *mut c_void,
    out: *const HostOut,
) -> HostStatus {
    // SAFETY: as in `reset`. `out` is valid until this function returns.
    unsafe {
        instance::call(instance, |metric: &mut T, _| {
            Out::new(out)?.put_bytes(&metric.export_state())
        })
    }
}

unsafe extern "C" fn merge_state<T: Metric>(instance: *mut c_void, state: HostStr) -> HostStatus {
    // SAFETY: as in `reset`. The state's bytes are valid until this function returns.
    unsafe {
        instance::call(instance, |metric: &mut T, _| {
            metric.merge_state(state.as_bytes())
        })
    }
}

unsafe extern "C" fn compute<T: Metric>(instance: *mut c_void, out: *const HostOut) -> HostStatus {
    // SAFETY: as in `export_state`.
    unsafe {
        instance::call(instance, |metric: &mut T, _| {
            let mut values = Values {
                out: Out::new(out)?,
                call: PhantomData,
            };
            metric.compute(&mut values)
        })
    }
}
