use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr;

use host_core::{Device, Error, ErrorKind, Metric, MetricBatch, Need, Result, TensorView};
use host_plugin_abi::{
    DLDevice, DLTensor, HOST_TENSOR_READ_ONLY, HostBatch, HostCreate, HostDestroy, HostMetric,
    HostOut, HostStatus, HostStr, HostTensor,
};

use crate::PluginKind;
use crate::instance::Instance;
use crate::out::Output;
use crate::param_groups::dl_dtype;
use crate::vtable::required;

type Put = unsafe extern "C" fn(*mut c_void, *const HostOut) -> HostStatus;

/// A plugin's function table for a metric, with all required functions present.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the ABI documents the fields of its table")]
pub struct MetricFunctions {
    pub create: HostCreate,
    pub destroy: HostDestroy,
    pub reset: unsafe extern "C" fn(*mut c_void) -> HostStatus,
    pub update: unsafe extern "C" fn(*mut c_void, *const HostBatch) -> HostStatus,
    pub export_state: Put,
    pub merge_state: unsafe extern "C" fn(*mut c_void, HostStr) -> HostStatus,
    pub compute: Put,
}

impl MetricFunctions {
    pub(crate) fn from_table(table: HostMetric) -> Result<Self, String> {
        let kind = PluginKind::Metric;
        Ok(Self {
            create: required(kind, "create", table.create)?,
            destroy: required(kind, "destroy", table.destroy)?,
            reset: required(kind, "reset", table.reset)?,
            update: required(kind, "update", table.update)?,
            export_state: required(kind, "export_state", table.export_state)?,
            merge_state: required(kind, "merge_state", table.merge_state)?,
            compute: required(kind, "compute", table.compute)?,
        })
    }
}

/// Adapts a plugin's metric to the host's `Metric` trait.
#[derive(Debug)]
pub(crate) struct PluginMetric {
    pub(crate) instance: Instance,
    pub(crate) functions: MetricFunctions,
    pub(crate) needs: Vec<Need>,
    pub(crate) reads_cuda: bool,
}

impl PluginMetric {
    /// Calls a plugin function that writes its result to an [`Output`]. Converts this output with `take`.
    fn output<T>(
        &mut self,
        call: &'static str,
        put: Put,
        take: impl FnOnce(Output) -> Result<T, String>,
    ) -> Result<T> {
        let put = |instance, output: &mut Output| {
            let out = output.callbacks();
            // SAFETY: the library created the instance; the callbacks' context outlives the call.
            unsafe { put(instance, &raw const out) }
        };
        self.instance
            .call(call, Output::default(), put, take)
            .map_err(|failure| self.instance.error(call, &failure))
    }
}

impl Metric for PluginMetric {
    fn id(&self) -> &str {
        self.instance.id()
    }

    fn needs(&self) -> &[Need] {
        &self.needs
    }

    fn reads_cuda(&self) -> bool {
        self.reads_cuda
    }

    fn reset(&mut self) -> Result<()> {
        // A new instance is in the same state as a reset one.
        self.instance.renew()?;
        let reset = self.functions.reset;
        // SAFETY: the library created the instance.
        self.instance
            .act("reset", |instance| unsafe { reset(instance) })
    }

    fn update(&mut self, batch: MetricBatch<'_>) -> Result<()> {
        let (instance, update) = (&mut self.instance, self.functions.update);
        with_batch(&self.needs, self.reads_cuda, batch, |batch| {
            // SAFETY: the library created the instance. The batch and everything it points to outlive the
            // call; for the data, `TensorView` guarantees this.
            instance.act("update", |instance| unsafe { update(instance, batch) })
        })?
    }

    fn export_state(&mut self) -> Result<Vec<u8>> {
        let export_state = self.functions.export_state;
        self.output("export_state", export_state, Output::into_bytes)
    }

    fn merge_state(&mut self, state: &[u8]) -> Result<()> {
        let merge_state = self.functions.merge_state;
        // SAFETY: the library created the instance; the bytes outlive the call.
        self.instance.act("merge_state", |instance| unsafe {
            merge_state(instance, HostStr::from_bytes(state))
        })
    }

