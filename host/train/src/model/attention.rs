use tch::Tensor;

use super::layers::Linear;
use crate::torch_shim;

/// Keys and values of the tokens that a block has seen: (batch, heads, time, width of a head) each.
pub(crate) type Past = (Tensor, Tensor);

/// Causal self-attention.
#[derive(Debug)]
pub(super) struct Attention {
    /// Queries, keys and values side by side.
    pub(super) qkv: Linear,
    pub(super) out: Linear,
    pub(super) heads: i64,
    /// Multiplies the scores.
    pub(super) scale: f64,
}

impl Attention {
    /// (batch, time, width) `compute` of (batch, time, width). With `past`, over what it holds as well; it
    /// then holds these tokens, too.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        dropout: f64,
        past: Option<&mut Option<Past>>,
    ) -> Tensor {
        let qkv = self.qkv.forward(x);
        let attended = match past {
            None => torch_shim::causal_attention(&qkv, self.heads, dropout, self.scale),
            Some(past) => self.attend_after(&qkv, past),
        };
        self.out.forward(&attended)
    }

    /// One new token sees all of the past; several come only without one.
    fn attend_after(&self, qkv: &Tensor, past: &mut Option<Past>) -> Tensor {
        let (batch, time, width) = (qkv.size()[0], qkv.size()[1], qkv.size()[2] / 3);
        let parts = qkv
            .view([batch, time, 3, self.heads, width / self.heads])
            .permute([2, 0, 3, 1, 4]);
        let (query, mut keys, mut values) = (parts.get(0), parts.get(1), parts.get(2));
        let causal = past.is_none();
        if let Some((past_keys, past_values)) = past.take() {
            keys = Tensor::cat(&[past_keys, keys], 2);
            values = Tensor::cat(&[past_values, values], 2);
        }
        let attended = Tensor::scaled_dot_product_attention::<Tensor>(
            &query, &keys, &values, None, 0.0, causal, self.scale, false,
        );
        *past = Some((keys, values));
        attended.transpose(1, 2).reshape([batch, time, width])
    }
}
