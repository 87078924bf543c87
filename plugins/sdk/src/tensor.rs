use std::fmt;
use std::marker::PhantomData;
use std::mem::{align_of, size_of};

use host_plugin_abi::{DLDataType, DLTensor, HostTensor};

use crate::{Error, Result, instance};

/// DLPack's `kDLCPU`, `kDLCUDA` and `kDLCUDAHost`. The CPU can read memory of the first and the last kind.
const CPU: i32 = 1;
const CUDA: i32 = 2;
const CUDA_HOST: i32 = 3;

/// A tensor of the host, borrowed for the call.
///
/// The layout is checked when the tensor is read. Reading a tensor returns an
/// [`unsupported`](Error::unsupported) error if it is not in main memory or does not have the requested type.
///
/// ```
/// use host_plugin_sdk::{Device, Dtype, fake};
///
/// let nll = fake::Tensor::f32(&[2, 3], &[0.5, 1.0, 1.5, 2.0, 2.5, 3.0]);
/// let batch = fake::Batch::new().with("nll", nll.clone()).with("loss_sum", 10.5);
/// batch.read(|batch| {
///     let nll = batch.tensor("nll")?;
///     assert_eq!((nll.name(), nll.shape(), nll.numel()), ("nll", &[2, 3][..], 6));
///     assert_eq!((nll.dtype(), nll.device()), (Dtype::F32, Device::Cpu));
///     assert_eq!(nll.as_f32()?.chunks(3).map(|row| row[0]).collect::<Vec<_>>(), [0.5, 2.0]);
///     assert_eq!(batch.tensor("loss_sum")?.scalar::<f64>()?, 10.5);
///     assert!(nll.as_i64().is_err() && nll.as_f64().is_err()); // the elements have another type
///     Ok::<_, host_plugin_sdk::Error>(())
/// })?;
///
/// // A host can pass any strides. Iterators support them; slices require a contiguous tensor.
/// let transposed = fake::Batch::new().with("nll", nll.strided(&[3, 2], &[1, 3]));
/// transposed.read(|batch| {
///     let nll = batch.tensor("nll")?;
///     assert_eq!((nll.strides(), nll.is_contiguous()), (&[1, 3][..], false));
///     assert_eq!(nll.iter_f32()?.collect::<Vec<_>>(), [0.5, 2.0, 1.0, 2.5, 1.5, 3.0]);
///     assert!(nll.as_f32().is_err());
///     assert!(nll.iter_f64().is_err() && nll.iter_i64().is_err());
///     Ok::<_, host_plugin_sdk::Error>(())
/// })?;
/// # Ok::<_, host_plugin_sdk::Error>(())
/// ```
#[derive(Clone, Copy)]
pub struct Tensor<'a> {
    name: &'a str,
    dl: DLTensor,
    shape: &'a [i64],
    strides: &'a [i64],
    numel: usize,
}

/// The type of a tensor's elements.
///
/// ```
/// use host_plugin_sdk::{Dtype, Error, Result};
///
/// fn bytes(dtype: Dtype) -> Result<usize> {
///     match dtype {
///         Dtype::Bf16 => Ok(2),
///         Dtype::F32 | Dtype::I32 => Ok(4),
///         Dtype::F64 | Dtype::I64 => Ok(8),
///         other => Err(Error::unsupported(format!("elements of {other:?}"))),
///     }
/// }
/// assert_eq!(bytes(Dtype::Bf16), Ok(2));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dtype {
    /// 32-bit float.
    F32,
    /// 64-bit float.
    F64,
    /// bfloat16.
    Bf16,
    /// 32-bit integer.
    I32,
    /// 64-bit integer.
    I64,
    /// Another DLPack type.
    Other(DLDataType),
}

/// The device of a tensor.
///
/// ```
/// use host_plugin_sdk::{Device, fake};
///
/// let there = fake::Tensor::from(1.0).claim_device(2); // DLPack's number for CUDA
/// fake::Batch::new().with("loss_sum", there).read(|batch| {
///     assert_eq!(batch.tensor("loss_sum").expect("there").device(), Device::Cuda(0));
///     assert!(batch.scalar_f64("loss_sum").is_err()); // the SDK reads main memory only
/// });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Device {
    /// Main memory.
    Cpu,
    /// The CUDA device with this index.
    Cuda(i32),
    /// Another DLPack device, by its type.
    Other(i32),
}

