use std::path::Path;

use host_core::{Error, ErrorKind, Result};
use tch::{Cuda, Device};

use crate::torch_shim;

/// Parses the `device` setting for the process with the number `local_rank` of the `local_size` processes of this
/// machine.
///
/// # Errors
/// Returns an error if the value is invalid, this machine does not have the device, or several processes would use
/// the same CUDA device.
pub(crate) fn parse(device: &str, (local_rank, local_size): (usize, usize)) -> Result<Device> {
    let wanted: usize = match device {
        "cpu" => return Ok(Device::Cpu),
        "auto" if !has_device_file() => return Ok(Device::Cpu),
        "auto" | "cuda" => local_rank,
        one if one.starts_with("cuda:") && local_size > 1 => {
            let message = format!("device is {one}, but {local_size} ranks run on this machine");
            return Err(Error::new(ErrorKind::Config, message)
                .hint("use --device cuda: each rank then uses the device with its local rank"));
        }
        other => other
            .strip_prefix("cuda:")
            .and_then(|index| index.parse().ok())
            .ok_or_else(|| {
                Error::new(ErrorKind::Config, format!("unknown device: {other}"))
                    .hint("use cpu, cuda, cuda:N or auto")
            })?,
    };
    match cuda_devices() {
        Ok(count) if wanted < count => {
            torch_shim::set_cuda_device(wanted)?;
            Ok(Device::Cuda(wanted))
        }
        Ok(count) if local_size > 1 && count > 0 => {
            let message =
                format!("{local_size} ranks run on this machine, which has {count} CUDA devices");
            Err(Error::new(ErrorKind::Config, message)
                .hint("start at most one rank for each device, or use --device cpu"))
        }
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
            parse(&name, (0, 1)).expect("TEST_DEVICE is a device of this machine")
        })
    }

    #[test]
    fn unknown_and_missing_devices_are_rejected() {
        let parse = |device| parse(device, (0, 1));
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
