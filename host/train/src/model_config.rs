use std::path::{Path, PathBuf};

use host_core::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// GPT-2's shape, by the names of transformers' `GPT2Config`, with its defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ModelConfig {
    pub(crate) model_type: String,
    pub(crate) vocab_size: i64,
    pub(crate) n_positions: i64,
    pub(crate) n_embd: i64,
    pub(crate) n_layer: i64,
    pub(crate) n_head: i64,
    pub(crate) n_inner: Option<i64>,
    pub(crate) activation_function: String,
    pub(crate) resid_pdrop: f64,
    pub(crate) embd_pdrop: f64,
    pub(crate) attn_pdrop: f64,
    pub(crate) layer_norm_epsilon: f64,
    pub(crate) initializer_range: f64,
    pub(crate) scale_attn_weights: bool,
    pub(crate) scale_attn_by_inverse_layer_idx: bool,
    pub(crate) reorder_and_upcast_attn: bool,
    pub(crate) tie_word_embeddings: bool,
    /// What else the file says: kept, since the checkpoint's `config.json` is written from this.
    #[serde(flatten)]
    pub(crate) rest: Map<String, Value>,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            model_type: "gpt2".to_owned(),
            vocab_size: 50_257,
            n_positions: 1024,
            n_embd: 768,
            n_layer: 12,
            n_head: 12,
            n_inner: None,
            activation_function: "gelu_new".to_owned(),
            resid_pdrop: 0.1,
            embd_pdrop: 0.1,
            attn_pdrop: 0.1,
            layer_norm_epsilon: 1e-5,
            initializer_range: 0.02,
            scale_attn_weights: true,
            scale_attn_by_inverse_layer_idx: false,
            reorder_and_upcast_attn: false,
            tie_word_embeddings: true,
            rest: Map::new(),
        }
    }
}

/// Where `model` points.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ModelSource {
    pub(crate) config: ModelConfig,
    /// The folder that holds the `config.json`, if `model` is not a preset.
    pub(crate) folder: Option<PathBuf>,
    /// Whether that folder has weights to begin with.
    pub(crate) has_weights: bool,
}

/// Shapes by name: (name, layers, width, heads, positions, vocabulary).
const PRESETS: [(&str, i64, i64, i64, i64, i64); 5] = [
    ("tiny", 2, 64, 4, 128, 1024),
    ("demo", 4, 256, 4, 256, 4096),
    ("gpt2", 12, 768, 12, 1024, 50_257),
    ("codeparrot-small", 12, 768, 12, 1024, 32_768),
    ("codeparrot", 48, 1600, 25, 1024, 32_768),
];

impl ModelSource {
    /// Reads what `model` names: a preset, a `config.json`, or a folder that has one.
    ///
    /// # Errors
    /// A name that is neither, or a configuration that is not a GPT-2's.
    pub(crate) fn read(model: &str) -> Result<Self> {
        if let Some(config) = ModelConfig::preset(model) {
            return Ok(Self {
                config,
                folder: None,
                has_weights: false,
            });
        }
        let path = Path::new(model);
        let file = if path.is_dir() {
            path.join("config.json")
        } else {
            path.to_owned()
        };
        if !file.is_file() {
            let presets = PRESETS.map(|preset| preset.0).join(", ");
            return Err(Error::new(
                Kind::Config,
                format!(
                    "model is neither a preset nor a config.json nor a folder with one: {model}"
                ),
            )
            .hint(format!("the presets are: {presets}")));
        }
        let text = std::fs::read_to_string(&file)
            .map_err(|error| Error::io("read the model's configuration", &file, &error))?;
        let config: ModelConfig = serde_json::from_str(&text).map_err(|error| {
            Error::new(
                Kind::Config,
                format!(
                    "the model's configuration cannot be used: {error}: {}",
                    file.display()
                ),
            )
            .hint("it must be the config.json of a GPT-2, as transformers writes it")
        })?;
        config.check(&file)?;
        let folder = file.parent().map(Path::to_path_buf);
        // A bare config.json says the shape only, whatever lies beside it.
        let has_weights = path.is_dir()
            && ["model.safetensors", "model.safetensors.index.json"]
                .iter()
                .any(|name| path.join(name).is_file());
        Ok(Self {
            config,
            folder,
            has_weights,
        })
    }
}

