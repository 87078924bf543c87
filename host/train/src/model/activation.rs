use serde::{Deserialize, Serialize};
use tch::Tensor;

/// What a feed-forward layer applies between its two products, by transformers' names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Activation {
    /// GPT-2's own: GELU by its approximation with tanh.
    GeluNew,
    /// The same under another name.
    GeluPytorchTanh,
    /// GELU itself, by the error function.
    Gelu,
    Relu,
    Silu,
    /// SiLU's older name.
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
    fn each_name_is_its_function() {
        let x = 0.7_f64;
        let tanh_form = 0.5
            * x
            * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh());
        // x times the normal distribution's share below x, from a table of it.
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
