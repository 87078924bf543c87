use host_core::{Error, ErrorKind, Result, Step};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::collective::Collective;
use crate::data::LoaderCursor;
use crate::model::ModelConfig;
use crate::tokenizer::Tokenizer;

/// What the lead tells the other ranks once it has read or made it: the model, the tokenizer, and the position from
/// which the training starts. The weights and the optimizer's state follow later.
#[derive(Serialize, Deserialize)]
pub(super) struct Briefing {
    /// The content of `config.json`.
    model: String,
    /// The tokenizer's files: `tokenizer.json` and `tokenizer_config.json`.
    tokenizer: [String; 2],
    pub(super) step: Step,
    /// The position in the data; `None` for a new training.
    cursor: Option<LoaderCursor>,
    /// Number of sequences in the shuffle buffer.
    buffered: i64,
    pub(super) global_batch: Option<u64>,
}

/// A position in the data, and the sequences in the shuffle buffer there.
pub(super) type Position = (LoaderCursor, Vec<Box<[u32]>>);

impl Briefing {
    pub(super) fn new(
        model: &ModelConfig,
        tokenizer: &Tokenizer,
        step: Step,
        position: Option<&Position>,
        global_batch: Option<u64>,
    ) -> Self {
        let text = |name| {
            let files = tokenizer.files().iter();
            let mut found = files.filter(|(file, _)| *file == name);
            found
                .next()
                .map_or_else(String::new, |(_, text)| text.clone())
        };
        let end_of_text = i64::from(tokenizer.end_of_text());
        Self {
            model: model.to_json(end_of_text, "float32").to_string(),
            tokenizer: [text("tokenizer.json"), text("tokenizer_config.json")],
            step,
            cursor: position.map(|(cursor, _)| cursor.clone()),
            buffered: position.map_or(0, |(_, buffer)| buffer.len() as i64),
            global_batch,
        }
    }

    /// Returns the lead's model and tokenizer.
    ///
    /// # Errors
    /// Returns an error if this version of the program cannot read them.
    pub(super) fn read(&self) -> Result<(ModelConfig, Tokenizer)> {
        let model = ModelConfig::of_lead(&self.model)?;
        let [json, config] = self.tokenizer.clone();
        let tokenizer = Tokenizer::from_json(json, Some(config), None).map_err(|why| {
            Error::new(
                ErrorKind::Config,
                format!("the lead's tokenizer cannot be used: {why}"),
            )
        })?;
        Ok((model, tokenizer))
    }

    /// Gives all ranks the lead's position in the data. `own` is the lead's.
    ///
    /// # Errors
    /// Returns an error if another rank fails.
    pub(super) fn share_position(
        &self,
        own: Option<Position>,
        seq_length: i64,
        collective: &Collective,
    ) -> Result<Option<Position>> {
        let Some(cursor) = self.cursor.clone() else {
            return Ok(None);
        };
        let buffer = match &own {
            Some((_, buffer)) => {
                let tokens: Vec<i32> = buffer
                    .iter()
                    .flatten()
                    .map(|token| token.cast_signed())
                    .collect();
                Tensor::from_slice(&tokens)
            }
            None => Tensor::zeros([self.buffered * seq_length], (Kind::Int, Device::Cpu)),
        };
        collective.broadcast([&buffer], "the broadcast of the shuffle buffer")?;
        if own.is_some() {
            return Ok(own);
        }
        let tokens = Vec::<i32>::try_from(&buffer)
            .map_err(|error| Error::new(ErrorKind::System, format!("libtorch failed: {error}")))?;
        let tokens: Vec<u32> = tokens.into_iter().map(i32::cast_unsigned).collect();
        let length = usize::try_from(seq_length).unwrap_or(1).max(1);
        Ok(Some((
            cursor,
            tokens.chunks(length).map(Box::from).collect(),
        )))
    }
}
