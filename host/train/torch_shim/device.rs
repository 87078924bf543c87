//! Devices: what `device.cpp` does, and the memory that tensors travel through.

use std::ffi::{c_int, c_void};
use std::{ptr, slice};

use host_core::Result;
use tch::{Device, Tensor};
use torch_sys::C_tensor;

use super::{checked, cuda_index};

unsafe extern "C" {
    safe fn shim_has_cuda_driver() -> bool;
    safe fn shim_load_cuda() -> c_int;
    safe fn shim_set_deterministic(on: bool);
    fn shim_to_cuda(tensor: *const C_tensor, index: c_int, copy: *mut *mut C_tensor) -> c_int;
    fn shim_begin_copy(
        tensor: *const C_tensor,
        copy: *mut *mut C_tensor,
        event: *mut *mut c_void,
    ) -> c_int;
    fn shim_end_copy(event: *mut c_void) -> c_int;
    fn shim_host_buffer(tensor: *const C_tensor, buffer: *mut *mut C_tensor) -> c_int;
    fn shim_fill_host_buffers(
        buffers: *const *const C_tensor,
        tensors: *const *const C_tensor,
        n: usize,
    ) -> c_int;
    fn shim_cuda_peak_bytes(index: c_int, bytes: *mut i64) -> c_int;
    fn shim_cuda_memory(index: c_int, free: *mut i64, total: *mut i64) -> c_int;
}

/// Whether this machine has NVIDIA's driver.
pub(crate) fn has_cuda_driver() -> bool {
    shim_has_cuda_driver()
}

/// Makes CUDA exist for this process; before anything asks for it.
pub(crate) fn load_cuda() -> Result<()> {
    checked(shim_load_cuda())
}

/// Chooses deterministic algorithms, or the fastest; before CUDA is loaded.
pub(crate) fn set_deterministic(on: bool) {
    shim_set_deterministic(on);
}

/// A CPU tensor on `device`. Nobody waits for what the device has to do before it.
///
/// # Panics
/// As tch's own operations do, where the device's memory is full.
pub(crate) fn to_device(tensor: Tensor, device: Device) -> Tensor {
    let (true, index) = cuda_index(device) else {
        return tensor;
    };
    let mut copy = ptr::null_mut();
    // SAFETY: the tensor is live, and `copy` receives a new one.
    let done = checked(unsafe { shim_to_cuda(tensor.as_ptr(), index, &mut copy) });
    done.expect("the device has room for a batch");
    // SAFETY: the call went well, so `copy` is a tensor that nobody else owns.
    unsafe { Tensor::from_ptr(copy) }
}

/// The most bytes of a CUDA device's memory that libtorch held so far.
pub(crate) fn cuda_peak_bytes(index: usize) -> Result<u64> {
    let mut bytes = 0;
    // SAFETY: `bytes` receives a number.
    checked(unsafe { shim_cuda_peak_bytes(cuda_index(Device::Cuda(index)).1, &mut bytes) })?;
    Ok(bytes.unsigned_abs())
}

/// The bytes of a CUDA device's memory that are free, and all it has.
pub(crate) fn cuda_memory(index: usize) -> Result<(u64, u64)> {
    let (mut free, mut total) = (0, 0);
    let index = cuda_index(Device::Cuda(index)).1;
    // SAFETY: `free` and `total` receive numbers.
    checked(unsafe { shim_cuda_memory(index, &mut free, &mut total) })?;
    Ok((free.unsigned_abs(), total.unsigned_abs()))
}

/// A tensor on its way to the CPU.
#[derive(Debug)]
pub(crate) struct Readback {
    copy: Tensor,
    /// A `c10::Event`, null where there is nothing to wait for.
    event: *mut c_void,
}

impl Readback {
    /// Begins to copy, after all that the tensor's device has to do up to here; does not wait.
    pub(crate) fn begin(tensor: &Tensor) -> Result<Self> {
        let (mut copy, mut event) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the tensor is live; the two results receive new objects.
        checked(unsafe { shim_begin_copy(tensor.as_ptr(), &mut copy, &mut event) })?;
        Ok(Self {
            // SAFETY: the call went well, so `copy` is a tensor that nobody else owns.
            copy: unsafe { Tensor::from_ptr(copy) },
            event,
        })
    }