    fn compute(&mut self) -> Result<Vec<(String, f64)>> {
        let compute = self.functions.compute;
        self.output("compute", compute, Output::into_values)
    }

    fn lost(&self) -> Option<String> {
        self.instance.lost()
    }
}

/// Calls `body` with the batch in the ABI's form. The batch contains exactly the tensors in `needs`, so a
/// plugin can rely on their presence. `needs` has no duplicates.
///
/// # Errors
/// Returns an error if the batch lacks an input or has an invalid one, which is a bug in the host.
#[inline]
pub fn with_batch<T>(
    needs: &[Need],
    reads_cuda: bool,
    batch: MetricBatch<'_>,
    body: impl FnOnce(&HostBatch) -> T,
) -> Result<T> {
    // On the stack, so that a call allocates no memory.
    let mut views = [const { MaybeUninit::<DLTensor>::uninit() }; Need::ALL.len()];
    let mut tensors = [const { MaybeUninit::<HostTensor>::uninit() }; Need::ALL.len()];
    assert!(
        needs.len() <= tensors.len(),
        "a metric must not list a need twice"
    );
    let places = views.iter_mut().zip(&mut tensors);
    for (&need, (view_place, place)) in needs.iter().zip(places) {
        let view = input(&batch, need)?;
        if view.device != Device::Cpu && !reads_cuda {
            return Err(host_fault(
                need,
                "is on a device that the metric cannot read",
            ));
        }
        place.write(HostTensor {
            struct_size: size_of::<HostTensor>() as u32,
            flags: HOST_TENSOR_READ_ONLY,
            name: HostStr::new(need.name()),
            dl: view_place.write(dl_tensor(view)),
            stream: ptr::null_mut(),
        });
    }
    Ok(body(&HostBatch {
        struct_size: size_of::<HostBatch>() as u32,
        flags: 0,
        step: batch.step,
        // The loop above has written one tensor for each need.
        tensors: tensors.as_ptr().cast(),
        n_tensors: needs.len(),
    }))
}

/// Returns DLPack's view of a tensor. The tensor must outlive the view.
#[inline]
fn dl_tensor(view: &TensorView<'_>) -> DLTensor {
    let is_empty = view.shape.contains(&0);
    let sizes = |values: &[i64]| match values {
        [] => ptr::null_mut(),
        values => values.as_ptr().cast_mut(),
    };
    DLTensor {
        data: if is_empty {
            ptr::null_mut()
        } else {
            view.data.cast_mut()
        },
        device: match view.device {
            Device::Cpu => DLDevice {
                device_type: 1,
                device_id: 0,
            },
            Device::Cuda(number) => DLDevice {
                device_type: 2,
                device_id: i32::try_from(number).expect("a machine has few devices"),
            },
        },
        ndim: i32::try_from(view.shape.len()).expect("a tensor has few dimensions"),
        dtype: dl_dtype(view.dtype),
        shape: sizes(view.shape),
        strides: sizes(view.strides),
        byte_offset: 0,
    }
}

/// Returns an input that a metric needs. A missing input is an error, because every batch must contain it.
#[inline]
pub(crate) fn input<'a>(batch: &MetricBatch<'a>, need: Need) -> Result<&'a TensorView<'a>> {
    let view = batch.tensors.iter().find(|(name, _)| *name == need);
    let (_, view) = view.ok_or_else(|| host_fault(need, "is missing from the batch"))?;
    if view.shape.len() != view.strides.len() {
        return Err(host_fault(
            need,
            "has a number of strides that differs from its number of sizes",
        ));
    }
    Ok(view)
}

/// Creates an error for a bug in the host itself. The host reports it instead of passing invalid data to a
/// plugin.
pub(crate) fn host_fault(need: Need, fault: &str) -> Error {
    Error::new(
        ErrorKind::System,
        format!("the metric input {} {fault}", need.name()),
    )
    .hint("this is a bug in the host; please report it")
}
