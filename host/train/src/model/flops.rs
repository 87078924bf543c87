//! Floating-point operations: what the model needs, and what the device can do.

use std::time::Instant;

use tch::{Device, Tensor, no_grad_guard};

use super::Dtypes;
use super::config::Shape;
use crate::config::Precision;

/// Operations of a training step for each token, as PaLM counts them (arXiv 2204.02311, appendix B):
/// 6 for each weight of a matrix product, 12 layers width sequence for attention. What gradient
/// checkpointing computes again does not count.
pub(crate) fn per_token(shape: &Shape, seq_length: i64) -> f64 {
    let (width, layers) = (shape.width as f64, shape.layers as f64);
    let block = 4.0 * width * width + 2.0 * width * shape.inner as f64;
    let weights = layers * block + width * shape.vocab_size as f64;
    6.0 * weights + 12.0 * layers * width * seq_length as f64
}

/// Operations a second of a large matrix product on this device, in the training's arithmetic: the
/// best of a few. Takes a few hundredths of a second.
pub(crate) fn device_peak(device: Device, precision: Precision) -> f64 {
    let _guard = no_grad_guard();
    let kind = Dtypes::of(precision).compute;
    let n = match (device.is_cuda(), precision) {
        (false, _) => 1024,
        // Many devices are slow at it.
        (true, Precision::F64) => 2048,
        (true, _) => 8192,
    };
    let a = Tensor::ones([n, n], (kind, device));
    let mut best = f64::INFINITY;
    for _ in 0..4 {
        let begin = Instant::now();
        // Reading an element waits for the product.
        let _ = a.matmul(&a).double_value(&[0, 0]);
        best = best.min(begin.elapsed().as_secs_f64());
    }
    2.0 * (n as f64).powi(3) / best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpt2_needs_what_it_is_known_to_need() {
        // 123.6 M weights in products (wpe is none), and attention over 1024 positions.
        let gpt2 = crate::model::ModelConfig::preset("gpt2").expect("a preset");
        let expected =
            6.0 * (12.0 * 12.0 * 768.0 * 768.0 + 768.0 * 50_257.0) + 12.0 * 12.0 * 768.0 * 1024.0;
        assert_eq!(per_token(&gpt2.shape, 1024), expected);
    }

    #[test]
    fn a_device_does_something() {
        assert!(device_peak(Device::Cpu, Precision::F32) > 1e8);
    }
}
