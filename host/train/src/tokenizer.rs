//! Converts text to token ids and back, with GPT-2's byte-level BPE or any tokenizer in a `tokenizer.json`.

mod byte_lengths;
mod files;

use std::path::Path;

use host_core::{Error, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub(crate) use self::byte_lengths::ByteLengths;
use self::files::{TokenizerFiles, none_at, other_in, unusable};

/// GPT-2's only special token.
pub(crate) const END_OF_TEXT: &str = "<|endoftext|>";

/// Converts text to token ids and back.
#[derive(Debug)]
pub(crate) struct Tokenizer {
    inner: tokenizers::Tokenizer,
    end_of_text: u32,
    /// The files to write into a checkpoint, by name.
    files: Vec<(&'static str, String)>,
    /// A warning, as a sentence.
    warning: Option<String>,
}

/// The maximum id of a token. It limits the size of a model, which has a row for each id.
const HIGHEST_ID: u32 = (1 << 24) - 1;

impl Tokenizer {
    /// Reads a `tokenizer.json`, a vocabulary and merges in GPT-2's older format, or a folder with such
    /// files. `end_of_text` is the token between documents. By default, it is the token that the tokenizer's
    /// configuration names. If the configuration names none, it is GPT-2's token.
    ///
    /// # Errors
    /// Returns an error if there is no readable tokenizer, or if the tokenizer does not have the end-of-text
    /// token.
    pub(crate) fn read(path: &Path, end_of_text: Option<&str>) -> Result<Self> {
        let files = TokenizerFiles::find(path).ok_or_else(|| none_at(path))?;
        let (text, config) = files.read()?;
        Self::from_json(text, config, end_of_text).map_err(|why| {
            let error = unusable(&why, files.path());
            match why.contains(NO_END) {
                true => {
                    error.hint("use --end-of-text TOKEN to name the token that ends a document")
                }
                false => error,
            }
        })
    }

    /// Adds a warning.
    pub(crate) fn with_warning(self, warning: String) -> Self {
        Self {
            warning: Some(warning),
            ..self
        }
    }

    /// Returns the error for a tokenizer file that cannot be used.
    pub(crate) fn unusable(why: &str, file: &Path) -> Error {
        unusable(why, file)
    }

    /// Whether a path is a tokenizer file, or a folder with a tokenizer, in a supported format.
    pub(crate) fn is_at(path: &Path) -> bool {
        TokenizerFiles::find(path).is_some()
    }

    /// Returns an error if a model's folder has a tokenizer in an unsupported format.
    pub(crate) fn unreadable_in(folder: &Path) -> Option<Error> {
        other_in(folder).map(|_| none_at(folder))
    }

    pub(crate) fn from_json(
        text: String,
        config: Option<String>,
        end_of_text: Option<&str>,
    ) -> Result<Self, String> {
        let mut inner: tokenizers::Tokenizer = text
            .parse()
            .map_err(|error: tokenizers::Error| error.to_string())?;
        // A stored tokenizer can truncate or pad. Both are disabled, because the packer determines the
        // lengths.
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|error| error.to_string())?;
        check_ids(&inner, &text)?;
        let mut config = match config {
            Some(config) => serde_json::from_str(&config)
                .ok()
                .filter(Value::is_object)
                .map(|json| (json, config))
                .ok_or("the tokenizer_config.json next to it is not a JSON object")?,
            None => (Value::Null, String::new()),
        };
        let stated = token_name(&config.0["eos_token"]);
        let name = end_of_text
            .map(str::to_owned)
            .or_else(|| stated.clone())
            .unwrap_or_else(|| END_OF_TEXT.to_owned());
        let id = inner
            .token_to_id(&name)
            .ok_or_else(|| format!("{NO_END} {name}"))?;
        if config.0.is_null() {
            config.0 = json!({
                "tokenizer_class": "PreTrainedTokenizerFast",
                "add_prefix_space": false,
                "bos_token": name,
                "eos_token": name,
                "unk_token": name,
                "clean_up_tokenization_spaces": false,
            });
            config.1 = format!("{:#}\n", config.0);
        } else if end_of_text.is_some() && stated != Some(name.clone()) {
            // The checkpoint's tokenizer_config.json must name the end-of-text token used in training.
            config.0["eos_token"] = name.into();
            config.1 = format!("{:#}\n", config.0);
        }
        Ok(Self {
            inner,
            end_of_text: id,
            files: vec![
                ("tokenizer.json", text),
                ("tokenizer_config.json", config.1),
            ],
            warning: None,
        })
    }

    /// Returns the number of ids, including those without a token: the highest id plus one.
    pub(crate) fn vocab_size(&self) -> i64 {
        highest_id(&self.inner).map_or(0, |highest| i64::from(highest) + 1)
    }

    /// Returns the warning, if any, as a sentence.
    pub(crate) fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// Returns a hash that identifies the tokenizer, independent of its file's layout.
    pub(crate) fn sha256(&self) -> [u8; 32] {
        let json: Value = serde_json::from_str(&self.files[0].1).unwrap_or_default();
        let mut hash = Sha256::new();
        hash.update(json.to_string());
        hash.update(self.end_of_text.to_le_bytes());
        hash.finalize().into()
    }

    /// Returns the id of a token.
    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Returns the id of the token between documents.
    pub(crate) fn end_of_text(&self) -> u32 {
        self.end_of_text
    }

    /// Sets whether the names of special tokens in a text are encoded as ordinary text (true) or as special
    /// tokens.
    pub(crate) fn splitting_special_tokens(mut self, split: bool) -> Self {
        self.inner.set_encode_special_tokens(split);
        self
    }

    /// Returns the token ids of a text, or `None` if the tokenizer fails.
    pub(crate) fn encode(&self, text: &str) -> Option<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).ok()?;
        Some(encoding.get_ids().to_vec())
    }

    /// Returns the text that the ids represent, without special tokens.
    pub(crate) fn decode(&self, ids: &[u32]) -> String {
        self.inner.decode(ids, true).unwrap_or_default()
    }

    /// For each id below `rows`, returns the number of bytes of the text that the id represents.
    pub(crate) fn byte_lengths(&self, rows: i64) -> ByteLengths {
        let json: Value = serde_json::from_str(&self.files[0].1).unwrap_or_default();
        let rows = u32::try_from(rows).unwrap_or(0);
        ByteLengths::of(&self.inner, &json, self.end_of_text, rows)
    }

    /// Returns the files to write into a checkpoint: (file name, content).
    pub(crate) fn files(&self) -> &[(&'static str, String)] {
        &self.files
    }
}

