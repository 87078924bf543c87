//! Binds the parts of libtorch that tch does not bind. It is the Rust side of the C++ files in this folder. In
//! this crate, only this module and `src/data/memory_map.rs` contain unsafe code.

#![expect(
    unsafe_code,
    reason = "calls libtorch through tensor pointers; unsafe code is denied elsewhere in the crate"
)]

use std::ffi::{CStr, c_char, c_int};
use std::ptr;

use host_core::{Error, ErrorKind, Result};
use tch::{Device, Tensor};
use torch_sys::C_tensor;

mod collective;
mod device;

pub(crate) use collective::{Buckets, Group, Store, Work, close_on_exec, quiet_c10d};
pub(crate) use device::{
    HostBuffer, Readback, cuda_memory, cuda_peak_bytes, has_cuda_driver, load_cuda,
    set_cuda_device, set_deterministic, to_device,
};

unsafe extern "C" {
    safe fn shim_error() -> *const c_char;
    safe fn shim_keep_memory();
    safe fn shim_return_memory();
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
    fn shim_conv1d(
        x: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        y: *mut *mut C_tensor,
    ) -> c_int;
    fn shim_causal_attention(
        qkv: *const C_tensor,
        heads: i64,
        dropout: f64,
        scale: f64,
        y: *mut *mut C_tensor,
    ) -> c_int;
    fn shim_linear_cross_entropy(
        hidden: *const C_tensor,
        weight: *const C_tensor,
        labels: *const C_tensor,
        rows: i64,
        scale: f64,
        bf16: bool,
        completes: bool,
        loss: *mut *mut C_tensor,
        hidden_gradient: *mut *mut C_tensor,
    ) -> c_int;
    fn shim_clear_gradients(params: *const *const C_tensor, n: usize) -> c_int;
    fn shim_backward_with(tensor: *const C_tensor, gradient: *const C_tensor) -> c_int;
    fn shim_rng_state(cuda: bool, index: c_int, state: *mut *mut C_tensor) -> c_int;
    fn shim_set_rng_state(cuda: bool, index: c_int, state: *const C_tensor) -> c_int;
}

/// AdamW's hyperparameters for a call of [`fused_adamw`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdamW {
    pub(crate) lr: f64,
    pub(crate) beta1: f64,
    pub(crate) beta2: f64,
    pub(crate) weight_decay: f64,
    pub(crate) eps: f64,
}

/// Makes glibc keep freed buffers in the process. By default, glibc returns them to the system, and each step
/// causes page faults when it allocates them again.
pub(crate) fn keep_memory() {
    shim_keep_memory();
}

/// Makes glibc return freed memory to the system, as a server should after a burst of requests.
pub(crate) fn return_memory() {
    shim_return_memory();
}

/// If the L2 norm of the gradients of `params` exceeds `max_norm`, scales the gradients down. If `max_norm`
/// is 0, never scales them. Returns the norm before scaling, as a 0-d tensor on the parameters' device.
pub(crate) fn clip_grad_norm(params: &[Tensor], max_norm: f64) -> Result<Tensor> {
    let params = pointers(params);
    let mut norm = ptr::null_mut();
    // SAFETY: the pointers refer to live tensors, and `norm` receives a new tensor.
    checked(unsafe { shim_clip_grad_norm(params.as_ptr(), params.len(), max_norm, &mut norm) })?;
    // SAFETY: the call succeeded, so `norm` is a tensor without another owner.
    Ok(unsafe { Tensor::from_ptr(norm) })
}

/// Performs one step of AdamW for parameters that have the same hyperparameters. `step` (0-d f32) is the
/// number of steps, and must already include this step. If `found_inf` (0-d f32) is 1, nothing changes.
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
    // SAFETY: all pointers refer to live tensors, and each of the three lists has `n` elements.
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

