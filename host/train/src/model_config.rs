use std::path::{Path, PathBuf};

use host_core::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::activation::Activation;
use crate::checkpoint::verify_part;
use crate::regular_file::{self, SMALL};
use crate::weight_files::{WeightFiles, is_weights};

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
    pub(crate) activation_function: Activation,
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
            activation_function: Activation::GeluNew,
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
    /// Whether the number of rows is a file's own, and not a preset's or a default.
    pub(crate) states_vocabulary: bool,
    /// The folder that holds the `config.json`, if `model` is not a preset.
    pub(crate) folder: Option<PathBuf>,
    /// Whether `model` is that folder, of which all counts, and not the `config.json` in it, which says the
    /// shape only.
    pub(crate) is_folder: bool,
    /// Whether that folder has weights to begin with.
    pub(crate) has_weights: bool,
    /// What of the folder is not read, in a sentence.
    pub(crate) ignored: Option<String>,
}

/// Shapes by name: (name, layers, width, heads, positions, vocabulary).
pub(crate) const PRESETS: [(&str, i64, i64, i64, i64, i64); 5] = [
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
                states_vocabulary: false,
                folder: None,
                is_folder: false,
                has_weights: false,
                ignored: None,
            });
        }
        let path = Path::new(model);
        let has = |name: &str| path.join(name).symlink_metadata().is_ok();
        match (path.is_dir(), path.parent()) {
            // A checkpoint proves what is taken from it. In a copy of one, weights and tokenizer may have
            // been put into other files, which say so themselves.
            (true, _) => {
                let weights = WeightFiles::find(path)?;
                verify_part(path, &|name| match name {
                    "model.safetensors" => has(name) || weights.is_none(),
                    "tokenizer.json" | "tokenizer_config.json" => has(name),
                    name => !name.contains('/'),
                })?;
            }
            (false, Some(folder)) => verify_part(folder, &|name| name == "config.json")?,
            (false, None) => {}
        }
        Self::of(path)
    }

    /// The same of a folder, which may be a checkpoint whose files were compared with its manifest before, or
    /// of a `config.json`.
    ///
    /// # Errors
    /// As [`ModelSource::read`].
    pub(crate) fn of(path: &Path) -> Result<Self> {
        let is_folder = path.is_dir();
        let file = match is_folder {
            true => path.join("config.json"),
            false => path.to_owned(),
        };
        if !file.is_file() {
            return Err(no_config(path, is_folder));
        }
        if !is_folder && is_weights(&file.file_name().unwrap_or_default().to_string_lossy()) {
            let message = format!("model names a file of weights: {}", path.display());
            return Err(Error::new(Kind::Config, message)
                .hint("name the folder that has it and the model's config.json"));
        }
        let (config, states_vocabulary) = ModelConfig::read(&file)?;
        let weights = match is_folder {
            true => WeightFiles::find(path)?,
            false => None,
        };
        Ok(Self {
            config,
            states_vocabulary,
            folder: file.parent().map(Path::to_path_buf),
            is_folder,
            has_weights: weights.is_some(),
            ignored: weights.and_then(|weights| weights.ignored),
        })
    }
}

fn no_config(path: &Path, is_folder: bool) -> Error {
    let model = path.display();
    if is_folder {
        let message = format!("the model's folder has no config.json: {model}");
        return Error::new(Kind::Config, message)
            .hint("fetch or write the config.json that belongs to its weights");
    }
    let presets = PRESETS.map(|preset| preset.0).join(", ");
    Error::new(
        Kind::Config,
        format!("model is neither a preset nor a config.json nor a folder with one: {model}"),
    )
    .hint(format!("the presets are: {presets}"))
}

const OF_GPT2: &str = "it must be the config.json of a GPT-2, as transformers writes it";

