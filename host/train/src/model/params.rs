use tch::{Device, Kind, Tensor};

/// A trainable tensor under its name on the Hub.
#[derive(Debug)]
pub(crate) struct Param {
    pub(crate) name: String,
    pub(crate) tensor: Tensor,
}

/// Makes parameters, and keeps the list of them in the order in which they are made.
pub(super) struct ParamMaker {
    pub(super) params: Vec<Param>,
    pub(super) kind: Kind,
    pub(super) device: Device,
}

impl ParamMaker {
    /// A parameter drawn from the normal distribution around 0.
    pub(super) fn normal(&mut self, name: &str, shape: &[i64], std: f64) -> Tensor {
        // Drawn on the CPU, so that a seed means the same weights on every device.
        let mut tensor = Tensor::empty(shape, (self.kind, Device::Cpu));
        let _ = tensor.normal_(0.0, std);
        self.keep(name, tensor.to_device(self.device))
    }

    /// A parameter whose elements are all the same.
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
