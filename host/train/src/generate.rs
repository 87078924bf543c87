use std::ops::ControlFlow;
use std::path::PathBuf;

use host_core::{Error, ErrorKind, Result};
use tch::{Kind, Tensor, no_grad_guard};

use crate::config::Precision;
use crate::device;
use crate::model::{Decoder, Dtypes, ModelSource, Past};
use crate::tokenizer::Tokenizer;

/// The settings for sampling text.
#[derive(Clone, Debug)]
pub struct Generate {
    /// The folder of a checkpoint, written by this host or by transformers.
    pub checkpoint: PathBuf,
    /// The text to continue.
    pub prompt: String,
    /// The maximum number of new tokens.
    pub max_new_tokens: usize,
    /// The sampling temperature; 0 always picks the most likely token.
    pub temperature: f64,
    /// Sampling is limited to this number of the most likely tokens. 0 means no limit.
    pub top_k: i64,
    /// Seeds the sampling.
    pub seed: i64,
    /// `cpu`, `cuda`, `cuda:N` or `auto`.
    pub device: String,
}

/// Samples text from a checkpoint. Passes each piece of the text to `piece` as soon as the piece's characters
/// are complete. Stops at the end-of-text token, at `max_new_tokens`, or when `piece` returns `Break`.
///
/// # Errors
/// Returns an error if the checkpoint cannot be read or the settings are invalid.
pub fn generate(request: &Generate, piece: &mut dyn FnMut(&str) -> ControlFlow<()>) -> Result<()> {
    if !(request.temperature.is_finite() && request.temperature >= 0.0) || request.top_k < 0 {
        return Err(Error::new(
            ErrorKind::Config,
            "temperature and top-k must not be negative",
        ));
    }
    let device = device::parse(&request.device, (0, 1))?;
    let source = ModelSource::read(&request.checkpoint.to_string_lossy())?;
    if !source.has_weights {
        let message = format!(
            "the folder has no weights: {}",
            request.checkpoint.display()
        );
        return Err(Error::new(ErrorKind::Config, message)
            .hint("use the folder of a checkpoint, or a run that has a checkpoint"));
    }
    let tokenizer = Tokenizer::read(&request.checkpoint, None)?;
    if tokenizer.vocab_size() > source.config.shape.vocab_size {
        let message = format!(
            "the tokenizer has ids up to {}, but the model has only {} rows: {}",
            tokenizer.vocab_size() - 1,
            source.config.shape.vocab_size,
            request.checkpoint.display()
        );
        return Err(Error::new(ErrorKind::Config, message)
            .hint("use the tokenizer that belongs to the model's weights"));
    }
    let mut model = Decoder::new(source.config, Dtypes::of(Precision::F32), device);
    model.load(&request.checkpoint)?;
    tch::manual_seed(request.seed);
    let _guard = no_grad_guard();

    let mut ids = tokenizer.encode(&request.prompt).unwrap_or_default();
    if ids.is_empty() {
        ids.push(tokenizer.end_of_text());
    }
    let begin = ids.len();
    let mut said = 0;
    let mut past = Past::new();
    let mut new = ids.clone();
    for _ in 0..request.max_new_tokens {
        let window = usize::try_from(model.config.shape.positions).unwrap_or(1);
        if ids.len() > window || past.is_empty() && new.len() > window {
            // All positions are used. Start over with the newest tokens, which fill half of the window.
            new = ids[ids.len() - window / 2..].to_vec();
            past = Past::new();
        }
        let tokens: Vec<i64> = new.iter().map(|&id| i64::from(id)).collect();
        let tokens = Tensor::from_slice(&tokens).view([1, -1]).to_device(device);
        let next = choose(&model.next_logits(&tokens, &mut past), request);
        if next == tokenizer.end_of_text() {
            break;
        }
        ids.push(next);
        new = vec![next];
        // A character can need several tokens, so wait while the text ends in an incomplete character.
        let text = tokenizer.decode(&ids[begin..]);
        if !text.ends_with('\u{fffd}') && text.is_char_boundary(said) {
            if piece(&text[said..]).is_break() {
                break;
            }
            said = text.len();
        }
    }
    Ok(())
}

fn choose(logits: &Tensor, request: &Generate) -> u32 {
    let mut logits = logits.to_kind(Kind::Float).squeeze();
    if request.temperature == 0.0 {
        return logits.argmax(-1, false).int64_value(&[]) as u32;
    }
    logits /= request.temperature;
    if request.top_k > 0 {
        let k = request.top_k.min(logits.size()[0]);
        let (best, _) = logits.topk(k, -1, true, true);
        logits = logits.masked_fill(&logits.lt_tensor(&best.get(k - 1)), f64::NEG_INFINITY);
    }
    logits
        .softmax(-1, Kind::Float)
        .multinomial(1, false)
        .int64_value(&[0]) as u32
}
