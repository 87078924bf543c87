use std::ffi::c_void;

use host_plugin_abi::{
    DLDataType, DLDevice, DLTensor, HOST_TENSOR_READ_ONLY, HostBatch, HostStr, HostTensor,
};

/// The inputs of an evaluation batch.
///
/// ```
/// use host_plugin_sdk::fake::{Batch, Tensor};
///
/// let batch = Batch::new()
///     .at_step(100)
///     .with("loss_sum", 12.5)
///     .with("token_count", 6i64)
///     .with("nll", Tensor::f32(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
/// let tokens = batch.read(|batch| batch.scalar_i64("token_count")); // as in a metric
/// assert_eq!(tokens, Ok(6));
/// batch.view(|raw| assert_eq!((raw.step, raw.n_tensors), (100, 3))); // as in C
/// ```
#[derive(Clone, Debug, Default)]
pub struct Batch {
    step: u64,
    tensors: Vec<(String, Tensor)>,
}

/// A tensor that owns its elements.
///
/// ```
/// use host_plugin_sdk::fake::{Batch, Tensor};
///
/// let refused = |tensor: Tensor| {
///     let batch = Batch::new().with("labels", tensor);
///     batch.read(|batch| batch.tensor("labels")?.as_i64().map(|_| ())).is_err()
/// };
/// let labels = Tensor::i64(&[2, 2], &[1, 2, 3, 4]);
/// assert!(!refused(labels.clone()));
/// assert!(!refused(labels.clone().byte_offset(8).strided(&[3], &[1])));
/// assert!(refused(labels.clone().strided(&[2, 2], &[1, 2]))); // column-major
/// assert!(refused(labels.clone().claim_dtype(0, 32, 1))); // 32-bit integers
/// assert!(refused(labels.claim_device(2))); // on CUDA
/// assert!(refused(Tensor::f32(&[1], &[1.0])) && refused(Tensor::f64(&[0], &[])));
/// ```
#[derive(Clone, Debug)]
pub struct Tensor {
    /// The elements, stored in words instead of bytes so that they are aligned.
    data: Vec<u64>,
    shape: Vec<i64>,
    strides: Vec<i64>,
    byte_offset: u64,
    dtype: DLDataType,
    device: DLDevice,
}

impl Batch {
    /// Creates a batch of step 1, without inputs.
    pub fn new() -> Self {
        Self {
            step: 1,
            tensors: Vec::new(),
        }
    }

    /// Sets the step.
    #[must_use]
    pub fn at_step(mut self, step: u64) -> Self {
        self.step = step;
        self
    }

    /// Adds an input: a number or a [`Tensor`].
    #[must_use]
    pub fn with(mut self, name: &str, tensor: impl Into<Tensor>) -> Self {
        self.tensors.push((name.to_owned(), tensor.into()));
        self
    }

    /// Passes the batch to a function, in the same form as to [`Metric::update`](crate::Metric::update).
    pub fn read<R>(&self, call: impl FnOnce(&crate::Batch<'_>) -> R) -> R {
        // SAFETY: the view is valid during the call.
        self.view(|raw| call(&unsafe { crate::Batch::new(raw) }.expect("a valid batch")))
    }

    /// Passes the batch, as the C struct, to a function.
    pub fn view<R>(&self, call: impl FnOnce(&HostBatch) -> R) -> R {
        let views: Vec<DLTensor> = self.tensors.iter().map(|(_, t)| t.view()).collect();
        let tensors: Vec<HostTensor> = std::iter::zip(&self.tensors, &views)
            .map(|((name, _), dl)| HostTensor {
                struct_size: size_of::<HostTensor>() as u32,
                flags: HOST_TENSOR_READ_ONLY,
                name: HostStr::new(name),
                dl,
                stream: std::ptr::null_mut(),
            })
            .collect();
        call(&HostBatch {
            struct_size: size_of::<HostBatch>() as u32,
            flags: 0,
            step: self.step,
            tensors: tensors.as_ptr(),
            n_tensors: tensors.len(),
        })
    }
}

impl Tensor {
    /// Creates a tensor of 32-bit floats in row-major order.
    ///
    /// # Panics
    /// Panics if the number of elements does not match the shape.
    pub fn f32(shape: &[i64], data: &[f32]) -> Self {
        Self::new(
            shape,
            2,
            32,
            data.len(),
            data.iter().flat_map(|x| x.to_ne_bytes()),
        )
    }

