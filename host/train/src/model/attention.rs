use tch::Tensor;

use super::layers::Linear;
use crate::torch_shim;

/// Keys and values of a block's previous tokens. Both tensors have the shape (batch, heads, time, width of a
/// head).
pub(crate) type Past = (Tensor, Tensor);

/// Causal self-attention.
#[derive(Debug)]
pub(super) struct Attention {
    /// Projects the input to queries, keys and values, which are concatenated.
    pub(super) qkv: Linear,
    pub(super) out: Linear,
    pub(super) heads: i64,
    /// Multiplies the scores.
    pub(super) scale: f64,
}

impl Attention {
    /// Maps (batch, time, width) to (batch, time, width) of the type `Dtypes::compute`. If `past` is given,
    /// the new tokens also attend to the previous tokens. The keys and values of the new tokens are then
    /// added to `past`.
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

    /// Attends to the previous and the new tokens. If there are previous tokens, there must be only one new
    /// token, because no causal mask is applied in that case.
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
