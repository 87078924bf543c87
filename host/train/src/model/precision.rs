use tch::Kind;

use crate::config::Precision;

/// The data types of a training run. They are chosen only here.
///
/// | precision | parameters, gradients | products | optimizer |
/// |---|---|---|---|
/// | f32 | f32 | f32 | f32 |
/// | f64 | f64 | f64 | f64 |
/// | bf16 | f32 | bf16 | f32 |
///
/// Every layer documents the types of its inputs and outputs with the field names `param` and `compute`, and
/// casts its parameters itself. A new compute type needs only a new row in this table. The optimizer updates
/// the parameters in place. If it had its own copy of the parameters in another type, `optimizer.rs` would
/// have to change, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dtypes {
    /// The type of the layers' parameters, their gradients and the residual stream. Embeddings, norms and the
    /// loss are computed in this type.
    pub(crate) param: Kind,
    /// The type in which matrix products, attention and activation functions are computed.
    pub(crate) compute: Kind,
    /// The type of the parameters that the optimizer updates, and of the optimizer's state.
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

    /// Returns the name of the parameters' type in `config.json`.
    pub(crate) fn name(self) -> &'static str {
        match self.master {
            Kind::Double => "float64",
            _ => "float32",
        }
    }
}
