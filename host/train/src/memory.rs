//! The memory that a training works in: what it will need, what there is, what it took.

mod check;
mod estimate;
mod room;

pub(crate) use check::check;

use tch::Device;

use crate::torch_shim;

/// The most bytes that the training took so far of the memory it works in: main memory, all of the
/// process's, on the CPU, and libtorch's part of the device's on CUDA. None where the system does not
/// say.
pub(crate) fn peak_bytes(device: Device) -> Option<u64> {
    if let Device::Cuda(index) = device {
        return torch_shim::cuda_peak_bytes(index).ok();
    }
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = peak.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};

    use super::*;
    use crate::device::tests::device;

    #[test]
    fn what_was_taken_is_counted_when_it_is_given_back() {
        let bytes = 64 << 20;
        drop(Tensor::ones([bytes], (Kind::Uint8, device())));
        assert!(peak_bytes(device()).expect("told") >= bytes.unsigned_abs());
    }
}
