//! The layers of a decoder. `param` and `compute` in their documentation are the types in
//! [`Dtypes`](super::precision::Dtypes).

use tch::{Kind, Tensor};

use super::activation::Activation;
use super::attention::{Attention, Past};
use crate::torch_shim;

/// Dropout probabilities; all 0 outside training.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Dropout {
    pub(crate) embedding: f64,
    pub(crate) attention: f64,
    pub(crate) residual: f64,
}

/// The embeddings of tokens and positions.
#[derive(Debug)]
pub(super) struct Embedding {
    /// (vocabulary, width)
    pub(super) tokens: Tensor,
    /// (positions, width)
    pub(super) positions: Tensor,
}

/// A block of the decoder: attention and a feed-forward layer, each with a norm before it and a residual
/// connection around it.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) attention_norm: Norm,
    pub(super) attention: Attention,
    pub(super) mlp_norm: Norm,
    pub(super) mlp: Mlp,
}

/// A feed-forward layer.
#[derive(Debug)]
pub(super) struct Mlp {
    pub(super) up: Linear,
    pub(super) activation: Activation,
    pub(super) down: Linear,
}

/// Layer normalization (arXiv 1607.06450).
#[derive(Debug)]
pub(super) struct Norm {
    pub(super) weight: Tensor,
    pub(super) bias: Tensor,
    pub(super) eps: f64,
}

/// A linear layer with a weight of shape (in, out), like GPT-2's `Conv1D`.
#[derive(Debug)]
pub(super) struct Linear {
    pub(super) weight: Tensor,
    pub(super) bias: Tensor,
    pub(super) compute: Kind,
}

impl Embedding {
    /// Maps i64 tokens of shape (batch, time) to `param` embeddings of shape (batch, time, width). `position`
    /// is the position of the first token.
    pub(super) fn forward(&self, tokens: &Tensor, position: i64, dropout: Dropout) -> Tensor {
        let embedded = Tensor::embedding(&self.tokens, tokens, -1, false, false);
        let positions = self.positions.narrow(0, position, tokens.size()[1]);
        drop_out(embedded + positions, dropout.embedding)
    }
}

impl Block {
    /// Maps a `param` tensor of shape (batch, time, width) to a tensor of the same shape and type. With
    /// `past`, also attends to the previous tokens, and adds the keys and values of the new tokens to `past`.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        dropout: Dropout,
        past: Option<&mut Option<Past>>,
    ) -> Tensor {
        let normed = self.attention_norm.forward(x);
        let attended = self.attention.forward(&normed, dropout.attention, past);
        let x = x + drop_out(attended, dropout.residual);
        let fed = self.mlp.forward(&self.mlp_norm.forward(&x));
        &x + drop_out(fed, dropout.residual)
    }
}

impl Mlp {
    /// Maps a tensor of shape (…, width) to a `compute` tensor of the same shape.
    fn forward(&self, x: &Tensor) -> Tensor {
        let inner = self.activation.apply(&self.up.forward(x));
        self.down.forward(&inner)
    }
}

impl Norm {
    /// Maps a `param` tensor of shape (…, width) to a tensor of the same shape and type.
    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let (weight, bias) = (Some(&self.weight), Some(&self.bias));
        x.layer_norm(self.weight.size(), weight, bias, self.eps, true)
    }
}

impl Linear {
    /// Casts a tensor of shape (…, in) to `compute`, and maps it to a tensor of shape (…, out).
    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let mut shape = x.size();
        let (from, to) = (self.weight.size()[0], self.weight.size()[1]);
        if let Some(last) = shape.last_mut() {
            *last = to;
        }
        let cast = |tensor: &Tensor| tensor.to_kind(self.compute);
        let x = cast(&x.reshape([-1, from]));
        torch_shim::conv1d(&x, &cast(&self.weight), &cast(&self.bias)).view(shape.as_slice())
    }
}

fn drop_out(x: Tensor, p: f64) -> Tensor {
    if p > 0.0 { x.dropout(p, true) } else { x }
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor, no_grad_guard};

    use crate::config::Precision;
    use crate::device::tests::device;
    use crate::model::layers::Dropout;
    use crate::model::{Decoder, Dtypes, ModelConfig};

    #[test]
    fn every_layer_returns_the_type_that_it_states() {
        let _guard = no_grad_guard();
        for (precision, param, compute) in [
            (Precision::F32, Kind::Float, Kind::Float),
            (Precision::F64, Kind::Double, Kind::Double),
            (Precision::Bf16, Kind::Float, Kind::BFloat16),
        ] {
            let config = ModelConfig::preset("tiny").expect("a preset");
            let model = Decoder::new(config, Dtypes::of(precision), device());
            let tokens = Tensor::zeros([2, 8], (Kind::Int64, device()));
            let dropout = Dropout::default();
            let layers = &model.layers;
            let x = layers.embedding.forward(&tokens, 0, dropout);
            let block = &layers.blocks[0];
            let normed = block.attention_norm.forward(&x);
            let kinds = [&x, &normed, &block.forward(&x, dropout, None)].map(Tensor::kind);
            assert_eq!(kinds, [param; 3], "{precision:?}");
            let attended = block.attention.forward(&normed, 0.0, None);
            let cached = block.attention.forward(&normed, 0.0, Some(&mut None));
            let kinds = [&attended, &cached, &block.mlp.forward(&normed)].map(Tensor::kind);
            assert_eq!(kinds, [compute; 3], "{precision:?}");
            assert_eq!(model.logits(&tokens).kind(), param, "{precision:?}");
        }
    }
}
