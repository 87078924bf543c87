//! Computes `token_accuracy`, the fraction of tokens that were predicted as the likeliest next token. The
//! setting `top_k` is a list of numbers `k`; the default is `[1]`. For a larger `k`, such as 5, the metric
//! `token_accuracy_top5` is the fraction of tokens that were among the `k` likeliest.
//!
//! The accuracy is micro-averaged, like torchmetrics' `MulticlassAccuracy(average="micro", top_k=k)`: every
//! token has the same weight. Of equally likely tokens, the one with the lower id ranks first, so that top 1
//! agrees with argmax. The host ranks the labels on the logits' device; the plugin never receives the logits.

#![forbid(unsafe_code)]

use std::num::NonZeroU64;

use host_plugin_sdk::{Batch, Error, Host, Metric, Result, Values, export_plugin};
use serde::Deserialize;

/// First byte of a state. Must be incremented when the layout changes.
const STATE_VERSION: u8 = 1;

/// The settings; `config.schema.json` describes them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(default = "likeliest")]
    top_k: Vec<NonZeroU64>,
}

fn likeliest() -> Vec<NonZeroU64> {
    vec![NonZeroU64::MIN]
}

/// Accuracy of the tokens seen so far.
#[derive(Clone, Debug)]
pub struct TokenAccuracy {
    token_count: u64,
    /// One entry for each `k` in the setting `top_k`, in the same order.
    top: Vec<Top>,
}

/// The number of labels that were among the `k` likeliest tokens.
#[derive(Clone, Copy, Debug)]
struct Top {
    k: u64,
    found: u64,
}

impl Metric for TokenAccuracy {
    type Config = Config;

    fn create(config: Config, _host: Host) -> Result<Self> {
        let mut top: Vec<Top> = Vec::new();
        for k in config.top_k.iter().map(|k| k.get()) {
            if top.iter().any(|known| known.k == k) {
                return Err(Error::new(format!("top_k contains {k} twice")));
            }
            top.push(Top { k, found: 0 });
        }
        Ok(Self {
            token_count: 0,
            top,
        })
    }

    fn reset(&mut self) {
        self.token_count = 0;
        for top in &mut self.top {
            top.found = 0;
        }
    }

    fn update(&mut self, batch: &Batch<'_>) -> Result<()> {
        let ranks = batch.tensor("label_rank")?; // (batch, time), 0 for the likeliest
        let token_count = batch.scalar_i64("token_count")?;
        if u64::try_from(token_count) != Ok(ranks.numel() as u64) {
            return Err(Error::new(format!(
                "token_count is {token_count}, but there are {} ranks",
                ranks.numel()
            )));
        }
        let mut found = vec![0; self.top.len()];
        for rank in ranks.iter_i64()? {
            let rank = u64::try_from(rank)
                .map_err(|_| Error::new(format!("invalid label_rank: {rank}")))?;
            for (found, top) in found.iter_mut().zip(&self.top) {
                *found += u64::from(rank < top.k);
            }
        }
        self.add(ranks.numel() as u64, &found)
    }

    fn export_state(&self) -> Vec<u8> {
        let mut state = vec![STATE_VERSION];
        state.extend(self.token_count.to_le_bytes());
        for top in &self.top {
            state.extend(top.k.to_le_bytes());
            state.extend(top.found.to_le_bytes());
        }
        state
    }

    fn merge_state(&mut self, state: &[u8]) -> Result<()> {
        let Some((&version, numbers)) = state.split_first() else {
            return Err(Error::new("the state of token-accuracy is empty"));
        };
        if version != STATE_VERSION {
            return Err(Error::unsupported(format!(
                "the state of token-accuracy has version {version}, but this plugin reads version {STATE_VERSION}"
            )));
        }
        let broken = || Error::new("the state of token-accuracy is damaged");
        let (numbers, []) = numbers.as_chunks::<8>() else {
            return Err(broken());
        };
        let numbers: Vec<u64> = numbers.iter().map(|&n| u64::from_le_bytes(n)).collect();
        let (&token_count, top) = numbers.split_first().ok_or_else(broken)?;
        let (top, []) = top.as_chunks::<2>() else {
            return Err(broken());
        };
        let ks = top.iter().map(|&[k, _]| k);
        if !ks.eq(self.top.iter().map(|top| top.k)) {
            return Err(Error::new(
                "the state of token-accuracy was exported with a different top_k",
            ));
        }
        let found: Vec<u64> = top.iter().map(|&[_, found]| found).collect();
        self.add(token_count, &found)
    }

    fn compute(&self, values: &mut Values<'_>) -> Result<()> {
        if self.token_count == 0 {
            return Err(Error::new(
                "no tokens were evaluated, so there is no accuracy",
            ));
        }
        for top in &self.top {
            let name = match top.k {
                1 => "token_accuracy".to_owned(),
                k => format!("token_accuracy_top{k}"),
            };
            values.put_f64(&name, top.found as f64 / self.token_count as f64)?;
        }
        Ok(())
    }
}

impl TokenAccuracy {
    /// Adds the counts. On error, adds nothing. `found` is as long as `top`.
    fn add(&mut self, token_count: u64, found: &[u64]) -> Result<()> {
        if found.iter().any(|&found| found > token_count) {
            return Err(Error::new(
                "the number of top-k hits is higher than the number of tokens",
            ));
        }
        let count = self.token_count.checked_add(token_count);
        self.token_count = count.ok_or_else(|| Error::new("the token count overflowed"))?;
        for (top, found) in self.top.iter_mut().zip(found) {
            // This cannot overflow, because the result is at most the token count, which did not overflow.
            top.found += found;
        }
        Ok(())
    }
}

