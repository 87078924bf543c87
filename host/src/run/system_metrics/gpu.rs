use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;

/// The NVIDIA GPUs of the machine, by the driver's own library, which is loaded if it is there. Without
/// it, or without a GPU, there is nothing to say.
pub(super) struct Gpus(Option<Nvml>);

impl Gpus {
    pub(super) fn find() -> Self {
        Self(Nvml::init().ok())
    }

    /// How they do: all that the driver shows, whoever uses them. What a GPU does not tell is left out.
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
