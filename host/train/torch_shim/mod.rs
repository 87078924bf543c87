//! What tch does not bind of libtorch: the Rust side of `shim.cpp`, and the only unsafe code of the
//! training room.

#![expect(
    unsafe_code,
    reason = "calls into libtorch by tensor pointers; denied elsewhere in the crate"
)]

use std::ffi::{CStr, c_char, c_int};
use std::ptr;

use host_core::{Error, Kind, Result};
use tch::{Device, Tensor};
use torch_sys::C_tensor;

unsafe extern "C" {
    safe fn shim_error() -> *const c_char;
    safe fn shim_keep_memory();
    safe fn shim_load_cuda() -> c_int;
    safe fn shim_set_deterministic(on: bool);
    fn shim_clip_grad_norm(
        params: *const *const C_tensor,
        n: usize,
        max_norm: f64,
        norm: *mut *mut C_tensor,
    ) -> c_int;
    fn shim_fused_adamw(
        params: *const *const C_tensor,
        exp_avgs: *const *const C_tensor,
        exp_avg_sqs: *const *const C_tensor,
        n: usize,
        step: *const C_tensor,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
        found_inf: *const C_tensor,
    ) -> c_int;
    fn shim_backward_with(tensor: *const C_tensor, gradient: *const C_tensor) -> c_int;
    fn shim_rng_state(cuda: bool, index: c_int, state: *mut *mut C_tensor) -> c_int;
    fn shim_set_rng_state(cuda: bool, index: c_int, state: *const C_tensor) -> c_int;
    safe fn shim_autocast_bf16(cuda: bool, on: bool);
}

/// AdamW's numbers for a call of [`fused_adamw`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdamW {
    pub(crate) lr: f64,
    pub(crate) beta1: f64,
    pub(crate) beta2: f64,
    pub(crate) weight_decay: f64,
    pub(crate) eps: f64,
}

/// Keeps freed buffers in the process, which glibc would hand back and fault in again at each step.
pub(crate) fn keep_memory() {
    shim_keep_memory();
}

/// Makes CUDA exist for this process.
pub(crate) fn load_cuda() -> Result<()> {
    checked(shim_load_cuda())
}

/// Chooses deterministic algorithms, or the fastest.
pub(crate) fn set_deterministic(on: bool) {
    shim_set_deterministic(on);
}

/// Scales the gradients of `params` down to the L2 norm `max_norm` (0: does not) and returns the
/// norm they had: 0-d, on their device.
pub(crate) fn clip_grad_norm(params: &[Tensor], max_norm: f64) -> Result<Tensor> {
    let params = pointers(params);
    let mut norm = ptr::null_mut();
    // SAFETY: the pointers are of live tensors, and `norm` receives a new one.
    checked(unsafe { shim_clip_grad_norm(params.as_ptr(), params.len(), max_norm, &mut norm) })?;
    // SAFETY: the call went well, so `norm` is a tensor that nobody else owns.
    Ok(unsafe { Tensor::from_ptr(norm) })
}

/// One step of AdamW over parameters that share its numbers. `step` (0-d f32) counts it already;
/// where `found_inf` (0-d f32) is 1, nothing changes.
pub(crate) fn fused_adamw(
    params: &[Tensor],
    exp_avgs: &[Tensor],
    exp_avg_sqs: &[Tensor],
    step: &Tensor,
    adamw: AdamW,
    found_inf: Option<&Tensor>,
) -> Result<()> {
    assert!(params.len() == exp_avgs.len() && params.len() == exp_avg_sqs.len());
    let (params, exp_avgs, exp_avg_sqs) =
        (pointers(params), pointers(exp_avgs), pointers(exp_avg_sqs));
    // SAFETY: all pointers are of live tensors, and the three lists are as long as `n` says.
    checked(unsafe {
        shim_fused_adamw(
            params.as_ptr(),
            exp_avgs.as_ptr(),
            exp_avg_sqs.as_ptr(),
            params.len(),
            step.as_ptr(),
            adamw.lr,
            adamw.beta1,
            adamw.beta2,
            adamw.weight_decay,
            adamw.eps,
            found_inf.map_or(ptr::null(), Tensor::as_ptr),
        )
    })
}

/// Backward through `tensor` with the gradient that arrives from above it.
pub(crate) fn backward_with(tensor: &Tensor, gradient: &Tensor) -> Result<()> {
    // SAFETY: both pointers are of live tensors.
    checked(unsafe { shim_backward_with(tensor.as_ptr(), gradient.as_ptr()) })
}

/// The state of the device's random numbers: 1-d u8, on the CPU.
pub(crate) fn rng_state(device: Device) -> Result<Tensor> {
    let (cuda, index) = cuda_index(device);
    let mut state = ptr::null_mut();
    // SAFETY: `state` receives a new tensor.
    checked(unsafe { shim_rng_state(cuda, index, &mut state) })?;
    // SAFETY: the call went well, so `state` is a tensor that nobody else owns.
    Ok(unsafe { Tensor::from_ptr(state) })
}

/// Puts back what [`rng_state`] returned.
pub(crate) fn set_rng_state(device: Device, state: &Tensor) -> Result<()> {
    let (cuda, index) = cuda_index(device);
    // SAFETY: the pointer is of a live tensor.
    checked(unsafe { shim_set_rng_state(cuda, index, state.as_ptr()) })
}

/// Matrix products in bfloat16 while it lives, on this thread.
#[derive(Debug)]
pub(crate) struct AutocastBf16(Device);

impl AutocastBf16 {
    pub(crate) fn new(device: Device) -> Self {
        shim_autocast_bf16(cuda_index(device).0, true);
        Self(device)
    }
}

impl Drop for AutocastBf16 {
    fn drop(&mut self) {
        shim_autocast_bf16(cuda_index(self.0).0, false);
    }
}

fn pointers(tensors: &[Tensor]) -> Vec<*const C_tensor> {
    tensors.iter().map(Tensor::as_ptr).collect()
}

fn cuda_index(device: Device) -> (bool, c_int) {
    match device {
        Device::Cuda(index) => (true, c_int::try_from(index).unwrap_or(c_int::MAX)),
        _ => (false, 0),
    }
}

fn checked(status: c_int) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    // SAFETY: the shim's text ends in a zero and lives until this thread's next failing call.
    let reason = unsafe { CStr::from_ptr(shim_error()) }.to_string_lossy();
    let first_line = reason.lines().next().unwrap_or_default();
    Err(Error::new(
        Kind::System,
        format!("libtorch failed: {first_line}"),
    ))
}
