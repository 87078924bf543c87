use std::collections::HashMap;

use host_core::Result;
use tch::{Device, Tensor};

use crate::torch_shim;

/// libtorch's random number generators on the CPU and on the device. They are part of the training state.
#[derive(Debug)]
pub(crate) struct RandomState(Vec<(&'static str, Device)>);

impl RandomState {
    /// Seeds the generators.
    pub(crate) fn seed(seed: i64, device: Device) -> Self {
        tch::manual_seed(seed);
        let mut generators = vec![("cpu", Device::Cpu)];
        if device.is_cuda() {
            generators.push(("cuda", device));
        }
        Self(generators)
    }

    /// Returns the states by name: 1-d u8, on the CPU.
    pub(crate) fn take(&self) -> Result<Vec<(&'static str, Tensor)>> {
        let state = |&(name, device)| Ok((name, torch_shim::rng_state(device)?));
        self.0.iter().map(state).collect()
    }

    /// Restores the states. A generator without a stored state keeps its current one.
    pub(crate) fn restore(&self, stored: &HashMap<String, Tensor>) -> Result<()> {
        for &(name, device) in &self.0 {
            if let Some(state) = stored.get(name) {
                torch_shim::set_rng_state(device, state)?;
            }
        }
        Ok(())
    }
}
