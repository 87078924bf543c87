//! Counts floating-point operations: those that the model needs, and those that the device can perform.

use std::time::Instant;

use tch::{Device, Tensor, no_grad_guard};

use super::Dtypes;
use super::config::Shape;
use crate::config::Precision;

/// Returns the number of operations that training needs for one token. They are counted as in the PaLM paper
/// (arXiv 2204.02311, appendix B). There are 6 for each weight of a matrix product, and 12 · layers · width ·
/// sequence length for attention. Recomputation for gradient checkpointing does not count.
pub(crate) fn per_token(shape: &Shape, seq_length: i64) -> f64 {
    let (width, layers) = (shape.width as f64, shape.layers as f64);
    let block = 4.0 * width * width + 2.0 * width * shape.inner as f64;
    let weights = layers * block + width * shape.vocab_size as f64;
    6.0 * weights + 12.0 * layers * width * seq_length as f64
}

/// Measures the speed of a large matrix product on this device, in the compute type of the training run.
/// Makes a few attempts and returns the operations per second of the fastest attempt. Takes a few hundredths
/// of a second.
pub(crate) fn device_peak(device: Device, precision: Precision) -> f64 {
    let _guard = no_grad_guard();
    let kind = Dtypes::of(precision).compute;
    let n = match (device.is_cuda(), precision) {
        (false, _) => 1024,
        // The matrices are smaller, because many devices are slow in double precision.
        (true, Precision::F64) => 2048,
        (true, _) => 8192,
    };
    let a = Tensor::ones([n, n], (kind, device));
    let mut best = f64::INFINITY;
    for _ in 0..4 {
        let begin = Instant::now();
        // Reading an element blocks until the product is computed.
        let _ = a.matmul(&a).double_value(&[0, 0]);
        best = best.min(begin.elapsed().as_secs_f64());
    }
    2.0 * (n as f64).powi(3) / best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpt2_needs_the_known_number_of_operations() {
        // The expected number has two terms: 123.6 M weights of matrix products (`wpe` is not one of them),
        // and attention over 1024 positions.
        let gpt2 = crate::model::ModelConfig::preset("gpt2").expect("a preset");
        let expected =
            6.0 * (12.0 * 12.0 * 768.0 * 768.0 + 768.0 * 50_257.0) + 12.0 * 12.0 * 768.0 * 1024.0;
        assert_eq!(per_token(&gpt2.shape, 1024), expected);
    }

    #[test]
    fn the_peak_of_a_device_is_plausible() {
        assert!(device_peak(Device::Cpu, Precision::F32) > 1e8);
    }
}
