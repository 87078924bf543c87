//! Devices: the Rust side of `device.cpp`, and copies of tensors between devices and main memory.

use std::ffi::{c_int, c_void};
use std::{ptr, slice};

use host_core::Result;
use tch::{Device, Tensor};
use torch_sys::C_tensor;

use super::{checked, cuda_index};

unsafe extern "C" {
    safe fn shim_has_cuda_driver() -> bool;
    safe fn shim_load_cuda() -> c_int;
    safe fn shim_set_cuda_device(index: c_int) -> c_int;
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

/// Returns whether this machine has NVIDIA's driver.
pub(crate) fn has_cuda_driver() -> bool {
    shim_has_cuda_driver()
}

/// Loads libtorch's CUDA library. Must be called before anything else checks libtorch for CUDA.
pub(crate) fn load_cuda() -> Result<()> {
    checked(shim_load_cuda())
}

/// Makes a CUDA device the one that this thread's operations use if they name none. CUDA must be loaded.
pub(crate) fn set_cuda_device(index: usize) -> Result<()> {
    checked(shim_set_cuda_device(cuda_index(Device::Cuda(index)).1))
}

/// Selects deterministic algorithms or the fastest ones. Must be called before CUDA is loaded.
pub(crate) fn set_deterministic(on: bool) {
    shim_set_deterministic(on);
}

/// Copies a CPU tensor to `device`. Does not wait for the device's queued work.
///
/// # Panics
/// Like tch's own operations, panics if the device runs out of memory.
pub(crate) fn to_device(tensor: Tensor, device: Device) -> Tensor {
    let (true, index) = cuda_index(device) else {
        return tensor;
    };
    let mut copy = ptr::null_mut();
    // SAFETY: the tensor is live, and `copy` receives a new tensor.
    let done = checked(unsafe { shim_to_cuda(tensor.as_ptr(), index, &mut copy) });
    done.expect("the device has memory for a batch");
    // SAFETY: the call succeeded, so `copy` is a tensor without another owner.
    unsafe { Tensor::from_ptr(copy) }
}

/// Returns libtorch's peak memory usage on a CUDA device so far, in bytes.
pub(crate) fn cuda_peak_bytes(index: usize) -> Result<u64> {
    let mut bytes = 0;
    // SAFETY: `bytes` is a valid place for the result.
    checked(unsafe { shim_cuda_peak_bytes(cuda_index(Device::Cuda(index)).1, &mut bytes) })?;
    Ok(bytes.unsigned_abs())
}

/// Returns a CUDA device's free and total memory, in bytes.
pub(crate) fn cuda_memory(index: usize) -> Result<(u64, u64)> {
    let (mut free, mut total) = (0, 0);
    let index = cuda_index(Device::Cuda(index)).1;
    // SAFETY: `free` and `total` are valid places for the results.
    checked(unsafe { shim_cuda_memory(index, &mut free, &mut total) })?;
    Ok((free.unsigned_abs(), total.unsigned_abs()))
}

/// A tensor that is being copied to the CPU.
#[derive(Debug)]
pub(crate) struct Readback {
    copy: Tensor,
    /// A `c10::Event`, or null if there is nothing to wait for.
    event: *mut c_void,
}

impl Readback {
    /// Queues the copy on the tensor's device, after the work that is already queued there. Does not wait for
    /// the copy.
    pub(crate) fn begin(tensor: &Tensor) -> Result<Self> {
        let (mut copy, mut event) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the tensor is live, and `copy` and `event` are valid places for the results.
        checked(unsafe { shim_begin_copy(tensor.as_ptr(), &mut copy, &mut event) })?;
        Ok(Self {
            // SAFETY: the call succeeded, so `copy` is a tensor without another owner.
            copy: unsafe { Tensor::from_ptr(copy) },
            event,
        })
    }

    /// Waits until the copy is complete. Does not wait for work that was queued on the device after the copy.
    pub(crate) fn finish(mut self) -> Result<Tensor> {
        self.end()?;
        Ok(self.copy.shallow_clone())
    }

    fn end(&mut self) -> Result<()> {
        let event = std::mem::replace(&mut self.event, ptr::null_mut());
        // SAFETY: the event is null or owned by `self`, and `self` gives up the ownership here.
        checked(unsafe { shim_end_copy(event) })
    }
}

impl Drop for Readback {
    fn drop(&mut self) {
        // Errors can be ignored, because the next use of the device reports them.
        let _ = self.end();
    }
}

/// Main memory for a copy of a tensor. It is reused, so that later copies do not cause page faults. It is
/// pinned if a device copies into it.
#[derive(Debug)]
pub(crate) struct HostBuffer(Tensor);

impl HostBuffer {
    /// Allocates a buffer for a tensor like this one, without filling it.
    pub(crate) fn like(tensor: &Tensor) -> Result<Self> {
        let mut buffer = ptr::null_mut();
        // SAFETY: the tensor is live, and `buffer` receives a new tensor.
        checked(unsafe { shim_host_buffer(tensor.as_ptr(), &mut buffer) })?;
        // SAFETY: the call succeeded, so `buffer` is a tensor without another owner.
        Ok(Self(unsafe { Tensor::from_ptr(buffer) }))
    }

    /// Copies tensors, which must all be on one device, to their buffers. Returns when all copies are
    /// complete.
    pub(crate) fn fill<'a>(
        pairs: impl IntoIterator<Item = (&'a mut Self, &'a Tensor)>,
    ) -> Result<()> {
        let (buffers, tensors): (Vec<_>, Vec<_>) = pairs
            .into_iter()
            .map(|(buffer, tensor)| (buffer.0.as_ptr(), tensor.as_ptr()))
            .unzip();
        // SAFETY: all pointers refer to live tensors, which are borrowed during the call. The two lists
        // have the same length.
        checked(unsafe {
            shim_fill_host_buffers(buffers.as_ptr(), tensors.as_ptr(), buffers.len())
        })
    }

    /// Returns the bytes of the copy.
    pub(crate) fn bytes(&self) -> &[u8] {
        let length = self.0.numel() * self.0.kind().elt_size_in_bytes();
        if length == 0 {
            return &[];
        }
        // SAFETY: the buffer is contiguous CPU memory, and there is no other handle to it. `fill` borrows the
        // buffer mutably, and returns only when the buffer is filled.
        unsafe { slice::from_raw_parts(self.0.data_ptr().cast::<u8>(), length) }
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::device::tests::device;

    #[test]
    fn a_tensor_is_copied_to_the_device_and_back() {
        let tensor = Tensor::rand([3, 5], (Kind::Float, Device::Cpu));
        let there = to_device(tensor.copy(), device());
        assert_eq!(there.device(), device());
        let back = Readback::begin(&(&there + 1.0)).expect("begun");
        // `finish` does not wait for later work, and that work does not change the copy.
        let _later = there.matmul(&there.tr());
        let back = back.finish().expect("copied");
        assert_eq!(back.device(), Device::Cpu);
        assert_eq!(back, tensor + 1.0);
    }

    #[test]
    fn buffers_contain_the_bytes_of_the_last_copy() {
        let first = Tensor::from_slice(&[1_i64, 2, 3]);
        // The second tensor is a view that is not contiguous.
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
        assert!(HostBuffer::like(&none).expect("empty").bytes().is_empty());
    }
}
