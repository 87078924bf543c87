use std::fmt;
use std::marker::PhantomData;
use std::mem::{align_of, size_of};

use host_plugin_abi::{DLDataType, DLTensor, HostTensor};

use crate::{Error, Result, instance};

/// DLPack's `kDLCPU` and `kDLCUDAHost`, both readable here, and `kDLCUDA`.
const CPU: i32 = 1;
const CUDA: i32 = 2;
const CUDA_HOST: i32 = 3;

/// A tensor of the host's, borrowed for the call.
///
/// Its layout is checked when it is read: a tensor that does not lie in main memory, or whose type
/// is another than asked for, gives an [`unsupported`](Error::unsupported) error.
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
///     assert!(nll.as_i64().is_err() && nll.as_f64().is_err()); // it holds no such numbers
///     Ok::<_, host_plugin_sdk::Error>(())
/// })?;
///
/// // A host may pass any strides: iterators follow them, slices refuse what is not contiguous.
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

/// Type of a tensor's elements.
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
    /// Another of DLPack's.
    Other(DLDataType),
}

/// Where a tensor lies.
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
    /// The CUDA device of this number.
    Cuda(i32),
    /// Another of DLPack's, by its type.
    Other(i32),
}

/// What an element of a [`Tensor`] can be read as.
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
/// Every pattern of bits is a value of it, and it is laid out as `DTYPE` says.
#[expect(private_bounds, reason = "which types there are is the SDK's to say")]
pub unsafe trait Element: Copy + Sealed {
    /// The type of a tensor of these.
    const DTYPE: Dtype;
}

trait Sealed {}

macro_rules! element {
    ($($T:ty: $dtype:ident,)*) => {$(
        impl Sealed for $T {}
        // SAFETY: a plain number.
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
    /// What `tensor` points to is as the ABI promises and stays so for `'a`.
    pub(crate) unsafe fn new(tensor: &HostTensor) -> Result<Self> {
        // SAFETY: the caller's promise.
        let name = unsafe { instance::text(tensor.name, "a tensor's name") }?;
        let broken = |what: &str| Error::new(format!("the host passed tensor {name:?} {what}"));
        if tensor.dl.is_null() {
            return Err(broken("without a DLTensor"));
        }
        // SAFETY: not null, and the caller's promise.
        let dl = unsafe { tensor.dl.read() };
        let ndim = usize::try_from(dl.ndim).map_err(|_| broken("of less than 0 dimensions"))?;
        if ndim > 0 && (dl.shape.is_null() || dl.strides.is_null()) {
            return Err(broken("without shape or strides"));
        }
        let sizes = |first: *const i64| match ndim {
            0 => &[][..],
            // SAFETY: not null, and `ndim` numbers lie there, by the caller's promise.
            _ => unsafe { std::slice::from_raw_parts(first, ndim) },
        };
        let (shape, strides) = (sizes(dl.shape), sizes(dl.strides));
        let numel = shape
            .iter()
            .try_fold(1usize, |numel, &size| {
                numel.checked_mul(usize::try_from(size).ok()?)
            })
            .ok_or_else(|| broken("of a size that cannot be"))?;
        Ok(Self {
            name,
            dl,
            shape,
            strides,
            numel,
        })
    }

    /// Its name in the manifest's `needs`.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// Its sizes; empty for a scalar.
    pub fn shape(&self) -> &'a [i64] {
        self.shape
    }

    /// Its strides in elements, as many as sizes.
    pub fn strides(&self) -> &'a [i64] {
        self.strides
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.numel
    }

    /// Type of its elements.
    pub fn dtype(&self) -> Dtype {
        self.dl.dtype.into()
    }

    /// Where it lies.
    pub fn device(&self) -> Device {
        match self.dl.device.device_type {
            CPU | CUDA_HOST => Device::Cpu,
            CUDA => Device::Cuda(self.dl.device.device_id),
            other => Device::Other(other),
        }
    }

    /// Whether its elements lie in row-major order without gaps.
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

    /// The elements as a slice, if the tensor [is contiguous](Self::is_contiguous).
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
        // SAFETY: `first` checked type, device, alignment and that the last element is within
        // the address space; the host promises that all of it is readable for `'a`.
        Ok(unsafe { std::slice::from_raw_parts(first, self.numel) })
    }

    /// The elements in row-major order, whatever the strides.
    ///
    /// ```
    /// # use host_plugin_sdk::fake::{Batch, Tensor};
    /// let same = Tensor::i64(&[1], &[7]).strided(&[3], &[0]); // one number, seen three times
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

    /// [`as_slice`](Self::as_slice) of 32-bit floats.
    pub fn as_f32(&self) -> Result<&'a [f32]> {
        self.as_slice()
    }

    /// [`as_slice`](Self::as_slice) of 64-bit floats.
    pub fn as_f64(&self) -> Result<&'a [f64]> {
        self.as_slice()
    }

    /// [`as_slice`](Self::as_slice) of 64-bit integers.
    pub fn as_i64(&self) -> Result<&'a [i64]> {
        self.as_slice()
    }

    /// [`iter`](Self::iter) over 32-bit floats.
    pub fn iter_f32(&self) -> Result<Elements<'a, f32>> {
        self.iter()
    }

    /// [`iter`](Self::iter) over 64-bit floats.
    pub fn iter_f64(&self) -> Result<Elements<'a, f64>> {
        self.iter()
    }

    /// [`iter`](Self::iter) over 64-bit integers.
    pub fn iter_i64(&self) -> Result<Elements<'a, i64>> {
        self.iter()
    }

    /// The one element of a tensor that has one.
    pub fn scalar<T: Element>(&self) -> Result<T> {
        if self.numel != 1 {
            return Err(Error::unsupported(format!(
                "tensor {:?} is no scalar, its shape is {:?}",
                self.name, self.shape
            )));
        }
        // SAFETY: `first` checked it, and there is one element.
        Ok(unsafe { self.first::<T>()?.read() })
    }

    /// The element of index 0, after proof that no element lies where none can be. Dangling, but
    /// aligned, if there is no element.
    fn first<T: Element>(&self) -> Result<*const T> {
        if self.device() != Device::Cpu {
            return Err(Error::unsupported(format!(
                "tensor {:?} lies on {:?}, only main memory can be read",
                self.name,
                self.device()
            )));
        }
        if self.dtype() != T::DTYPE {
            return Err(Error::unsupported(format!(
                "tensor {:?} holds {:?} and not {:?}",
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
                "the host passed tensor {:?} at an address that cannot be",
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
        // The nearest and the farthest element, in elements from the first.
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
/// /// The sum and how many there are, read once.
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
    /// Where the next element is, and how many elements from the first that is.
    index: Vec<i64>,
    offset: i64,
    remaining: usize,
    owner: PhantomData<&'a T>,
}

impl<T: Element> Iterator for Elements<'_, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.remaining = self.remaining.checked_sub(1)?;
        // SAFETY: `Tensor::first` proved that every index within the shape is an element.
        let element = unsafe { self.first.offset(self.offset as isize).read() };
        for axis in (0..self.shape.len()).rev() {
            // Wrapping, since the step after the last element may leave what was proved.
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