/// Computes GPT-2's `Conv1D`, `x @ weight + bias`, with an autograd graph. `x` is (n, in), `weight` (in,
/// out), `bias` (out), and the result (n, out). All have the same type.
///
/// # Panics
/// Like tch's own operations, panics if shapes or types do not match.
pub(crate) fn conv1d(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Tensor {
    let mut y = ptr::null_mut();
    // SAFETY: the pointers refer to live tensors, and `y` receives a new tensor.
    let done = checked(unsafe { shim_conv1d(x.as_ptr(), weight.as_ptr(), bias.as_ptr(), &mut y) });
    done.expect("the shapes of the model's layers match");
    // SAFETY: the call succeeded, so `y` is a tensor without another owner.
    unsafe { Tensor::from_ptr(y) }
}

/// Computes causal self-attention with an autograd graph. Maps the concatenated queries, keys and values,
/// (batch, time, 3 width), to (batch, time, width). The scores are multiplied by `scale`.
///
/// # Panics
/// Like tch's own operations, panics if shapes or types do not match.
pub(crate) fn causal_attention(qkv: &Tensor, heads: i64, dropout: f64, scale: f64) -> Tensor {
    let mut y = ptr::null_mut();
    // SAFETY: the pointer refers to a live tensor, and `y` receives a new tensor.
    let done =
        checked(unsafe { shim_causal_attention(qkv.as_ptr(), heads, dropout, scale, &mut y) });
    done.expect("the width is divisible by the number of heads");
    // SAFETY: the call succeeded, so `y` is a tensor without another owner.
    unsafe { Tensor::from_ptr(y) }
}

/// Computes the head and its loss. Runs the forward and the backward pass together, so that it does not keep
/// all logits in memory.
///
/// `hidden` is (n, width), `weight` (vocabulary, width), `labels` (n) i64. Returns the mean cross-entropy
/// (0-d) and `scale` times its gradient with respect to `hidden`. Adds `scale` times the gradient with
/// respect to `weight` to the weight's gradient. Only `rows` rows of the logits exist at a time.
///
/// Set `completes` if nothing else in the backward pass adds to the weight's gradient.
pub(crate) fn linear_cross_entropy(
    hidden: &Tensor,
    weight: &Tensor,
    labels: &Tensor,
    (rows, scale): (i64, f64),
    bf16: bool,
    completes: bool,
) -> Result<(Tensor, Tensor)> {
    let (mut loss, mut gradient) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: the pointers refer to live tensors, and `loss` and `gradient` receive new tensors.
    checked(unsafe {
        shim_linear_cross_entropy(
            hidden.as_ptr(),
            weight.as_ptr(),
            labels.as_ptr(),
            rows,
            scale,
            bf16,
            completes,
            &mut loss,
            &mut gradient,
        )
    })?;
    // SAFETY: the call succeeded, so both are tensors without another owner.
    Ok(unsafe { (Tensor::from_ptr(loss), Tensor::from_ptr(gradient)) })
}

/// Removes the parameters' gradients.
pub(crate) fn clear_gradients(params: &[Tensor]) -> Result<()> {
    let params = pointers(params);
    // SAFETY: the pointers refer to live tensors.
    checked(unsafe { shim_clear_gradients(params.as_ptr(), params.len()) })
}

/// Runs the backward pass from `tensor`, with `gradient` as the gradient of `tensor`.
pub(crate) fn backward_with(tensor: &Tensor, gradient: &Tensor) -> Result<()> {
    // SAFETY: both pointers refer to live tensors.
    checked(unsafe { shim_backward_with(tensor.as_ptr(), gradient.as_ptr()) })
}

/// Returns the state of the device's random number generator: 1-d u8, on the CPU.
pub(crate) fn rng_state(device: Device) -> Result<Tensor> {
    let (cuda, index) = cuda_index(device);
    let mut state = ptr::null_mut();
    // SAFETY: `state` receives a new tensor.
    checked(unsafe { shim_rng_state(cuda, index, &mut state) })?;
    // SAFETY: the call succeeded, so `state` is a tensor without another owner.
    Ok(unsafe { Tensor::from_ptr(state) })
}

/// Restores a state that [`rng_state`] returned.
pub(crate) fn set_rng_state(device: Device, state: &Tensor) -> Result<()> {
    let (cuda, index) = cuda_index(device);
    // SAFETY: the pointer refers to a live tensor.
    checked(unsafe { shim_set_rng_state(cuda, index, state.as_ptr()) })
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
    // SAFETY: the shim's text is null-terminated and valid until this thread's next failing call.
    let reason = unsafe { CStr::from_ptr(shim_error()) }.to_string_lossy();
    let first_line = reason.lines().next().unwrap_or_default();
    Err(Error::new(
        ErrorKind::System,
        format!("libtorch failed: {first_line}"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::tests::device;
    use tch::Kind;

    #[test]
    fn the_head_in_parts_has_the_same_loss_and_gradients_as_the_whole() {
        let options = (Kind::Double, device());
        let hidden = Tensor::randn([10, 4], options).set_requires_grad(true);
        let weight = Tensor::randn([6, 4], options).set_requires_grad(true);
        let labels = Tensor::from_slice(&[0_i64, 5, 2, 2, 1, 4, 3, 0, 5, 1]).to_device(device());
        let logits = hidden.linear::<Tensor>(&weight, None);
        let whole =
            logits.cross_entropy_loss::<Tensor>(&labels, None, tch::Reduction::Mean, -100, 0.0);
        (&whole * 0.5).backward();
        let (hidden_gradient, weight_gradient) = (hidden.grad().copy(), weight.grad().copy());
        clear_gradients(&[weight.shallow_clone()]).expect("cleared");
        for times in 1..=2 {
            let (loss, gradient) =
                linear_cross_entropy(&hidden, &weight, &labels, (3, 0.5), false, true)
                    .expect("computed");
            let near = |a: &Tensor, b: &Tensor| a.allclose(b, 1e-12, 1e-12, false);
            assert!(near(&loss, &whole));
            assert!(near(&gradient, &hidden_gradient));
            // The weight's gradient accumulates.
            assert!(near(&weight.grad(), &(&weight_gradient * f64::from(times))));
        }
    }

    #[test]
    fn a_conv1d_is_a_product_and_a_sum_with_their_gradients() {
        for kind in [Kind::Float, Kind::Double] {
            let options = (kind, device());
            let leaf = |shape: &[i64]| Tensor::randn(shape, options).set_requires_grad(true);
            let (x, weight, bias) = (leaf(&[7, 4]), leaf(&[4, 6]), leaf(&[6]));
            let above = Tensor::randn([7, 6], options);
            let gradients = |y: &Tensor| {
                backward_with(y, &above).expect("backward");
                let taken = [&x, &weight, &bias].map(|leaf| leaf.grad().copy());
                clear_gradients(&[&x, &weight, &bias].map(Tensor::shallow_clone)).expect("cleared");
                taken
            };
            let near = |a: &Tensor, b: &Tensor| a.allclose(b, 1e-5, 1e-5, false);
            let (ours, plain) = (conv1d(&x, &weight, &bias), x.matmul(&weight) + &bias);
            assert!(near(&ours, &plain));
            for (ours, plain) in gradients(&ours).iter().zip(gradients(&plain)) {
                assert!(near(ours, &plain), "{kind:?}");
            }
        }
    }

    #[test]
    fn causal_attention_and_its_gradient_match_libtorchs() {
        // The scores are computed in blocks of rows. The first sequence is shorter than a block, the second
        // is as long as a block, and the third is longer.
        for (batch, time, heads, size) in [(2, 7, 3, 5), (1, 256, 2, 8), (2, 300, 1, 16)] {
            let options = (Kind::Float, device());
            let width = heads * size;
            let qkv = Tensor::randn([batch, time, 3 * width], options).set_requires_grad(true);
            let above = Tensor::randn([batch, time, width], options);
            let gradient = |y: &Tensor| {
                backward_with(y, &above).expect("backward");
                let taken = qkv.grad().copy();
                clear_gradients(&[qkv.shallow_clone()]).expect("cleared");
                taken
            };
            let parts = qkv
                .view([batch, time, 3, heads, size])
                .permute([2, 0, 3, 1, 4])
                .unbind(0);
            let plain = Tensor::scaled_dot_product_attention::<Tensor>(
                &parts[0], &parts[1], &parts[2], None, 0.0, true, 0.3, false,
            );
            let plain = plain.transpose(1, 2).reshape([batch, time, width]);
            let ours = causal_attention(&qkv, heads, 0.0, 0.3);
            let near = |a: &Tensor, b: &Tensor| a.allclose(b, 1e-4, 1e-5, false);
            assert!(near(&ours, &plain), "{time}");
            assert!(near(&gradient(&ours), &gradient(&plain)), "{time}");
        }
    }

    #[test]
    fn the_head_computes_in_bfloat16_if_it_is_set() {
        let options = (Kind::Float, device());
        let (a, b) = (
            Tensor::randn([8, 8], options),
            Tensor::randn([8, 8], options),
        );
        let labels = Tensor::zeros([8], (Kind::Int64, device()));
        let loss = |bf16| {
            linear_cross_entropy(&a, &b, &labels, (8, 1.0), bf16, true)
                .expect("computed")
                .0
                .double_value(&[])
        };
        let difference = (loss(true) - loss(false)).abs();
        assert!(difference > 0.0 && difference < 0.05, "{difference}");
    }

    #[test]
    fn an_error_of_libtorch_is_returned() {
        let tensor = Tensor::zeros([2], (Kind::Float, Device::Cpu));
        let error = clip_grad_norm(&[tensor], 1.0).expect_err("no gradient");
        assert!(
            error.message().contains("did not contribute to the loss"),
            "{error}"
        );
    }

    #[test]
    fn a_restored_state_repeats_the_random_numbers() {
        let draw = || Tensor::rand([4], (Kind::Float, device()));
        let comes_again = || {
            let state = rng_state(device()).expect("a state");
            let first = draw();
            set_rng_state(device(), &state).expect("set");
            draw() == first
        };
        // The whole process shares the generator, so another test can draw numbers in between. One successful
        // attempt is therefore enough: if the state were not restored, the numbers would never repeat.
        assert!((0..1000).any(|_| comes_again()));
    }
}
