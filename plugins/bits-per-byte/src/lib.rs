//! `bits_per_byte`: the bits that the model needs per byte of the evaluation text. Unlike the
//! perplexity, it is comparable between models with different tokenizers.
//!
//! It is the sum of all negative log likelihoods in bits divided by the number of bytes of the predicted
//! tokens, as in lm-evaluation-harness. A token without text, such as the separator of
//! documents, has 0 bytes, but its loss counts, because the end of a document is information
//! too. Shorter documents therefore cost slightly more.

#![forbid(unsafe_code)]

use std::f64::consts::LN_2;

use host_plugin_sdk::{Batch, Error, Host, Metric, NoConfig, Result, Sum, Values, export_plugin};

/// First byte of an exported state. It must change when the layout changes.
const STATE_VERSION: u8 = 1;
/// Size of an exported state: version, sum, count.
const STATE_BYTES: usize = 1 + 16 + 8;

/// Bits per byte of the text seen so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct BitsPerByte {
    /// In nats.
    loss_sum: Sum,
    byte_count: u64,
}

impl Metric for BitsPerByte {
    type Config = NoConfig;

    fn create(_config: NoConfig, _host: Host) -> Result<Self> {
        Ok(Self::default())
    }

    fn reset(&mut self) {
        *self = Self::default();
    }

    fn update(&mut self, batch: &Batch<'_>) -> Result<()> {
        let byte_count = batch.scalar_i64("byte_count")?;
        let byte_count = u64::try_from(byte_count)
            .map_err(|_| Error::new(format!("invalid byte_count: {byte_count}")))?;
        self.add(Sum::from(batch.scalar_f64("loss_sum")?), byte_count)
    }

    fn export_state(&self) -> Vec<u8> {
        let mut state = Vec::with_capacity(STATE_BYTES);
        state.push(STATE_VERSION);
        state.extend(self.loss_sum.to_le_bytes());
        state.extend(self.byte_count.to_le_bytes());
        state
    }

    fn merge_state(&mut self, state: &[u8]) -> Result<()> {
        let Some((&version, numbers)) = state.split_first() else {
            return Err(Error::new("the state of bits-per-byte is empty"));
        };
        if version != STATE_VERSION {
            return Err(Error::unsupported(format!(
                "the state of bits-per-byte has version {version}, but this plugin reads version {STATE_VERSION}"
            )));
        }
        let wrong = || {
            Error::new(format!(
                "a state of bits-per-byte has {STATE_BYTES} bytes, but this one has {}",
                state.len()
            ))
        };
        let (&loss_sum, count) = numbers.split_first_chunk().ok_or_else(wrong)?;
        let count = count.try_into().map_err(|_| wrong())?;
        self.add(Sum::from_le_bytes(loss_sum), u64::from_le_bytes(count))
    }

    fn compute(&self, values: &mut Values<'_>) -> Result<()> {
        if self.byte_count == 0 {
            return Err(Error::new("no text was evaluated, so the byte count is 0"));
        }
        let nats_per_byte = self.loss_sum.value() / self.byte_count as f64;
        values.put_f64("bits_per_byte", nats_per_byte / LN_2)
    }
}

impl BitsPerByte {
    fn add(&mut self, loss_sum: Sum, byte_count: u64) -> Result<()> {
        let count = self.byte_count.checked_add(byte_count);
        self.byte_count = count.ok_or_else(|| Error::new("the byte count overflowed"))?;
        self.loss_sum += loss_sum;
        Ok(())
    }
}

export_plugin! {
    description: "Bits per byte of the evaluation text",
    metric: BitsPerByte,
    needs: ["loss_sum", "byte_count"],
    devices: ["cpu"],
}

#[cfg(test)]
mod tests {
    use host_plugin_sdk::fake;

    use super::*;

    fn of(batches: &[(f64, i64)]) -> fake::Metric {
        let mut metric = fake::Plugin::load(&PLUGIN).metric("{}").expect("created");
        for &(loss_sum, byte_count) in batches {
            metric
                .update(&batch(loss_sum, byte_count))
                .expect("updated");
        }
        metric
    }

