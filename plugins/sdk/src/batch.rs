use std::fmt;
use std::marker::PhantomData;

use host_plugin_abi::{HostBatch, HostTensor};

use crate::{Error, Result, Tensor, instance, sized};

/// The inputs of one evaluation batch, as listed in the manifest's `needs`.
///
/// ```
/// use host_plugin_sdk::{Batch, Result, fake};
///
/// fn mean_loss(batch: &Batch<'_>) -> Result<f64> {
///     let tokens = batch.scalar_i64("token_count")?;
///     Ok(batch.scalar_f64("loss_sum")? / tokens as f64)
/// }
///
/// let batch = fake::Batch::new().with("loss_sum", 9.0).with("token_count", 6i64).at_step(50);
/// batch.read(|batch| {
///     assert_eq!(mean_loss(batch), Ok(1.5));
///     assert_eq!(batch.step(), 50);
///     assert!(batch.tensor("token_count")?.shape().is_empty()); // a scalar
///     let names: Vec<&str> = batch.tensors()?.map(|tensor| Ok(tensor?.name())).collect::<Result<_>>()?;
///     assert_eq!(names, ["loss_sum", "token_count"]);
///     assert!(batch.tensor("nll").is_err()); // not in the manifest's `needs`
///     Ok::<_, host_plugin_sdk::Error>(())
/// })?;
/// # Ok::<_, host_plugin_sdk::Error>(())
/// ```
pub struct Batch<'a> {
    step: u64,
    tensors: *const HostTensor,
    n_tensors: usize,
    owner: PhantomData<&'a HostTensor>,
}

impl<'a> Batch<'a> {
    /// Reads the host's batch, for code that uses the ABI without [`export_plugin!`](crate::export_plugin).
    ///
    /// # Safety
    /// `batch` is null, or points to data that is valid for `'a` according to the ABI.
    #[doc(hidden)]
    pub unsafe fn new(batch: *const HostBatch) -> Result<Self> {
        // SAFETY: guaranteed by the caller.
        let batch = unsafe { sized::read(batch) }?;
        Ok(Self {
            step: batch.step,
            tensors: batch.tensors,
            n_tensors: batch.n_tensors,
            owner: PhantomData,
        })
    }

    /// Returns the optimizer step of the evaluation.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Returns the input with this name.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'a>> {
        // SAFETY: the caller of `new` guaranteed that the array is valid according to the ABI.
        for tensor in unsafe { sized::read_array(self.tensors, self.n_tensors) }? {
            let tensor = tensor?;
            if tensor.name.len != name.len() {
                continue;
            }
            // SAFETY: as above. The guarantee includes the name.
            if unsafe { instance::text(tensor.name, "a tensor's name") }? == name {
                // SAFETY: as above.
                return unsafe { Tensor::new(&tensor) };
            }
        }
        Err(Error::unsupported(format!(
            "the host passed no tensor {name:?}; add it to the manifest's `needs`"
        )))
    }

    /// Returns the 64-bit float with this name, such as `loss_sum`.
    pub fn scalar_f64(&self, name: &str) -> Result<f64> {
        self.tensor(name)?.scalar()
    }

    /// Returns the 64-bit integer with this name, such as `token_count`.
    pub fn scalar_i64(&self, name: &str) -> Result<i64> {
        self.tensor(name)?.scalar()
    }

    /// Returns all inputs, in the host's order.
    pub fn tensors(&self) -> Result<impl Iterator<Item = Result<Tensor<'a>>>> {
        // SAFETY: the caller of `new` guaranteed that the array is valid according to the ABI.
        let tensors = unsafe { sized::read_array(self.tensors, self.n_tensors) }?;
        // SAFETY: as above. The guarantee includes the data of each tensor.
        Ok(tensors.map(|tensor| unsafe { Tensor::new(&tensor?) }))
    }
}

impl fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("step", &self.step)
            .field("n_tensors", &self.n_tensors)
            .finish()
    }
}