/// A type that the elements of a [`Tensor`] can be read as.
///
/// ```
/// use host_plugin_sdk::{Dtype, Element, Result, Tensor};
///
/// fn largest<T: Element + PartialOrd>(tensor: &Tensor<'_>) -> Result<Option<T>> {
///     Ok(tensor.iter::<T>()?.reduce(|a, b| if b > a { b } else { a }))
/// }
/// assert_eq!(i64::DTYPE, Dtype::I64);
/// ```
///
/// # Safety
/// Every bit pattern is a valid value, and the layout is that of `DTYPE`.
#[expect(private_bounds, reason = "only the SDK implements this trait")]
pub unsafe trait Element: Copy + Sealed {
    /// The data type of a tensor with elements of this type.
    const DTYPE: Dtype;
}

trait Sealed {}

macro_rules! element {
    ($($T:ty: $dtype:ident,)*) => {$(
        impl Sealed for $T {}
        // SAFETY: every bit pattern is a valid value of a primitive number type, and `DTYPE` describes its
        // layout.
        unsafe impl Element for $T {
            const DTYPE: Dtype = Dtype::$dtype;
        }
    )*};
}

element! { f32: F32, f64: F64, i32: I32, i64: I64, }

impl From<DLDataType> for Dtype {
    fn from(dtype: DLDataType) -> Self {
        match (dtype.code, dtype.bits, dtype.lanes) {
            (0, 32, 1) => Self::I32,
            (0, 64, 1) => Self::I64,
            (2, 32, 1) => Self::F32,
            (2, 64, 1) => Self::F64,
            (4, 16, 1) => Self::Bf16,
            _ => Self::Other(dtype),
        }
    }
}

impl<'a> Tensor<'a> {
    /// # Safety
    /// The data that `tensor` points to is valid for `'a`, according to the ABI.
    pub(crate) unsafe fn new(tensor: &HostTensor) -> Result<Self> {
        // SAFETY: guaranteed by the caller.
        let name = unsafe { instance::text(tensor.name, "a tensor's name") }?;
        let broken = |what: &str| Error::new(format!("the host passed tensor {name:?} {what}"));
        if tensor.dl.is_null() {
            return Err(broken("without a DLTensor"));
        }
        // SAFETY: the pointer is not null, and the caller guarantees that it is valid.
        let dl = unsafe { tensor.dl.read() };
        let ndim = usize::try_from(dl.ndim).map_err(|_| broken("with a negative ndim"))?;
        if ndim > 0 && (dl.shape.is_null() || dl.strides.is_null()) {
            return Err(broken("without shape or strides"));
        }
        let sizes = |first: *const i64| match ndim {
            0 => &[][..],
            // SAFETY: the pointer is not null, and the caller guarantees that it points to `ndim` numbers.
            _ => unsafe { std::slice::from_raw_parts(first, ndim) },
        };
        let (shape, strides) = (sizes(dl.shape), sizes(dl.strides));
        let numel = shape
            .iter()
            .try_fold(1usize, |numel, &size| {
                numel.checked_mul(usize::try_from(size).ok()?)
            })
            .ok_or_else(|| broken("with an invalid size"))?;
        Ok(Self {
            name,
            dl,
            shape,
            strides,
            numel,
        })
    }

