//! `my_plugin`: the share of costly tokens. A token is costly if its loss is above `threshold` nats.

#![forbid(unsafe_code)]

use host_plugin_sdk::{Batch, Error, Host, Metric, Result, Values, export_plugin};
use serde::Deserialize;

/// The first byte of a state. Increase it when the layout changes, so that old states are rejected.
const STATE_VERSION: u8 = 1;

/// The settings, which `config.schema.json` describes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(default = "default_threshold")]
    threshold: f32,
}

fn default_threshold() -> f32 {
    5.0
}

/// Counts the costly tokens. Counts can be merged exactly; a share cannot.
#[derive(Debug)]
pub struct CostlyTokens {
    threshold: f32,
    costly: u64,
    tokens: u64,
}

impl Metric for CostlyTokens {
    type Config = Config;

    fn create(config: Config, _host: Host) -> Result<Self> {
        Ok(Self {
            threshold: config.threshold,
            costly: 0,
            tokens: 0,
        })
    }

    fn reset(&mut self) {
        (self.costly, self.tokens) = (0, 0);
    }

    fn update(&mut self, batch: &Batch<'_>) -> Result<()> {
        let nll = batch.tensor("nll")?; // (batch, time), in nats
        let costly = |nll: &f32| *nll > self.threshold || nll.is_nan();
        let costly = nll.iter_f32()?.filter(costly);
        self.costly += costly.count() as u64;
        self.tokens += nll.numel() as u64;
        Ok(())
    }

    fn export_state(&self) -> Vec<u8> {
        let mut state = vec![STATE_VERSION];
        state.extend(self.costly.to_le_bytes());
        state.extend(self.tokens.to_le_bytes());
        state
    }

    fn merge_state(&mut self, state: &[u8]) -> Result<()> {
        let Some((&STATE_VERSION, counts)) = state.split_first() else {
            return Err(Error::unsupported("unsupported state version"));
        };
        let (&[costly, tokens], []) = counts.as_chunks::<8>() else {
            return Err(Error::new("the state does not have 17 bytes"));
        };
        self.costly += u64::from_le_bytes(costly);
        self.tokens += u64::from_le_bytes(tokens);
        Ok(())
    }

    fn compute(&self, values: &mut Values<'_>) -> Result<()> {
        if self.tokens == 0 {
            return Err(Error::new("no tokens were evaluated"));
        }
        values.put_f64("my_plugin", self.costly as f64 / self.tokens as f64)
    }
}

export_plugin! {
    description: "Share of tokens whose loss is above a threshold",
    metric: CostlyTokens,
    needs: ["nll"],
    config: "config.schema.json",
}

#[cfg(test)]
mod tests {
    use host_plugin_sdk::fake::{Batch, Metric, Plugin, Tensor};

    use super::*;

    fn metric(nll: &[f32]) -> Metric {
        let plugin = Plugin::load(&PLUGIN);
        let mut metric = plugin.metric(r#"{"threshold": 2.0}"#).expect("created");
        let batch = Batch::new().with("nll", Tensor::f32(&[1, nll.len() as i64], nll));
        metric.update(&batch).expect("updated");
        metric
    }

    #[test]
    fn counts_tokens_above_the_threshold() {
        let values = metric(&[0.5, 2.0, 2.5, f32::NAN]).compute();
        assert_eq!(values.expect("computed")["my_plugin"], 0.5);
    }

    #[test]
    fn merging_adds_the_counts() {
        let mut merged = metric(&[3.0, 1.0, 1.0]);
        let state = metric(&[9.0]).export_state().expect("exported");
        merged.merge_state(&state).expect("merged");
        assert_eq!(merged.compute().expect("computed")["my_plugin"], 0.5);
        assert!(merged.merge_state(&state[1..]).is_err());
    }

    #[test]
    fn reset_clears_the_counts() {
        let mut metric = metric(&[3.0]);
        metric.reset().expect("reset");
        assert!(metric.compute().is_err());
    }
}
