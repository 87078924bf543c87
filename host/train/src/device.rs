use std::path::Path;

use host_core::{Error, ErrorKind, Result};
use tch::{Cuda, Device};

use crate::torch_shim;

/// The device that a configuration's `device` means.
///
/// # Errors
/// A word that is none, or a device that this machine lacks.
pub(crate) fn parse(device: &str) -> Result<Device> {
    let wanted: usize = match device {
        "cpu" => return Ok(Device::Cpu),
        "auto" if !has_device_file() => return Ok(Device::Cpu),
        "auto" | "cuda" => 0,
        other => other
            .strip_prefix("cuda:")
            .and_then(|index| index.parse().ok())
            .ok_or_else(|| {
                Error::new(ErrorKind::Config, format!("unknown device: {other}"))
                    .hint("use cpu, cuda, cuda:N or auto")
            })?,
    };
    match cuda_devices() {
        Ok(count) if wanted < count => Ok(Device::Cuda(wanted)),
        _ if device == "auto" => Ok(Device::Cpu),
        Ok(0) => Err(absent(device, "libtorch finds no CUDA device")),
        Ok(1) => Err(absent(device, "the only CUDA device is cuda:0")),
        Ok(count) => {
            let last = count - 1;
            Err(absent(
                device,
                &format!("the CUDA devices are cuda:0 to cuda:{last}"),
            ))
        }
        Err(error) => Err(absent(device, error.message())),
    }
}

fn absent(device: &str, why: &str) -> Error {
    Error::new(
        ErrorKind::Config,
        format!("device {device} is not available: {why}"),
    )
    .hint("use --device cpu, or look whether nvidia-smi shows the device")
}

/// Loads libtorch's CUDA side and counts its devices. That takes seconds, so it comes last.
fn cuda_devices() -> Result<usize> {
    if !torch_shim::has_cuda_driver() {
        return Err(Error::new(
            ErrorKind::Config,
            "this machine has no NVIDIA driver (libcuda.so.1)",
        ));
    }
    torch_shim::load_cuda()?;
    Ok(usize::try_from(Cuda::device_count()).unwrap_or(0))
}

/// Whether there is a way to an NVIDIA device: on Linux itself, or within Windows.
fn has_device_file() -> bool {
    ["/dev/nvidiactl", "/dev/dxg"]
        .iter()
        .any(|file| Path::new(file).exists())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::OnceLock;

    use super::*;

    /// The device that the tests run on: `TEST_DEVICE`, else the CPU. It comes before any other use
    /// of libtorch in the process, which must not have looked for CUDA before it was loaded.
    pub(crate) fn device() -> Device {
        static DEVICE: OnceLock<Device> = OnceLock::new();
        *DEVICE.get_or_init(|| {
            let name = std::env::var("TEST_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
            parse(&name).expect("TEST_DEVICE is a device of this machine")
        })
    }

    #[test]
    fn a_device_is_had_or_refused() {
        assert_eq!(parse("cpu").expect("always there"), Device::Cpu);
        assert!(parse("auto").is_ok());
        for none in ["tpu", "cuda:x", "cuda:-1", "cuda:"] {
            let error = parse(none).expect_err("no device");
            assert_eq!(error.message(), format!("unknown device: {none}"));
        }
        let error = parse("cuda:999").expect_err("too many");
        let start = "device cuda:999 is not available: ";
        assert!(error.message().starts_with(start), "{error}");
    }
}