    fn batch(loss_sum: f64, byte_count: i64) -> fake::Batch {
        fake::Batch::new()
            .with("loss_sum", loss_sum)
            .with("byte_count", byte_count)
    }

    fn value(mut metric: fake::Metric) -> f64 {
        let values = metric.compute().expect("computed");
        assert_eq!(values.len(), 1);
        values["bits_per_byte"]
    }

    #[test]
    fn a_uniform_guess_among_all_bytes_costs_eight_bits() {
        let bits = value(of(&[(100.0 * 256f64.ln(), 100), (7.0 * 256f64.ln(), 7)]));
        assert!((bits - 8.0).abs() < 1e-14, "{bits}");
    }

    #[test]
    fn a_token_without_text_adds_loss_but_no_bytes() {
        assert_eq!(value(of(&[(LN_2, 0), (2.0 * LN_2, 3)])), 1.0);
        let failure = of(&[(LN_2, 0)]).compute().expect_err("no bytes");
        assert!(failure.message.contains("no text"), "{failure}");
    }

    #[test]
    fn split_and_merged_equals_the_whole_in_any_order() {
        let batches: Vec<(f64, i64)> = (1..2000)
            .map(|i| (f64::from(i * 7919 % 1009).powi(3) / 3.0, i64::from(i % 97)))
            .collect();
        let whole = value(of(&batches));
        for parts in [2, 7, 1999] {
            let states: Vec<Vec<u8>> = batches
                .chunks(batches.len().div_ceil(parts))
                .map(|part| of(part).export_state().expect("exported"))
                .collect();
            let (mut forward, mut backward) = (of(&[]), of(&[]));
            for (first, last) in std::iter::zip(&states, states.iter().rev()) {
                forward.merge_state(first).expect("merged");
                backward.merge_state(last).expect("merged");
            }
            for merged in [forward, backward] {
                let bits = value(merged);
                assert!((bits - whole).abs() <= 1e-14 * whole, "{bits} and {whole}");
            }
        }
    }

    #[test]
    fn reset_restores_the_initial_state() {
        let mut metric = of(&[(f64::NAN, 4)]);
        metric.reset().expect("reset");
        assert!(metric.compute().is_err());
        metric.update(&batch(LN_2, 1)).expect("updated");
        assert_eq!(value(metric), 1.0);
    }

    #[test]
    fn a_loss_that_is_not_finite_is_reported_as_such() {
        assert_eq!(value(of(&[(1.0, 1), (f64::INFINITY, 1)])), f64::INFINITY);
        assert!(value(of(&[(f64::NAN, 1), (1.0, 1)])).is_nan());
    }

    #[test]
    fn invalid_states_are_refused_and_change_nothing() {
        let state = of(&[(3.0, 4)]).export_state().expect("exported");
        assert_eq!(state.len(), STATE_BYTES);
        let mut metric = of(&[(LN_2, 1)]);
        for length in 0..state.len() {
            assert!(metric.merge_state(&state[..length]).is_err(), "{length}");
        }
        let longer = [&state[..], &[0]].concat();
        assert!(metric.merge_state(&longer).is_err());
        let newer = [&[STATE_VERSION + 1], &state[1..]].concat();
        let failure = metric.merge_state(&newer).expect_err("newer");
        assert!(failure.is_unsupported());
        let endless = [&state[..17], &u64::MAX.to_le_bytes()].concat();
        assert!(metric.merge_state(&endless).is_err());
        assert_eq!(value(metric), 1.0);
    }

    #[test]
    fn an_incomplete_batch_is_refused() {
        let mut metric = of(&[]);
        let lacking = fake::Batch::new().with("loss_sum", 1.0);
        let failure = metric.update(&lacking).expect_err("refused");
        assert!(failure.is_unsupported());
        assert!(metric.update(&batch(1.0, -1)).is_err());
    }
}