/// The largest size of anything: what is computed with sizes then fits into 64 bits.
const LARGEST: i64 = 1 << 24;

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

    /// Trainable numbers; tied weights count once.
    pub(crate) fn parameters(&self) -> i64 {
        let (width, inner) = (self.n_embd, self.inner());
        let block = 4 * width * width + 2 * width * inner + 9 * width + inner;
        let heads = if self.tie_word_embeddings { 1 } else { 2 };
        self.n_layer * block + width * (heads * self.vocab_size + self.n_positions + 2)
    }

    /// Reads a `config.json`, and whether it states the size of the vocabulary.
    fn read(file: &Path) -> Result<(Self, bool)> {
        let text = regular_file::read(file, SMALL)
            .map_err(|error| Error::io("read the model's configuration", file, &error))?;
        let unusable = |(fault, hint): (String, &str)| {
            let path = file.display();
            let message = format!("the model's configuration cannot be used: {fault}: {path}");
            Error::new(Kind::Config, message).hint(hint)
        };
        if regular_file::is_lfs_pointer(&text) {
            let fault = "it is a pointer of Git LFS".to_owned();
            return Err(unusable((
                fault,
                "fetch the file in its repository with `git lfs pull`",
            )));
        }
        let json: Value = serde_json::from_slice(&text)
            .map_err(|error| unusable((error.to_string(), OF_GPT2)))?;
        let stated = json.get("vocab_size").is_some();
        // First what another kind of model says, then what is wrong with this one.
        match &json["model_type"] {
            Value::Null => {}
            kind if kind == "gpt2" => {}
            kind => {
                let fault = format!("model_type is {kind}, and only \"gpt2\" is known");
                return Err(unusable((fault, "use a model of GPT-2's architecture")));
            }
        }
        if let Some(name) = json.get("activation_function")
            && serde_json::from_value::<Activation>(name.clone()).is_err()
        {
            let fault = format!("activation_function {name} is not built in");
            return Err(unusable((
                fault,
                "there are gelu_new, gelu_pytorch_tanh, gelu, relu, silu, swish and tanh",
            )));
        }
        let config: Self =
            serde_json::from_value(json).map_err(|error| unusable((error.to_string(), OF_GPT2)))?;
        match config.fault() {
            Some(fault) => Err(unusable((fault, OF_GPT2))),
            None => Ok((config, stated)),
        }
    }

    fn fault(&self) -> Option<String> {
        let inner = self.n_inner.unwrap_or(1);
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("n_positions", self.n_positions),
            ("n_embd", self.n_embd),
            ("n_layer", self.n_layer),
            ("n_head", self.n_head),
            ("n_inner", inner),
        ];
        if let Some((name, size)) = sizes.iter().find(|(_, size)| !(1..=LARGEST).contains(size)) {
            return Some(format!("{name} is {size}, and not in 1 to {LARGEST}"));
        }
        if self.n_embd % self.n_head != 0 {
            let (width, heads) = (self.n_embd, self.n_head);
            return Some(format!("n_embd {width} does not divide by n_head {heads}"));
        }
        let dropouts = [
            ("resid_pdrop", self.resid_pdrop),
            ("embd_pdrop", self.embd_pdrop),
            ("attn_pdrop", self.attn_pdrop),
        ];
        if let Some((name, p)) = dropouts.iter().find(|(_, p)| !(0.0..1.0).contains(p)) {
            return Some(format!("{name} is {p}, and not in 0 to below 1"));
        }
        let others = [
            ("initializer_range", self.initializer_range),
            ("layer_norm_epsilon", self.layer_norm_epsilon),
        ];
        let (name, value) = others.iter().find(|(_, value)| *value < 0.0)?;
        Some(format!("{name} is {value}, and must not be negative"))
    }

    /// What two configurations differ in first, but for the rows of the vocabulary and what is only said.
    pub(crate) fn difference(&self, other: &Self) -> Option<&'static str> {
        let of = |config: &Self| {
            serde_json::to_value(Self {
                n_inner: Some(config.inner()),
                ..config.clone()
            })
            .unwrap_or_default()
        };
        let (one, two) = (of(self), of(other));
        let names = [
            "n_layer",
            "n_embd",
            "n_head",
            "n_positions",
            "n_inner",
            "activation_function",
            "tie_word_embeddings",
            "layer_norm_epsilon",
            "scale_attn_weights",
            "scale_attn_by_inverse_layer_idx",
            "resid_pdrop",
            "embd_pdrop",
            "attn_pdrop",
        ];
        names.into_iter().find(|name| one[name] != two[name])
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
            r#"{"activation_function": "mish"}"#,
            r#"{"n_embd": 9223372036854775807, "n_head": 1}"#,
            r#"{"n_layer": 100000000}"#,
            r#"{"initializer_range": -1.0}"#,
            r#"{"attn_pdrop": 1.0}"#,
            r#"{"n_embd": "x"}"#,
            "[",
        ] {
            let error = read(bad).expect_err(bad);
            assert!(error.message().contains("cannot be used"), "{error}");
        }
        assert!(ModelSource::read("no-such-model").is_err());
    }

    #[test]
    fn the_hint_is_the_way_out_of_the_fault() {
        let folder = tempfile::tempdir().expect("a folder");
        let hint = |text: &str| {
            std::fs::write(folder.path().join("config.json"), text).expect("written");
            let error = ModelSource::read(folder.path().to_str().expect("a path"));
            error
                .expect_err(text)
                .hint_text()
                .expect("a hint")
                .to_owned()
        };
        assert!(hint(r#"{"activation_function": "mish"}"#).contains("relu"));
        assert!(hint(r#"{"model_type": "llama"}"#).contains("architecture"));
        assert!(hint("version https://git-lfs.github.com/spec/v1").contains("git lfs pull"));
        assert!(hint(r#"{"n_head": 5}"#).contains("config.json of a GPT-2"));
        let empty = tempfile::tempdir().expect("a folder");
        let error = ModelSource::read(empty.path().to_str().expect("a path"));
        let error = error.expect_err("no config.json");
        assert!(
            error
                .message()
                .starts_with("the model's folder has no config.json"),
            "{error}"
        );
        let weights = folder.path().join("model.gguf");
        std::fs::write(&weights, "GGUF").expect("written");
        let error = ModelSource::read(weights.to_str().expect("a path")).expect_err("refused");
        assert!(
            error.message().starts_with("model names a file of weights"),
            "{error}"
        );
    }

    #[test]
    fn a_checkpoint_that_is_damaged_is_no_model() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("config.json"), "{}").expect("written");
        std::fs::write(path("model.safetensors"), "x").expect("written");
        let model = folder.path().to_str().expect("a path").to_owned();
        assert!(ModelSource::read(&model).expect("read").has_weights);
        let entry = |size: u64| serde_json::json!({ "sha256": "00", "size": size });
        let files = serde_json::json!({ "config.json": entry(2), "model.safetensors": entry(1) });
        let manifest = serde_json::json!({ "files": files }).to_string();
        std::fs::write(path("manifest.json"), manifest).expect("written");
        let shape = path("config.json");
        for model in [model, shape.to_str().expect("a path").to_owned()] {
            let error = ModelSource::read(&model).expect_err("damaged");
            assert!(
                error.message().starts_with("the checkpoint is damaged"),
                "{error}"
            );
        }
    }

    #[test]
    fn configurations_are_compared_without_the_vocabulary() {
        let tiny = ModelConfig::preset("tiny").expect("a preset");
        let mut other = ModelConfig {
            vocab_size: 5,
            n_inner: Some(256),
            ..tiny.clone()
        };
        assert_eq!(tiny.difference(&other), None);
        other.n_layer += 1;
        assert_eq!(tiny.difference(&other), Some("n_layer"));
        other.n_layer -= 1;
        other.attn_pdrop = 0.5;
        assert_eq!(tiny.difference(&other), Some("attn_pdrop"));
    }
}
