use tch::{Device, Kind, Tensor};

use crate::tokenizer::ByteLengths;

/// The number of bytes of each token, on the model's device.
pub(crate) struct ByteTable {
    /// The number of bytes of each token: (vocabulary) i64.
    within: Tensor,
    /// Two tensors, each (vocabulary) i64. The first has the number of additional bytes of each token at the
    /// beginning of a text, which can be negative. The second is 1 for each token after which a text begins.
    /// `None` if every token has as many bytes at the beginning of a text as elsewhere.
    begins: Option<(Tensor, Tensor)>,
}

impl ByteTable {
    pub(crate) fn new(lengths: &ByteLengths, device: Device) -> Self {
        let table = |values: &[i64]| Tensor::from_slice(values).to_device(device);
        Self {
            within: table(&lengths.within),
            begins: (!lengths.is_plain()).then(|| (table(&lengths.at_begin), table(&lengths.ends))),
        }
    }

    /// Returns the total number of bytes of the tokens as a 0-d i64. Does not count the first token of each
    /// sequence. `tokens` is (batch, sequence).
    pub(crate) fn count(&self, tokens: &Tensor) -> Tensor {
        let length = tokens.size()[1] - 1;
        let look_up = |table: &Tensor, from: i64| {
            table.index_select(0, &tokens.narrow(1, from, length).reshape([-1]))
        };
        let within = look_up(&self.within, 1).sum(Kind::Int64);
        match &self.begins {
            None => within,
            Some((at_begin, ends)) => {
                within + (look_up(at_begin, 1) * look_up(ends, 0)).sum(Kind::Int64)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_at_the_beginning_of_a_text_counts_as_such() {
        // Token 0 ends a text. Token 1 is a word and the space before it; token 2 is a word without a space.
        let lengths = ByteLengths {
            within: vec![0, 4, 3],
            at_begin: vec![0, -1, 0],
            ends: vec![1, 0, 0],
        };
        let table = ByteTable::new(&lengths, Device::Cpu);
        let count = |rows: &[[i64; 4]]| {
            let tokens = Tensor::from_slice(&rows.concat()).view([-1, 4]);
            table.count(&tokens).int64_value(&[])
        };
        assert_eq!(count(&[[0, 1, 1, 2]]), 3 + 4 + 3);
        assert_eq!(count(&[[1, 1, 0, 1]]), 4 + 3);
        // If the last token of a sequence ends a text, this has no effect on the next sequence.
        assert_eq!(count(&[[1, 1, 1, 0], [1, 1, 1, 1]]), 8 + 12);
    }
}
