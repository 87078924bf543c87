use tch::{Device, Kind, Tensor};

use crate::tokenizer::ByteLengths;

/// The tokens' bytes where the model is.
pub(crate) struct ByteTable {
    /// (vocabulary) i64.
    within: Tensor,
    /// What a token at the beginning of a text has more or less, and after which tokens a text begins;
    /// (vocabulary) i64 each. None: the place makes no difference.
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

    /// The bytes of all tokens of (batch, sequence) but each sequence's first: 0-d i64.
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
        // 0 ends a text; 1 is a word with a space before it, 2 one without.
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
        // What ends one sequence begins no other.
        assert_eq!(count(&[[1, 1, 1, 0], [1, 1, 1, 1]]), 8 + 12);
    }
}
