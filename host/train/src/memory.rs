//! Memory for training: how much is needed, available and used.

mod check;
mod estimate;
mod room;

pub(crate) use check::check;

use tch::Device;

use crate::torch_shim;

/// Returns the peak memory usage so far, in bytes. On the CPU, this is the main memory of the whole process.
/// On CUDA, it is the device memory that libtorch uses. `None` if the system does not report it.
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

/// Returns the main memory that this process uses now, in bytes. `None` if the system does not report it.
pub(crate) fn resident_bytes() -> Option<u64> {
    room::resident().map(|(now, _)| now)
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};

    use super::*;
    use crate::device::tests::device;

    #[test]
    fn freed_memory_counts_in_the_peak() {
        let bytes = 64 << 20;
        drop(Tensor::ones([bytes], (Kind::Uint8, device())));
        assert!(peak_bytes(device()).expect("known") >= bytes.unsigned_abs());
    }
}