    /// Returns the tensor's name, as listed in the manifest's `needs`.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// Returns the shape, which is empty for a scalar.
    pub fn shape(&self) -> &'a [i64] {
        self.shape
    }

    /// Returns the strides in elements, one for each dimension.
    pub fn strides(&self) -> &'a [i64] {
        self.strides
    }

    /// Returns the number of elements.
    pub fn numel(&self) -> usize {
        self.numel
    }

    /// Returns the type of the elements.
    pub fn dtype(&self) -> Dtype {
        self.dl.dtype.into()
    }

    /// Returns the device of the data.
    pub fn device(&self) -> Device {
        match self.dl.device.device_type {
            CPU | CUDA_HOST => Device::Cpu,
            CUDA => Device::Cuda(self.dl.device.device_id),
            other => Device::Other(other),
        }
    }

    /// Whether the elements are stored in row-major order without gaps.
    pub fn is_contiguous(&self) -> bool {
        let mut expected = 1i64;
        for (&size, &stride) in self.shape.iter().zip(self.strides).rev() {
            if size != 1 && stride != expected {
                return self.numel == 0;
            }
            expected = expected.saturating_mul(size);
        }
        true
    }

    /// Returns the elements as a slice if the tensor [is contiguous](Self::is_contiguous).
    ///
    /// ```
    /// # use host_plugin_sdk::fake::{Batch, Tensor};
    /// Batch::new().with("labels", Tensor::i64(&[3], &[7, 8, 9])).read(|batch| {
    ///     let labels = batch.tensor("labels").expect("there");
    ///     assert_eq!(labels.as_slice::<i64>(), Ok(&[7, 8, 9][..]));
    /// });
    /// ```
    pub fn as_slice<T: Element>(&self) -> Result<&'a [T]> {
        if !self.is_contiguous() {
            return Err(Error::unsupported(format!(
                "tensor {:?} is not contiguous: shape {:?}, strides {:?}",
                self.name, self.shape, self.strides
            )));
        }
        let first = self.first::<T>()?;
        // SAFETY: `first` checked the type, the device and the alignment, and that all elements are within
        // the address space. The host guarantees that all elements are readable for `'a`.
        Ok(unsafe { std::slice::from_raw_parts(first, self.numel) })
    }

    /// Returns an iterator over the elements in row-major order, for any strides.
    ///
    /// ```
    /// # use host_plugin_sdk::fake::{Batch, Tensor};
    /// let same = Tensor::i64(&[1], &[7]).strided(&[3], &[0]); // one number, repeated three times
    /// Batch::new().with("labels", same).read(|batch| {
    ///     let labels = batch.tensor("labels").expect("there");
    ///     assert_eq!(labels.iter::<i64>().expect("numbers").sum::<i64>(), 21);
    /// });
    /// ```
    pub fn iter<T: Element>(&self) -> Result<Elements<'a, T>> {
        Ok(Elements {
            first: self.first::<T>()?,
            shape: self.shape,
            strides: self.strides,
            index: vec![0; self.shape.len()],
            offset: 0,
            remaining: self.numel,
            owner: PhantomData,
        })
    }

    /// Calls [`as_slice`](Self::as_slice) for 32-bit floats.
    pub fn as_f32(&self) -> Result<&'a [f32]> {
        self.as_slice()
    }

    /// Calls [`as_slice`](Self::as_slice) for 64-bit floats.
    pub fn as_f64(&self) -> Result<&'a [f64]> {
        self.as_slice()
    }

    /// Calls [`as_slice`](Self::as_slice) for 64-bit integers.
    pub fn as_i64(&self) -> Result<&'a [i64]> {
        self.as_slice()
    }

    /// Calls [`iter`](Self::iter) for 32-bit floats.
    pub fn iter_f32(&self) -> Result<Elements<'a, f32>> {
        self.iter()
    }

    /// Calls [`iter`](Self::iter) for 64-bit floats.
    pub fn iter_f64(&self) -> Result<Elements<'a, f64>> {
        self.iter()
    }

    /// Calls [`iter`](Self::iter) for 64-bit integers.
    pub fn iter_i64(&self) -> Result<Elements<'a, i64>> {
        self.iter()
    }

    /// Returns the only element of a tensor with one element.
    pub fn scalar<T: Element>(&self) -> Result<T> {
        if self.numel != 1 {
            return Err(Error::unsupported(format!(
                "tensor {:?} is not a scalar, but has shape {:?}",
                self.name, self.shape
            )));
        }
        // SAFETY: `first` checked the tensor, which has one element.
        Ok(unsafe { self.first::<T>()?.read() })
    }

    /// Checks that all elements are aligned and within the address space, and returns the address of the
    /// first element. Returns a dangling, aligned pointer for an empty tensor.
    fn first<T: Element>(&self) -> Result<*const T> {
        if self.device() != Device::Cpu {
            return Err(Error::unsupported(format!(
                "tensor {:?} is on {:?}, but only main memory can be read",
                self.name,
                self.device()
            )));
        }
        if self.dtype() != T::DTYPE {
            return Err(Error::unsupported(format!(
                "tensor {:?} has elements of type {:?}, not {:?}",
                self.name,
                self.dtype(),
                T::DTYPE
            )));
        }
        if self.numel == 0 {
            return Ok(std::ptr::dangling());
        }
        self.place::<T>().ok_or_else(|| {
            Error::new(format!(
                "the host passed tensor {:?} at an invalid address",
                self.name
            ))
        })
    }

    fn place<T: Element>(&self) -> Option<*const T> {
        let offset = usize::try_from(self.dl.byte_offset).ok()?;
        let first = self.dl.data.cast_const().wrapping_byte_add(offset);
        if self.dl.data.is_null() || first.addr() != self.dl.data.addr().checked_add(offset)? {
            return None;
        }
        // The lowest and the highest offset of an element. Offsets are relative to the first element, in
        // units of elements.
        let (mut low, mut high) = (0i64, 0i64);
        for (&size, &stride) in self.shape.iter().zip(self.strides) {
            let reach = stride.checked_mul(size - 1)?;
            let end = if reach < 0 { &mut low } else { &mut high };
            *end = end.checked_add(reach)?;
        }
        let element = isize::try_from(size_of::<T>()).ok()?;
        let low = isize::try_from(low).ok()?.checked_mul(element)?;
        let high = isize::try_from(high)
            .ok()?
            .checked_add(1)?
            .checked_mul(element)?;
        high.checked_sub(low)?;
        first.addr().checked_add_signed(low)?;
        first.addr().checked_add_signed(high)?;
        let aligned = first.addr().is_multiple_of(align_of::<T>());
        aligned.then_some(first.cast())
    }
}

