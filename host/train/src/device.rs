use std::path::Path;

use host_core::{Error, Kind, Result};
use tch::{Cuda, Device};

use crate::torch_shim;

/// The device that a configuration's `device` means.
///
/// # Errors
/// A word that is none, or a device that this machine lacks.
pub(crate) fn parse(device: &str) -> Result<Device> {
    let wanted = match device {
        "cpu" => return Ok(Device::Cpu),
        // libtorch's CUDA side takes seconds to load: a look at the driver first.
        "auto" if !Path::new("/dev/nvidiactl").exists() => return Ok(Device::Cpu),
        "auto" | "cuda" => 0,
        other => match other.strip_prefix("cuda:").map(str::parse) {
            Some(Ok(index)) => index,
            _ => {
                return Err(Error::new(Kind::Config, format!("device is none: {other}"))
                    .hint("use cpu, cuda, cuda:N or auto"));
            }
        },
    };
    let loaded = torch_shim::load_cuda();
    let count = if loaded.is_ok() && Cuda::is_available() {
        Cuda::device_count()
    } else {
        0
    };
    if i64::try_from(wanted).is_ok_and(|wanted: i64| wanted < count) {
        return Ok(Device::Cuda(wanted));
    }
    if device == "auto" {
        return Ok(Device::Cpu);
    }
    let why = loaded
        .err()
        .map_or(format!("there are {count} CUDA devices"), |error| {
            error.to_string()
        });
    Err(Error::new(
        Kind::Config,
        format!("device {device} is not to be had: {why}"),
    )
    .hint("use --device cpu, or look whether nvidia-smi shows the device"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_had_or_refused() {
        assert_eq!(parse("cpu").expect("always there"), Device::Cpu);
        assert!(parse("tpu").is_err());
        assert!(parse("cuda:x").is_err());
        assert!(
            parse("cuda:999")
                .expect_err("too many")
                .message()
                .starts_with("device cuda:999 is not to be had")
        );
    }
}
