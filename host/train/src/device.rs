use std::path::Path;

use host_core::{Error, ErrorKind, Result};
use tch::{Cuda, Device};

use crate::torch_shim;

/// Parses the `device` setting.
///
/// # Errors
/// Returns an error if the value is invalid or this machine does not have the device.
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
    .hint("use --device cpu, or check that nvidia-smi lists the device")
}

/// Loads libtorch's CUDA library and counts the devices. Takes seconds, so the caller makes all other checks
/// first.
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

/// Returns whether there is a device file for GPUs. Checks for the file of NVIDIA's driver on Linux, and for
/// the file of the Windows Subsystem for Linux.
fn has_device_file() -> bool {
    ["/dev/nvidiactl", "/dev/dxg"]
        .iter()
        .any(|file| Path::new(file).exists())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::OnceLock;

    use super::*;

    /// Returns the device for the tests. The environment variable `TEST_DEVICE` names it; the default is the
    /// CPU. Must be called before any other use of libtorch in the process, because libtorch must not look
    /// for CUDA before the CUDA library is loaded.
    pub(crate) fn device() -> Device {
        static DEVICE: OnceLock<Device> = OnceLock::new();
        *DEVICE.get_or_init(|| {
            let name = std::env::var("TEST_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
            parse(&name).expect("TEST_DEVICE is a device of this machine")
        })
    }

    #[test]
    fn unknown_and_missing_devices_are_rejected() {
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