impl ModelConfig {
    /// The shape that a preset's name stands for.
    pub(crate) fn preset(name: &str) -> Option<Self> {
        let &(_, n_layer, n_embd, n_head, n_positions, vocab_size) =
            PRESETS.iter().find(|preset| preset.0 == name)?;
        let mut config = Self {
            n_layer,
            n_embd,
            n_head,
            n_positions,
            vocab_size,
            ..Self::default()
        };
        if name.starts_with("codeparrot") {
            // As CodeParrot's initialize_model.py has it.
            config.scale_attn_by_inverse_layer_idx = true;
            config.reorder_and_upcast_attn = true;
        }
        if matches!(name, "tiny" | "demo") {
            // Small models on little data do not overfit in the time they are given.
            (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) = (0.0, 0.0, 0.0);
        }
        Some(config)
    }

    /// Width of the feed-forward layer.
    pub(crate) fn inner(&self) -> i64 {
        self.n_inner.unwrap_or(4 * self.n_embd)
    }

    fn check(&self, file: &Path) -> Result<()> {
        let fault = if self.model_type != "gpt2" {
            Some(format!(
                "model_type is {:?}, and only \"gpt2\" is known",
                self.model_type
            ))
        } else if !matches!(
            self.activation_function.as_str(),
            "gelu_new" | "gelu_pytorch_tanh"
        ) {
            Some(format!(
                "activation_function is {:?}, and only \"gelu_new\" is known",
                self.activation_function
            ))
        } else if [
            self.vocab_size,
            self.n_positions,
            self.n_embd,
            self.n_layer,
            self.n_head,
            self.inner(),
        ]
        .iter()
        .any(|&size| size < 1)
        {
            Some("a size is below 1".to_owned())
        } else if self.n_embd % self.n_head != 0 {
            Some(format!(
                "n_embd {} does not divide by n_head {}",
                self.n_embd, self.n_head
            ))
        } else if [self.resid_pdrop, self.embd_pdrop, self.attn_pdrop]
            .iter()
            .any(|p| !(0.0..1.0).contains(p))
        {
            Some("a dropout is not in 0..1".to_owned())
        } else {
            None
        };
        match fault {
            None => Ok(()),
            Some(fault) => Err(Error::new(
                Kind::Config,
                format!(
                    "the model's configuration cannot be used: {fault}: {}",
                    file.display()
                ),
            )
            .hint("it must be the config.json of a GPT-2, as transformers writes it")),
        }
    }

    /// `config.json` as transformers reads it.
    pub(crate) fn to_json(&self, end_of_text: i64, dtype: &str) -> Value {
        let mut json = serde_json::to_value(self).unwrap_or_default();
        if let Value::Object(map) = &mut json {
            map.insert(
                "architectures".to_owned(),
                serde_json::json!(["GPT2LMHeadModel"]),
            );
            map.insert("bos_token_id".to_owned(), end_of_text.into());
            map.insert("eos_token_id".to_owned(), end_of_text.into());
            map.insert("dtype".to_owned(), dtype.into());
            map.remove("torch_dtype"); // dtype's older name
            map.sort_keys();
        }
        json
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_have_the_published_sizes() {
        let small = ModelConfig::preset("codeparrot-small").expect("a preset");
        assert_eq!(
            (small.n_layer, small.n_embd, small.vocab_size),
            (12, 768, 32_768)
        );
        assert!(small.scale_attn_by_inverse_layer_idx && small.resid_pdrop == 0.1);
        assert_eq!(ModelConfig::preset("gpt2"), Some(ModelConfig::default()));
        assert_eq!(ModelConfig::preset("gpt3"), None);
    }

    #[test]
    fn a_configuration_keeps_what_it_does_not_know_and_refuses_what_it_cannot_do() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("config.json");
        let read = |text: &str| {
            std::fs::write(&file, text).expect("written");
            ModelSource::read(file.to_str().expect("a path"))
        };
        let source =
            read(r#"{"n_embd": 8, "n_head": 2, "task_specific_params": {"a": 1}}"#).expect("good");
        assert_eq!(source.config.n_embd, 8);
        let json = source.config.to_json(3, "float32");
        assert_eq!(json["task_specific_params"]["a"], 1);
        assert_eq!(json["eos_token_id"], 3);
        for bad in [
            r#"{"model_type": "llama"}"#,
            r#"{"n_embd": 9, "n_head": 2}"#,
            r#"{"n_layer": 0}"#,
            r#"{"activation_function": "relu"}"#,
            r#"{"attn_pdrop": 1.0}"#,
            r#"{"n_embd": "x"}"#,
            "[",
        ] {
            let error = read(bad).expect_err(bad);
            assert!(error.message().contains("cannot be used"), "{error}");
        }
        assert!(ModelSource::read("no-such-model").is_err());
    }
}
