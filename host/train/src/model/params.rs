use tch::{Device, Kind, Tensor};

/// A trainable tensor with its name on the Hugging Face Hub.
#[derive(Debug)]
pub(crate) struct Param {
    pub(crate) name: String,
    pub(crate) tensor: Tensor,
}

/// Creates parameters and keeps a list of them in the order of their creation.
pub(super) struct ParamMaker {
    pub(super) params: Vec<Param>,
    pub(super) kind: Kind,
    pub(super) device: Device,
}

impl ParamMaker {
    /// Creates a parameter from a normal distribution with mean 0.
    pub(super) fn normal(&mut self, name: &str, shape: &[i64], std: f64) -> Tensor {
        // The values are drawn on the CPU, so that a seed gives the same weights on every device.
        let mut tensor = Tensor::empty(shape, (self.kind, Device::Cpu));
        let _ = tensor.normal_(0.0, std);
        self.keep(name, tensor.to_device(self.device))
    }

    /// Creates a parameter whose elements all have the same value.
    pub(super) fn constant(&mut self, name: &str, shape: &[i64], value: f64) -> Tensor {
        let tensor = Tensor::full(shape, value, (self.kind, self.device));
        self.keep(name, tensor)
    }

    fn keep(&mut self, name: &str, tensor: Tensor) -> Tensor {
        let tensor = tensor.set_requires_grad(true);
        self.params.push(Param {
            name: name.to_owned(),
            tensor: tensor.shallow_clone(),
        });
        tensor
    }
}