export_plugin! {
    description: "How often the next token was among the k likeliest",
    metric: TokenAccuracy,
    needs: ["label_rank", "token_count"],
    devices: ["cpu"],
    config: "config.schema.json",
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use host_plugin_sdk::fake;

    use super::*;

    fn metric(config: &str) -> fake::Metric {
        fake::Plugin::load(&PLUGIN).metric(config).expect("created")
    }

    fn batch(ranks: &[i64]) -> fake::Batch {
        let shape = [1, ranks.len() as i64];
        fake::Batch::new()
            .with("label_rank", fake::Tensor::i64(&shape, ranks))
            .with("token_count", ranks.len() as i64)
    }

    fn top_1_and_5(batches: &[&[i64]]) -> fake::Metric {
        let mut metric = metric(r#"{"top_k": [1, 5]}"#);
        for ranks in batches {
            metric.update(&batch(ranks)).expect("updated");
        }
        metric
    }

    fn values(mut metric: fake::Metric) -> BTreeMap<String, f64> {
        metric.compute().expect("computed")
    }

    #[test]
    fn a_label_is_found_among_the_k_likeliest() {
        let values = values(top_1_and_5(&[&[0, 1, 4, 5], &[0, 0, 900, 3]]));
        let expected = [("token_accuracy", 3.0 / 8.0), ("token_accuracy_top5", 0.75)];
        assert_eq!(
            values,
            expected.map(|(name, v)| (name.to_owned(), v)).into()
        );
    }

    #[test]
    fn the_default_is_top_1() {
        let mut metric = metric("{}");
        metric.update(&batch(&[0, 7])).expect("updated");
        assert_eq!(
            values(metric),
            BTreeMap::from([("token_accuracy".to_owned(), 0.5)])
        );
    }

    #[test]
    fn every_token_has_the_same_weight_in_any_batch() {
        let values = values(top_1_and_5(&[&[9], &[0, 0, 0]]));
        assert_eq!(values["token_accuracy"], 0.75);
    }

    #[test]
    fn split_and_merged_equals_the_whole_in_any_order() {
        let ranks: Vec<i64> = (0..1000).map(|i| i * 7919 % 13).collect();
        let whole = values(top_1_and_5(&[&ranks]));
        for parts in [1, 3, 1000] {
            let parts: Vec<_> = ranks.chunks(1000 / parts).collect();
            let (mut forward, mut backward) = (top_1_and_5(&[]), top_1_and_5(&[]));
            for (first, last) in std::iter::zip(&parts, parts.iter().rev()) {
                let state = |part| top_1_and_5(&[part]).export_state().expect("exported");
                forward.merge_state(&state(first)).expect("merged");
                backward.merge_state(&state(last)).expect("merged");
            }
            assert_eq!(values(forward), whole);
            assert_eq!(values(backward), whole);
        }
    }

    #[test]
    fn reset_restores_the_initial_state_which_has_no_values() {
        let mut metric = top_1_and_5(&[&[0, 0]]);
        metric.reset().expect("reset");
        let failure = metric.compute().expect_err("no tokens");
        assert!(failure.message.contains("no tokens"), "{failure}");
        metric.update(&batch(&[2])).expect("updated");
        assert_eq!(values(metric), values(top_1_and_5(&[&[2]])));
    }

    #[test]
    fn invalid_states_are_refused_and_change_nothing() {
        let mut state = top_1_and_5(&[&[0, 3]]).export_state().expect("exported");
        assert_eq!(state.len(), 1 + 8 + 2 * 16);
        let mut one = top_1_and_5(&[&[0, 3]]);
        for length in 0..state.len() {
            assert!(one.merge_state(&state[..length]).is_err(), "{length}");
        }
        assert!(one.merge_state(&[&state[..], &[0]].concat()).is_err());
        let of_top_1 = metric("{}").export_state().expect("exported");
        let failure = one.merge_state(&of_top_1).expect_err("another top_k");
        assert!(failure.message.contains("top_k"), "{failure}");
        state[1..9].fill(0xff);
        assert!(one.merge_state(&state).is_err(), "more than u64");
        state[1..9].fill(0);
        assert!(one.merge_state(&state).is_err(), "more found than tokens");
        state[0] += 1;
        assert!(one.merge_state(&state).expect_err("newer").is_unsupported());
        assert_eq!(values(one), values(top_1_and_5(&[&[0, 3]])));
    }

    #[test]
    fn an_invalid_batch_is_refused_and_changes_nothing() {
        let mut metric = top_1_and_5(&[&[0]]);
        assert!(metric.update(&batch(&[0, -1])).is_err());
        let ranks = fake::Tensor::i64(&[2], &[0, 0]);
        let fewer = fake::Batch::new().with("label_rank", ranks.clone());
        assert!(
            metric
                .update(&fewer)
                .expect_err("no count")
                .is_unsupported()
        );
        assert!(metric.update(&fewer.with("token_count", 3i64)).is_err());
        let floats = fake::Batch::new()
            .with("label_rank", fake::Tensor::f32(&[1], &[0.0]))
            .with("token_count", 1i64);
        assert!(metric.update(&floats).expect_err("floats").is_unsupported());
        // Ranks may have any strides.
        let strided = fake::Batch::new()
            .with(
                "label_rank",
                ranks.strided(&[2, 1], &[-1, 1]).byte_offset(8),
            )
            .with("token_count", 2i64);
        metric.update(&strided).expect("updated");
        assert_eq!(values(metric)["token_accuracy"], 1.0);
    }

    #[test]
    fn invalid_settings_are_refused() {
        let plugin = fake::Plugin::load(&PLUGIN);
        for config in [r#"{"top_k": [0]}"#, r#"{"top_k": [5, 5]}"#, r#"{"k": 1}"#] {
            assert!(plugin.metric(config).is_err(), "{config}");
        }
    }
}
