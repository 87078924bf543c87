use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;

/// The NVIDIA GPUs of the machine, read through the driver's library (NVML). If the library or a GPU is
/// missing, there are no values.
pub(super) struct Gpus(Option<Nvml>);

impl Gpus {
    pub(super) fn find() -> Self {
        Self(Nvml::init().ok())
    }

    /// Measures all GPUs that the driver reports, including their use by other processes. Omits values that a
    /// GPU does not provide.
    pub(super) fn look(&self) -> Vec<(String, f64)> {
        let Some(nvml) = &self.0 else {
            return Vec::new();
        };
        let mut values = Vec::new();
        for index in 0..nvml.device_count().unwrap_or(0) {
            let Ok(gpu) = nvml.device_by_index(index) else {
                continue;
            };
            let mut put = |name: &str, value: Option<f64>| {
                values.extend(value.map(|value| (format!("gpu{index}_{name}"), value)));
            };
            let busy = gpu.utilization_rates().ok();
            put("percent", busy.map(|busy| f64::from(busy.gpu)));
            let memory = gpu.memory_info().ok();
            put("memory_bytes", memory.map(|memory| memory.used as f64));
            let heat = gpu.temperature(TemperatureSensor::Gpu).ok();
            put("temperature_celsius", heat.map(f64::from));
            let milliwatts = gpu.power_usage().ok();
            put(
                "power_watts",
                milliwatts.map(|power| f64::from(power) / 1e3),
            );
        }
        values
    }
}
