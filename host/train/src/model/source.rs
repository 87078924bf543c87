use std::path::{Path, PathBuf};

use host_core::{Error, ErrorKind, Result};

use super::config::ModelConfig;
use crate::manifest::verify_part;
use crate::weight_files::{WeightFiles, is_weights};

/// The configured model.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ModelSource {
    pub(crate) config: ModelConfig,
    /// Whether a `config.json` contains the size of the vocabulary; false for presets and for the default.
    pub(crate) states_vocabulary: bool,
    /// The folder that contains the `config.json`, if `model` is not a preset.
    pub(crate) folder: Option<PathBuf>,
    /// Whether `model` is a folder. If `model` is a `config.json`, weights next to that file are ignored.
    pub(crate) is_folder: bool,
    /// Whether the folder contains weights to start from.
    pub(crate) has_weights: bool,
    /// A message for the user about files in the folder that are not read.
    pub(crate) ignored: Option<String>,
}

impl ModelSource {
    /// Reads a preset, a `config.json`, or a folder with a `config.json`.
    ///
    /// # Errors
    /// Returns an error if `model` is none of these, or the configuration is not that of a GPT-2 model.
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
            // If the folder is a checkpoint, its files are compared with its manifest. The weight and
            // tokenizer files that the manifest lists can be missing, because a copy of a checkpoint can
            // store the weights and the tokenizer under other file names.
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

    /// Reads a `config.json` or a folder with one, without comparing the files with a manifest.
    ///
    /// # Errors
    /// See [`ModelSource::read`].
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
            let message = format!("model is a file of weights: {}", path.display());
            return Err(Error::new(ErrorKind::Config, message)
                .hint("use a folder that contains this file and the model's config.json"));
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
        return Error::new(ErrorKind::Config, message)
            .hint("add the config.json that belongs to the weights");
    }
    let presets: Vec<&str> = ModelConfig::presets().collect();
    let presets = presets.join(", ");
    Error::new(
        ErrorKind::Config,
        format!("model is neither a preset nor a config.json nor a folder with one: {model}"),
    )
    .hint(format!(
        "use an existing path or one of the presets: {presets}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_keeps_unknown_keys_and_rejects_unsupported_values() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("config.json");
        let read = |text: &str| {
            std::fs::write(&file, text).expect("written");
            ModelSource::read(file.to_str().expect("a path"))
        };
        let source =
            read(r#"{"n_embd": 8, "n_head": 2, "task_specific_params": {"a": 1}}"#).expect("good");
        assert_eq!(source.config.shape.width, 8);
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
    fn the_hint_matches_the_fault() {
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
            error.message().starts_with("model is a file of weights"),
            "{error}"
        );
    }

    #[test]
    fn a_damaged_checkpoint_is_rejected() {
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
}
