use std::path::Path;

use host_core::{Error, ErrorKind, Result};
use serde_json::Value;

use super::gpt2::{self, Gpt2Config};
use super::layers::Dropout;
use super::params::ParamMaker;
use super::{Dtypes, Layers};
use crate::regular_file::{self, SMALL};

/// A model's configuration: the content of `config.json` in the family's format, and the shape derived from
/// it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ModelConfig {
    pub(crate) shape: Shape,
    pub(super) family: Family,
}

/// The model family, which defines names and layers.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Family {
    Gpt2(Gpt2Config),
}

impl Family {
    /// Creates the layers with new weights.
    pub(super) fn layers(&self, dtypes: Dtypes, maker: &mut ParamMaker) -> Layers {
        match self {
            Self::Gpt2(config) => config.layers(dtypes, maker),
        }
    }

    /// Returns the full name of a tensor whose name in a file is `name`. Some files omit a prefix.
    pub(super) fn full_name(&self, name: &str) -> String {
        match self {
            Self::Gpt2(_) => gpt2::full_name(name),
        }
    }

    /// Returns whether a tensor with this name must be ignored, because it is not a weight.
    pub(super) fn is_obsolete(&self, full_name: &str) -> bool {
        match self {
            Self::Gpt2(_) => gpt2::is_obsolete(full_name),
        }
    }

    /// Returns the names of two tensors: the output layer, and the embedding that can share its weights.
    pub(super) fn tied(&self) -> [&'static str; 2] {
        match self {
            Self::Gpt2(_) => [gpt2::HEAD, gpt2::EMBEDDING],
        }
    }
}

/// The sizes of a decoder. The names of these fields do not depend on the family.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shape {
    /// Number of rows of the embedding.
    pub(crate) vocab_size: i64,
    /// Maximum number of tokens in a sequence.
    pub(crate) positions: i64,
    pub(crate) layers: i64,
    pub(crate) width: i64,
    pub(crate) heads: i64,
    /// Width of the feed-forward layers.
    pub(crate) inner: i64,
    /// Whether the output layer shares the weights of the embedding.
    pub(crate) ties_embeddings: bool,
    pub(crate) dropout: Dropout,
}

/// The reason why a `config.json` cannot be used, and a hint.
pub(super) struct Unusable {
    pub(super) fault: String,
    pub(super) hint: &'static str,
}

impl Shape {
    /// Returns the number of trainable parameters; tied weights count once.
    pub(crate) fn parameters(&self) -> i64 {
        let (width, inner) = (self.width, self.inner);
        let block = 4 * width * width + 2 * width * inner + 9 * width + inner;
        let heads = if self.ties_embeddings { 1 } else { 2 };
        self.layers * block + width * (heads * self.vocab_size + self.positions + 2)
    }
}

impl ModelConfig {
    fn of_gpt2(config: Gpt2Config) -> Self {
        Self {
            shape: config.shape(),
            family: Family::Gpt2(config),
        }
    }

    /// Returns the names of the presets, from the smallest to the largest.
    pub(crate) fn presets() -> impl DoubleEndedIterator<Item = &'static str> {
        gpt2::PRESETS.iter().map(|preset| preset.0)
    }

    /// Returns the configuration of a preset, or `None` if there is no preset with this name.
    pub(crate) fn preset(name: &str) -> Option<Self> {
        Gpt2Config::preset(name).map(Self::of_gpt2)
    }

    /// Returns the same configuration with a different number of embedding rows.
    pub(crate) fn with_vocab_size(&self, vocab_size: i64) -> Self {
        let Family::Gpt2(config) = &self.family;
        Self::of_gpt2(Gpt2Config {
            vocab_size,
            ..config.clone()
        })
    }

    /// Returns the family's name for display.
    pub(crate) fn title(&self) -> &'static str {
        let Family::Gpt2(_) = &self.family;
        gpt2::TITLE
    }

    /// Returns the first setting that differs between two configurations. The result is the setting's name in
    /// the family's `config.json`. Ignores the size of the vocabulary and settings that do not affect a
    /// resumed run.
    pub(crate) fn difference(&self, other: &Self) -> Option<&'static str> {
        let (Family::Gpt2(one), Family::Gpt2(two)) = (&self.family, &other.family);
        one.difference(two)
    }

    /// Returns the `config.json` for transformers.
    pub(crate) fn to_json(&self, end_of_text: i64, dtype: &str) -> Value {
        let Family::Gpt2(config) = &self.family;
        config.to_json(end_of_text, dtype)
    }

    /// Reads a `config.json`. Also returns whether the file contains the size of the vocabulary.
    pub(super) fn read(file: &Path) -> Result<(Self, bool)> {
        let text = regular_file::read(file, SMALL)
            .map_err(|error| Error::io("read the model's configuration", file, &error))?;
        let unusable = |Unusable { fault, hint }| {
            let path = file.display();
            let message = format!("the model's configuration cannot be used: {fault}: {path}");
            Error::new(ErrorKind::Config, message).hint(hint)
        };
        if regular_file::is_lfs_pointer(&text) {
            let fault = "it is a Git LFS pointer".to_owned();
            let hint = "run `git lfs pull` in the repository to fetch the file";
            return Err(unusable(Unusable { fault, hint }));
        }
        Self::parse(&text).map_err(unusable)
    }

    /// Reads a `config.json` that another rank has read.
    ///
    /// # Errors
    /// Returns an error if this version of the program does not support the model.
    pub(crate) fn of_lead(text: &str) -> Result<Self> {
        let unusable = |Unusable { fault, hint }| {
            let message = format!("the lead's model cannot be used: {fault}");
            Error::new(ErrorKind::Config, message).hint(hint)
        };
        let (config, _) = Self::parse(text.as_bytes()).map_err(unusable)?;
        Ok(config)
    }

    fn parse(text: &[u8]) -> Result<(Self, bool), Unusable> {
        let json: Value = serde_json::from_slice(text).map_err(|error| Unusable {
            fault: error.to_string(),
            hint: gpt2::OF_GPT2,
        })?;
        let stated = json.get("vocab_size").is_some();
        let kind = json["model_type"].clone();
        let config = match kind.as_str() {
            None if kind.is_null() => Gpt2Config::read(json),
            Some("gpt2") => Gpt2Config::read(json),
            _ => Err(Unusable {
                fault: format!("model_type is {kind}, but only \"gpt2\" is supported"),
                hint: "use a model with the GPT-2 architecture",
            }),
        };
        Ok((Self::of_gpt2(config?), stated))
    }
}
