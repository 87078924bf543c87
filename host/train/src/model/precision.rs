use tch::Kind;

use crate::config::Precision;

/// The types that a training computes with. This is the only place that chooses them.
///
/// | precision | parameters, gradients | products | optimizer |
/// |---|---|---|---|
/// | f32 | f32 | f32 | f32 |
/// | f64 | f64 | f64 | f64 |
/// | bf16 | f32 | bf16 | f32 |
///
/// Every layer states what it takes and returns in these terms, and casts its parameters itself. Another
/// compute type is another row of this table. The optimizer updates the parameters themselves, so a master
/// copy in another type than theirs would also change `optimizer.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dtypes {
    /// The parameters as the layers see them, their gradients, and the residual stream between the layers:
    /// embeddings, norms and the loss compute in it.
    pub(crate) param: Kind,
    /// What matrix products, attention and activation functions compute in.
    pub(crate) compute: Kind,
    /// The parameters as the optimizer updates them, and its state.
    pub(crate) master: Kind,
}

impl Dtypes {
    pub(crate) fn of(precision: Precision) -> Self {
        let all = |kind| Self {
            param: kind,
            compute: kind,
            master: kind,
        };
        match precision {
            Precision::F32 => all(Kind::Float),
            Precision::F64 => all(Kind::Double),
            Precision::Bf16 => Self {
                compute: Kind::BFloat16,
                ..all(Kind::Float)
            },
        }
    }

    /// The parameters' type by its name in `config.json`.
    pub(crate) fn name(self) -> &'static str {
        match self.master {
            Kind::Double => "float64",
            _ => "float32",
        }
    }
}