impl fmt::Debug for Tensor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tensor")
            .field("name", &self.name)
            .field("shape", &self.shape)
            .field("dtype", &self.dtype())
            .field("device", &self.device())
            .finish_non_exhaustive()
    }
}

/// The elements of a [`Tensor`] in row-major order.
///
/// ```
/// use host_plugin_sdk::{Elements, Result, Tensor};
///
/// /// The sum and the number of elements.
/// fn sum(tensor: &Tensor<'_>) -> Result<(f64, usize)> {
///     let elements: Elements<'_, f32> = tensor.iter_f32()?;
///     let count = elements.len();
///     Ok((elements.map(f64::from).sum(), count))
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Elements<'a, T> {
    first: *const T,
    shape: &'a [i64],
    strides: &'a [i64],
    /// Index of the next element.
    index: Vec<i64>,
    /// Offset of the next element. It is relative to the first element, in units of elements.
    offset: i64,
    remaining: usize,
    owner: PhantomData<&'a T>,
}

impl<T: Element> Iterator for Elements<'_, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.remaining = self.remaining.checked_sub(1)?;
        // SAFETY: `Tensor::first` checked the addresses of all elements, and `offset` is the offset of an
        // element within the shape.
        let element = unsafe { self.first.offset(self.offset as isize).read() };
        for axis in (0..self.shape.len()).rev() {
            // The arithmetic wraps, because the offset after the last element can be outside the checked
            // range.
            self.offset = self.offset.wrapping_add(self.strides[axis]);
            self.index[axis] += 1;
            if self.index[axis] < self.shape[axis] {
                break;
            }
            self.offset = self
                .offset
                .wrapping_sub(self.strides[axis].wrapping_mul(self.shape[axis]));
            self.index[axis] = 0;
        }
        Some(element)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.remaining, Some(self.remaining))
    }
}

impl<T: Element> ExactSizeIterator for Elements<'_, T> {}
