//! A metric in about thirty lines: the mean loss of the evaluation's worst sequence. It reveals bad data that
//! the mean over all sequences hides.
//!
//! Build it with `cargo build --release -p sequence-loss` and load it by its path:
//! `host run … --plugin target/release/libsequence_loss.so`.

#![forbid(unsafe_code)]

use host_plugin_sdk::{Batch, Error, Host, Metric, NoConfig, Result, Values, export_plugin};

/// The greatest mean loss of a sequence so far; `None` before the first sequence.
#[derive(Default)]
pub struct SequenceLoss(Option<f64>);

impl Metric for SequenceLoss {
    type Config = NoConfig;

    fn create(_config: NoConfig, _host: Host) -> Result<Self> {
        Ok(Self::default())
    }

    fn reset(&mut self) {
        self.0 = None;
    }

    fn update(&mut self, batch: &Batch<'_>) -> Result<()> {
        let nll = batch.tensor("nll")?; // (batch, time)
        let time = nll.shape().last().map_or(1, |&time| time.max(1) as usize);
        for sequence in nll.as_f32()?.chunks(time) {
            let sum: f64 = sequence.iter().map(|&loss| f64::from(loss)).sum();
            self.0 = worse(self.0, Some(sum / time as f64));
        }
        Ok(())
    }

    fn export_state(&self) -> Vec<u8> {
        serde_json::json!({ "version": 1, "bits": self.0.map(f64::to_bits) })
            .to_string()
            .into()
    }

    fn merge_state(&mut self, state: &[u8]) -> Result<()> {
        let state: serde_json::Value = serde_json::from_slice(state)?;
        if state["version"] != 1 {
            return Err(Error::unsupported(
                "the state is from another version of sequence-loss",
            ));
        }
        self.0 = worse(self.0, state["bits"].as_u64().map(f64::from_bits));
        Ok(())
    }

    fn compute(&self, values: &mut Values<'_>) -> Result<()> {
        let worst = self
            .0
            .ok_or_else(|| Error::new("no sequence was evaluated"))?;
        values.put_f64("loss/worst_sequence", worst)
    }
}

/// Returns the greater value. NaN counts as greater than any number.
fn worse(one: Option<f64>, other: Option<f64>) -> Option<f64> {
    match (one, other) {
        (Some(one), Some(other)) if one.is_nan() || one >= other => Some(one),
        _ => other.or(one),
    }
}

export_plugin! {
    description: "Mean loss of the evaluation's worst sequence",
    metric: SequenceLoss,
    needs: ["nll"],
}

#[cfg(test)]
mod tests {
    use host_plugin_sdk::fake::{Batch, Metric, Plugin, Tensor};

    use super::*;

    fn metric(sequences: &[f32]) -> Metric {
        let mut metric = Plugin::load(&PLUGIN).metric("{}").expect("created");
        let shape = [sequences.len() as i64 / 2, 2];
        let batch = Batch::new().with("nll", Tensor::f32(&shape, sequences));
        metric.update(&batch).expect("updated");
        metric
    }

    #[test]
    fn the_worst_sequence_counts_in_merged_states_too() {
        let mut one = metric(&[1.0, 3.0, 0.0, 1.0]);
        assert_eq!(one.compute().expect("computed")["loss/worst_sequence"], 2.0);
        let state = metric(&[5.0, 7.0]).export_state().expect("exported");
        one.merge_state(&state).expect("merged");
        assert_eq!(one.compute().expect("computed")["loss/worst_sequence"], 6.0);
    }

    #[test]
    fn without_a_sequence_there_is_no_value() {
        let mut empty = metric(&[]);
        assert!(empty.compute().is_err());
        let state = empty.export_state().expect("exported");
        let mut one = metric(&[-f32::NAN, 1.0, 2.0, 2.0]);
        one.merge_state(&state).expect("merged");
        assert!(one.compute().expect("computed")["loss/worst_sequence"].is_nan());
    }
}
