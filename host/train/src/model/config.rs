use std::path::Path;

use host_core::{Error, ErrorKind, Result};
use serde_json::Value;

use super::gpt2::{self, Gpt2Config};
use super::layers::Dropout;
use super::params::ParamMaker;
use super::{Dtypes, Layers};
use crate::regular_file::{self, SMALL};

/// A model's configuration: the `config.json` of its family, and the shape that it means.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ModelConfig {
    pub(crate) shape: Shape,
    pub(super) family: Family,
}

/// Whose names and layers a model has.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Family {
    Gpt2(Gpt2Config),
}

impl Family {
    /// The layers, with new weights.
    pub(super) fn layers(&self, dtypes: Dtypes, maker: &mut ParamMaker) -> Layers {
        match self {
            Self::Gpt2(config) => config.layers(dtypes, maker),
        }
    }

    /// The name of a tensor in full, where a file leaves a prefix out.
    pub(super) fn full_name(&self, name: &str) -> String {
        match self {
            Self::Gpt2(_) => gpt2::full_name(name),
        }
    }

    /// Whether a file may have a tensor of this name that is no weight.
    pub(super) fn is_obsolete(&self, full_name: &str) -> bool {
        match self {
            Self::Gpt2(_) => gpt2::is_obsolete(full_name),
        }
    }

    /// The name of the output layer, and of the embedding that it may be tied to.
    pub(super) fn tied(&self) -> [&'static str; 2] {
        match self {
            Self::Gpt2(_) => [gpt2::HEAD, gpt2::EMBEDDING],
        }
    }
}

/// The sizes of a decoder, in no family's names.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shape {
    /// Rows of the embedding.
    pub(crate) vocab_size: i64,
    /// Tokens in a sequence at most.
    pub(crate) positions: i64,
    pub(crate) layers: i64,
    pub(crate) width: i64,
    pub(crate) heads: i64,
    /// Width of the feed-forward layers.
    pub(crate) inner: i64,
    /// Whether the output layer is the embedding.
    pub(crate) ties_embeddings: bool,
    pub(crate) dropout: Dropout,
}

/// Why a `config.json` cannot be used, and the way out.
pub(super) struct Unusable {
    pub(super) fault: String,
    pub(super) hint: &'static str,
}

impl Shape {
    /// Trainable numbers; tied weights count once.
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

    /// The presets by name, the smaller ones first.
    pub(crate) fn presets() -> impl DoubleEndedIterator<Item = &'static str> {
        gpt2::PRESETS.iter().map(|preset| preset.0)
    }

    /// The configuration that a preset's name stands for.
    pub(crate) fn preset(name: &str) -> Option<Self> {
        Gpt2Config::preset(name).map(Self::of_gpt2)
    }

    /// The same with another number of rows.
    pub(crate) fn with_vocab_size(&self, vocab_size: i64) -> Self {
        let Family::Gpt2(config) = &self.family;
        Self::of_gpt2(Gpt2Config {
            vocab_size,
            ..config.clone()
        })
    }

    /// The family's name, for people.
    pub(crate) fn title(&self) -> &'static str {
        let Family::Gpt2(_) = &self.family;
        gpt2::TITLE
    }

    /// What two configurations differ in first, by the family's name for it, but for the rows of the
    /// vocabulary and what is only said.
    pub(crate) fn difference(&self, other: &Self) -> Option<&'static str> {
        let (Family::Gpt2(one), Family::Gpt2(two)) = (&self.family, &other.family);
        one.difference(two)
    }

    /// `config.json` as transformers reads it.
    pub(crate) fn to_json(&self, end_of_text: i64, dtype: &str) -> Value {
        let Family::Gpt2(config) = &self.family;
        config.to_json(end_of_text, dtype)
    }

    /// Reads a `config.json`, and whether it states the size of the vocabulary.
    pub(super) fn read(file: &Path) -> Result<(Self, bool)> {
        let text = regular_file::read(file, SMALL)
            .map_err(|error| Error::io("read the model's configuration", file, &error))?;
        let unusable = |Unusable { fault, hint }| {
            let path = file.display();
            let message = format!("the model's configuration cannot be used: {fault}: {path}");
            Error::new(ErrorKind::Config, message).hint(hint)
        };
        if regular_file::is_lfs_pointer(&text) {
            let fault = "it is a pointer of Git LFS".to_owned();
            let hint = "fetch the file in its repository with `git lfs pull`";
            return Err(unusable(Unusable { fault, hint }));
        }
        let json: Value = serde_json::from_slice(&text).map_err(|error| {
            let fault = error.to_string();
            unusable(Unusable {
                fault,
                hint: gpt2::OF_GPT2,
            })
        })?;
        let stated = json.get("vocab_size").is_some();
        let kind = json["model_type"].clone();
        let config = match kind.as_str() {
            None if kind.is_null() => Gpt2Config::read(json),
            Some("gpt2") => Gpt2Config::read(json),
            _ => Err(Unusable {
                fault: format!("model_type is {kind}, and only \"gpt2\" is known"),
                hint: "use a model of GPT-2's architecture",
            }),
        };
        Ok((Self::of_gpt2(config.map_err(unusable)?), stated))
    }
}
