use tch::{Device, Kind};

use crate::config::Precision;
use crate::torch_shim::AutocastBf16;

/// How the model computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arithmetic(pub(crate) Precision);

impl Arithmetic {
    /// Type of the weights, their gradients and the optimizer's state.
    pub(crate) fn weights(self) -> Kind {
        match self.0 {
            Precision::F64 => Kind::Double,
            Precision::F32 | Precision::Bf16 => Kind::Float,
        }
    }

    /// The weights' type by its name in `config.json`.
    pub(crate) fn weights_name(self) -> &'static str {
        match self.0 {
            Precision::F64 => "float64",
            Precision::F32 | Precision::Bf16 => "float32",
        }
    }

    /// Runs a forward pass, with bfloat16 matrix products if that is the precision.
    pub(crate) fn autocast<T>(self, device: Device, f: impl FnOnce() -> T) -> T {
        let _guard = (self.0 == Precision::Bf16).then(|| AutocastBf16::new(device));
        f()
    }
}
