//! Computes baselines for small runs: the perplexities of n-gram models.

use std::collections::HashMap;
use std::sync::Arc;

use host_core::{MetricValue, Result};

use crate::data::{Packer, SourceFile, Validation, Workers};

/// Candidates for the weight of the unigram model within the bigram model. With a weight of 10, the unigram
/// model counts as much as 10 observed tokens.
const PRIORS: [f64; 5] = [1.0, 10.0, 100.0, 1000.0, 10_000.0];

/// Returns the perplexities of a unigram model and a bigram model on the validation set. The first token of
/// each sequence is left out, because a model does not predict it. The unigram model has add-one smoothing.
/// The bigram model is smoothed with the unigram model (Dirichlet prior, with the best weight of [`PRIORS`]).
/// Both models are estimated from the training files, which are read once.
pub(crate) fn baselines(
    files: Arc<[SourceFile]>,
    workers: &Arc<Workers>,
    vocab_size: i64,
    validation: &Validation,
) -> Result<Vec<MetricValue>> {
    let mut unigram = vec![1_u64; usize::try_from(vocab_size).unwrap_or(0)];
    let mut bigram: HashMap<(u32, u32), u32> = HashMap::new();
    let mut before: HashMap<u32, u32> = HashMap::new();
    let mut packer = Packer::once(files, workers, 1024);
    while let Some(packed) = packer.next()? {
        for &token in &packed.tokens {
            unigram[token as usize] += 1;
        }
        for pair in packed.tokens.windows(2) {
            *bigram.entry((pair[0], pair[1])).or_default() += 1;
            *before.entry(pair[0]).or_default() += 1;
        }
    }
    let total: u64 = unigram.iter().sum();
    let likelihood = |token: u32| unigram[token as usize] as f64 / total as f64;

    let mut count = 0.0;
    let mut unigram_nll = 0.0;
    let mut bigram_nll = [0.0; PRIORS.len()];
    for sequence in &validation.sequences {
        for pair in sequence.windows(2) {
            let alone = likelihood(pair[1]);
            count += 1.0;
            unigram_nll -= alone.ln();
            let together = f64::from(bigram.get(&(pair[0], pair[1])).copied().unwrap_or(0));
            let seen = f64::from(before.get(&pair[0]).copied().unwrap_or(0));
            for (nll, prior) in bigram_nll.iter_mut().zip(PRIORS) {
                *nll -= ((together + prior * alone) / (seen + prior)).ln();
            }
        }
    }
    let best = bigram_nll.into_iter().fold(f64::INFINITY, f64::min);
    Ok(vec![
        MetricValue::new("baseline/unigram_perplexity", (unigram_nll / count).exp()),
        MetricValue::new("baseline/bigram_perplexity", (best / count).exp()),
    ])
}