/// The beginning of the error for a tokenizer without an end-of-text token.
const NO_END: &str = "it has no end-of-text token";

fn highest_id(tokenizer: &tokenizers::Tokenizer) -> Option<u32> {
    tokenizer.get_vocab(true).values().copied().max()
}

/// Returns the text of a token in a configuration. The token is either a string, or an object with the field
/// `content`.
fn token_name(value: &Value) -> Option<String> {
    let name = value.as_str().or_else(|| value["content"].as_str());
    name.map(str::to_owned)
}

/// Checks that a model can have a row for each id, and that the library uses the ids in the file. If the
/// vocabulary has gaps, the library assigns different ids to added tokens, possibly ids of other tokens.
fn check_ids(tokenizer: &tokenizers::Tokenizer, text: &str) -> Result<(), String> {
    match highest_id(tokenizer) {
        None => return Err("it has no tokens".to_owned()),
        Some(highest) if highest > HIGHEST_ID => {
            return Err(format!(
                "a token has the id {highest}, above the maximum of {HIGHEST_ID}"
            ));
        }
        Some(_) => {}
    }
    let json: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    for token in json["added_tokens"].as_array().into_iter().flatten() {
        let (Some(content), Some(id)) = (token["content"].as_str(), token["id"].as_u64()) else {
            continue;
        };
        let given = tokenizer.token_to_id(content).map(u64::from);
        if given != Some(id) {
            let given = given.map_or("none".to_owned(), |given| given.to_string());
            return Err(format!(
                "the added token {content:?} has the id {id} in the file, but would be loaded with {given}: the ids before it have gaps, or the token is listed twice"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