    /// Waits for the copy, not for what the device was given to do since.
    pub(crate) fn finish(mut self) -> Result<Tensor> {
        self.end()?;
        Ok(self.copy.shallow_clone())
    }

    fn end(&mut self) -> Result<()> {
        let event = std::mem::replace(&mut self.event, ptr::null_mut());
        // SAFETY: the event is this one's own or null, and is given up here.
        checked(unsafe { shim_end_copy(event) })
    }
}

impl Drop for Readback {
    fn drop(&mut self) {
        // What failed on the device is told by whoever uses it next.
        let _ = self.end();
    }
}

/// Room for a tensor's copy in main memory, kept so that later copies meet touched pages. A device
/// copies to it directly: it is pinned then.
#[derive(Debug)]
pub(crate) struct HostBuffer(Tensor);

impl HostBuffer {
    /// Room for a tensor like this one; not filled.
    pub(crate) fn like(tensor: &Tensor) -> Result<Self> {
        let mut buffer = ptr::null_mut();
        // SAFETY: the tensor is live, and `buffer` receives a new one.
        checked(unsafe { shim_host_buffer(tensor.as_ptr(), &mut buffer) })?;
        // SAFETY: the call went well, so `buffer` is a tensor that nobody else owns.
        Ok(Self(unsafe { Tensor::from_ptr(buffer) }))
    }

    /// Copies tensors of one device to their buffers, and returns when all are there.
    pub(crate) fn fill<'a>(
        pairs: impl IntoIterator<Item = (&'a mut Self, &'a Tensor)>,
    ) -> Result<()> {
        let (buffers, tensors): (Vec<_>, Vec<_>) = pairs
            .into_iter()
            .map(|(buffer, tensor)| (buffer.0.as_ptr(), tensor.as_ptr()))
            .unzip();
        // SAFETY: all pointers are of live tensors, borrowed through the call; the two lists are of
        // the same length.
        checked(unsafe {
            shim_fill_host_buffers(buffers.as_ptr(), tensors.as_ptr(), buffers.len())
        })
    }

    /// The copy's bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        let length = self.0.numel() * self.0.kind().elt_size_in_bytes();
        if length == 0 {
            return &[];
        }
        // SAFETY: the buffer is contiguous memory of the CPU, and nobody else has a handle to it;
        // `fill` borrows it mutably and does not return before it is filled.
        unsafe { slice::from_raw_parts(self.0.data_ptr().cast::<u8>(), length) }
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::device::tests::device;

    #[test]
    fn a_tensor_goes_to_the_device_and_comes_back() {
        let tensor = Tensor::rand([3, 5], (Kind::Float, Device::Cpu));
        let there = to_device(tensor.copy(), device());
        assert_eq!(there.device(), device());
        let back = Readback::begin(&(&there + 1.0)).expect("begun");
        // What comes later is not waited for, and does not change what was read.
        let _later = there.matmul(&there.tr());
        let back = back.finish().expect("copied");
        assert_eq!(back.device(), Device::Cpu);
        assert_eq!(back, tensor + 1.0);
    }

    #[test]
    fn buffers_hold_the_bytes_of_what_was_last_copied() {
        let first = Tensor::from_slice(&[1_i64, 2, 3]);
        // A view that is not contiguous, too.
        let second = Tensor::from_slice(&[1.0_f32, 2.0, 3.0, 4.0]).view([2, 2]);
        let tensors = [first.to_device(device()), second.to_device(device()).tr()];
        let mut buffers: Vec<HostBuffer> = tensors
            .iter()
            .map(|tensor| HostBuffer::like(tensor).expect("room"))
            .collect();
        for _ in 0..2 {
            HostBuffer::fill(buffers.iter_mut().zip(&tensors)).expect("copied");
        }
        let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let transposed: Vec<u8> = bytes(&[1.0, 3.0, 2.0, 4.0]);
        assert_eq!(
            buffers[0].bytes()[..16],
            [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(buffers[1].bytes(), transposed);
        let none = Tensor::zeros([0], (Kind::Float, device()));
        assert!(HostBuffer::like(&none).expect("no room").bytes().is_empty());
    }
}