    /// Creates a tensor of 64-bit floats in row-major order.
    ///
    /// # Panics
    /// Panics if the number of elements does not match the shape.
    pub fn f64(shape: &[i64], data: &[f64]) -> Self {
        Self::new(
            shape,
            2,
            64,
            data.len(),
            data.iter().flat_map(|x| x.to_ne_bytes()),
        )
    }

    /// Creates a tensor of 64-bit integers in row-major order.
    ///
    /// # Panics
    /// Panics if the number of elements does not match the shape.
    pub fn i64(shape: &[i64], data: &[i64]) -> Self {
        Self::new(
            shape,
            0,
            64,
            data.len(),
            data.iter().flat_map(|x| x.to_ne_bytes()),
        )
    }

    /// Replaces the shape and the strides (in elements). They are not checked against the data.
    #[must_use]
    pub fn strided(mut self, shape: &[i64], strides: &[i64]) -> Self {
        self.shape = shape.to_vec();
        self.strides = strides.to_vec();
        self
    }

    /// Sets the offset, in bytes, of the first element.
    #[must_use]
    pub fn byte_offset(mut self, bytes: u64) -> Self {
        self.byte_offset = bytes;
        self
    }

    /// Claims a different element type (DLPack's code, bits and lanes).
    #[must_use]
    pub fn claim_dtype(mut self, code: u8, bits: u8, lanes: u16) -> Self {
        self.dtype = DLDataType { code, bits, lanes };
        self
    }

    /// Claims a different device (DLPack's type: 2 is CUDA).
    #[must_use]
    pub fn claim_device(mut self, device_type: i32) -> Self {
        self.device.device_type = device_type;
        self
    }

    fn new(shape: &[i64], code: u8, bits: u8, len: usize, bytes: impl Iterator<Item = u8>) -> Self {
        let numel: i64 = shape.iter().product();
        assert_eq!(
            usize::try_from(numel),
            Ok(len),
            "elements for shape {shape:?}"
        );
        let bytes: Vec<u8> = bytes.collect();
        let data = bytes
            .chunks(8)
            .map(|chunk| {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                u64::from_ne_bytes(word)
            })
            .collect();
        let strides = (0..shape.len())
            .map(|axis| shape[axis + 1..].iter().product())
            .collect();
        Self {
            data,
            shape: shape.to_vec(),
            strides,
            byte_offset: 0,
            dtype: DLDataType {
                code,
                bits,
                lanes: 1,
            },
            device: DLDevice {
                device_type: 1,
                device_id: 0,
            },
        }
    }

    fn view(&self) -> DLTensor {
        DLTensor {
            data: match self.data.as_slice() {
                [] => std::ptr::null_mut(),
                data => data.as_ptr().cast_mut().cast::<c_void>(),
            },
            device: self.device,
            ndim: i32::try_from(self.shape.len()).expect("few dimensions"),
            dtype: self.dtype,
            shape: self.shape.as_ptr().cast_mut(),
            strides: self.strides.as_ptr().cast_mut(),
            byte_offset: self.byte_offset,
        }
    }
}

impl From<f64> for Tensor {
    fn from(scalar: f64) -> Self {
        Self::f64(&[], &[scalar])
    }
}

impl From<i64> for Tensor {
    fn from(scalar: i64) -> Self {
        Self::i64(&[], &[scalar])
    }
}
