//! Text to token ids and back: GPT-2's byte-level BPE, or any other that a `tokenizer.json` describes.

mod byte_lengths;
mod files;

use std::path::Path;

use host_core::{Error, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub(crate) use self::byte_lengths::ByteLengths;
use self::files::{TokenizerFiles, none_at, other_in, unusable};

/// GPT-2's one special token.
pub(crate) const END_OF_TEXT: &str = "<|endoftext|>";

/// Text to token ids and back.
#[derive(Debug)]
pub(crate) struct Tokenizer {
    inner: tokenizers::Tokenizer,
    end_of_text: u32,
    /// The files that go into a checkpoint, by name.
    files: Vec<(&'static str, String)>,
    /// What to warn of, in a sentence.
    warning: Option<String>,
}

/// The highest id that a token may have: a model has a row for each id.
const HIGHEST_ID: u32 = (1 << 24) - 1;

impl Tokenizer {
    /// Reads a `tokenizer.json`, GPT-2's older files, or a folder that has either. `end_of_text` is the token
    /// between documents; without it, the one that the tokenizer's own configuration says.
    ///
    /// # Errors
    /// There is no tokenizer, or none that can be read, or it has no such token.
    pub(crate) fn read(path: &Path, end_of_text: Option<&str>) -> Result<Self> {
        let files = TokenizerFiles::find(path).ok_or_else(|| none_at(path))?;
        let (text, config) = files.read()?;
        Self::from_json(text, config, end_of_text).map_err(|why| {
            let error = unusable(&why, files.path());
            match why.contains(NO_END) {
                true => error.hint("--end-of-text TOKEN names the token that ends a document"),
                false => error,
            }
        })
    }

    /// The same with something to warn of.
    pub(crate) fn with_warning(self, warning: String) -> Self {
        Self {
            warning: Some(warning),
            ..self
        }
    }

    /// A file of a tokenizer that cannot be used, as an error.
    pub(crate) fn unusable(why: &str, file: &Path) -> Error {
        unusable(why, file)
    }

    /// Whether a path names or has a tokenizer that can be read.
    pub(crate) fn is_at(path: &Path) -> bool {
        TokenizerFiles::find(path).is_some()
    }

    /// The tokenizer in another format that a model's folder has, as an error.
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
        // A stored tokenizer may cut or pad, which is the packer's business here.
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
                .ok_or("tokenizer_config.json beside it is not a JSON object")?,
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
            // The checkpoint's own says what it was trained with.
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

    /// Number of ids, those that no token has included: the highest and one.
    pub(crate) fn vocab_size(&self) -> i64 {
        highest_id(&self.inner).map_or(0, |highest| i64::from(highest) + 1)
    }

    /// What is to be warned of, in a sentence.
    pub(crate) fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// What tells it from another, however its file is laid out.
    pub(crate) fn sha256(&self) -> [u8; 32] {
        let json: Value = serde_json::from_str(&self.files[0].1).unwrap_or_default();
        let mut hash = Sha256::new();
        hash.update(json.to_string());
        hash.update(self.end_of_text.to_le_bytes());
        hash.finalize().into()
    }

    /// The id of a token.
    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token between documents.
    pub(crate) fn end_of_text(&self) -> u32 {
        self.end_of_text
    }

    /// Whether the names of special tokens in a text are text like any other (true), or these tokens.
    pub(crate) fn splitting_special_tokens(mut self, split: bool) -> Self {
        self.inner.set_encode_special_tokens(split);
        self
    }

    /// The ids of a text; none if the tokenizer cannot take it.
    pub(crate) fn encode(&self, text: &str) -> Option<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).ok()?;
        Some(encoding.get_ids().to_vec())
    }

    /// The text of some ids, those of special tokens left out.
    pub(crate) fn decode(&self, ids: &[u32]) -> String {
        self.inner.decode(ids, true).unwrap_or_default()
    }

    /// How many bytes of text each id below `rows` stands for.
    pub(crate) fn byte_lengths(&self, rows: i64) -> ByteLengths {
        let json: Value = serde_json::from_str(&self.files[0].1).unwrap_or_default();
        let rows = u32::try_from(rows).unwrap_or(0);
        ByteLengths::of(&self.inner, &json, self.end_of_text, rows)
    }

    /// What goes into a checkpoint: (file name, content).
    pub(crate) fn files(&self) -> &[(&'static str, String)] {
        &self.files
    }
}

/// What begins the error of a tokenizer without the token between documents.
const NO_END: &str = "it has no end-of-text token";

fn highest_id(tokenizer: &tokenizers::Tokenizer) -> Option<u32> {
    tokenizer.get_vocab(true).values().copied().max()
}

/// A token's text, as configurations write it: alone, or with how it is to be found.
fn token_name(value: &Value) -> Option<String> {
    let name = value.as_str().or_else(|| value["content"].as_str());
    name.map(str::to_owned)
}

/// Whether the ids are such that a model can have a row for each, and those that the file says: where the
/// vocabulary has holes, added tokens are given other ids than the file's, which may be another token's.
fn check_ids(tokenizer: &tokenizers::Tokenizer, text: &str) -> Result<(), String> {
    match highest_id(tokenizer) {
        None => return Err("it has no tokens".to_owned()),
        Some(highest) if highest > HIGHEST_ID => {
            return Err(format!(
                "a token has the id {highest}, and {HIGHEST_ID} is the highest"
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
                "the added token {content:?} has the id {id}, and would be given {given}: the ids before it have holes, or it stands there twice"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
