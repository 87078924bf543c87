use serde::{Deserialize, Serialize};
use tch::Tensor;

/// The activation function of a feed-forward layer. The variants have the names that transformers uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Activation {
    /// GPT-2's function: GELU, approximated with tanh.
    GeluNew,
    /// Another name for `GeluNew`.
    GeluPytorchTanh,
    /// Exact GELU, with the error function.
    Gelu,
    Relu,
    Silu,
    /// An older name of SiLU.
    Swish,
    Tanh,
}

impl Activation {
    pub(crate) fn apply(self, x: &Tensor) -> Tensor {
        match self {
            Self::GeluNew | Self::GeluPytorchTanh => x.gelu("tanh"),
            Self::Gelu => x.gelu("none"),
            Self::Relu => x.relu(),
            Self::Silu | Self::Swish => x.silu(),
            Self::Tanh => x.tanh(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_selects_its_function() {
        let x = 0.7_f64;
        let tanh_form = 0.5
            * x
            * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh());
        // x times the cumulative normal distribution at x. The value of the distribution is from a table.
        let exact = x * 0.758_036_347_8;
        let silu = x / (1.0 + (-x).exp());
        for (name, expected) in [
            ("gelu_new", tanh_form),
            ("gelu_pytorch_tanh", tanh_form),
            ("gelu", exact),
            ("relu", x),
            ("silu", silu),
            ("swish", silu),
            ("tanh", x.tanh()),
        ] {
            let activation: Activation = serde_json::from_value(name.into()).expect("a known name");
            let value = |x: f64| activation.apply(&Tensor::from(x)).double_value(&[]);
            assert!((value(x) - expected).abs() < 1e-9, "{name}: {}", value(x));
            assert!(value(-x) != -value(x) || name == "tanh", "{name}");
            assert_eq!(serde_json::to_value(activation).expect("a name"), name);
        }
        assert_eq!(
            Activation::Relu
                .apply(&Tensor::from(-1.0))
                .double_value(&[]),
            0.0
        );
    }
}
