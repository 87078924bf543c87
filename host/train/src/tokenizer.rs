//! The byte-level BPE tokenizer of GPT-2.

use std::fs;
use std::path::Path;

use host_core::{Error, Kind, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::data::{SourceFile, hex};
use crate::vocabulary::{self, Sample};

/// GPT-2's one special token.
const END_OF_TEXT: &str = "<|endoftext|>";

/// Text to token ids and back.
#[derive(Debug)]
pub(crate) struct Tokenizer {
    inner: tokenizers::Tokenizer,
    end_of_text: u32,
    /// The files that go into a checkpoint, by name.
    files: Vec<(&'static str, String)>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`, or a folder that has one.
    ///
    /// # Errors
    /// A file that is no tokenizer, or has no end-of-text token.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let file = if path.is_dir() {
            path.join("tokenizer.json")
        } else {
            path.to_owned()
        };
        if !file.is_file() {
            return Err(Error::new(
                Kind::Config,
                format!("there is no tokenizer: {}", file.display()),
            )
            .hint("name a tokenizer.json, or a folder with one"));
        }
        let text = fs::read_to_string(&file)
            .map_err(|error| Error::io("read the tokenizer", &file, &error))?;
        let config = file.with_file_name("tokenizer_config.json");
        let config = fs::read_to_string(config).ok();
        Self::from_json(text, config).map_err(|why| {
            Error::new(
                Kind::Config,
                format!("the tokenizer cannot be used: {why}: {}", file.display()),
            )
            .hint("it must be a tokenizer.json as transformers' fast tokenizers write it")
        })
    }

    /// Trains a vocabulary of `vocab_size` on the files, or takes the one that was trained on the
    /// same text before from `cache`.
    ///
    /// # Errors
    /// Files without text, or a cache that cannot be written.
    pub(crate) fn train(
        files: &[SourceFile],
        vocab_size: i64,
        cache: &Path,
        say: &mut dyn FnMut(&str),
    ) -> Result<Self> {
        let sample = Sample::of(files);
        let mut hash = Sha256::new();
        hash.update(format!("byte-level BPE {vocab_size}\0"));
        sample.each(&mut |text| {
            hash.update(text.len().to_le_bytes());
            hash.update(text);
        });
        let folder = cache.join("tokenizers");
        let file = folder.join(format!("{}.json", &hex(&hash.finalize())[..32]));
        if file.is_file() {
            return Self::read(&file);
        }
        say("training a tokenizer");
        let text = vocabulary::train(&sample, vocab_size, END_OF_TEXT)?;
        fs::create_dir_all(&folder)
            .map_err(|error| Error::io("make the tokenizer cache", &folder, &error))?;
        // Another run may do the same at this moment: each renames a whole file of its own.
        let partial = folder.join(format!(".{}.partial", std::process::id()));
        fs::write(&partial, &text)
            .and_then(|()| fs::rename(&partial, &file))
            .map_err(|error| Error::io("write the tokenizer cache", &file, &error))?;
        Self::read(&file)
    }

    fn from_json(text: String, config: Option<String>) -> Result<Self, String> {
        let mut inner: tokenizers::Tokenizer = text
            .parse()
            .map_err(|error: tokenizers::Error| error.to_string())?;
        // A stored tokenizer may cut or pad, which is the packer's business here.
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|error| error.to_string())?;
        let stated = config
            .as_deref()
            .and_then(|config| serde_json::from_str::<Value>(config).ok())
            .and_then(|config| match &config["eos_token"] {
                Value::String(token) => Some(token.clone()),
                token => token["content"].as_str().map(str::to_owned),
            });
        let name = stated.unwrap_or_else(|| END_OF_TEXT.to_owned());
        let end_of_text = inner
            .token_to_id(&name)
            .ok_or_else(|| format!("it has no end-of-text token {name}"))?;
        let config = config.unwrap_or_else(|| {
            let config = json!({
                "tokenizer_class": "PreTrainedTokenizerFast",
                "add_prefix_space": false,
                "bos_token": name,
                "eos_token": name,
                "unk_token": name,
                "clean_up_tokenization_spaces": false,
            });
            format!("{config:#}\n")
        });
        Ok(Self {
            inner,
            end_of_text,
            files: vec![("tokenizer.json", text), ("tokenizer_config.json", config)],
        })
    }

    /// Number of ids, the added tokens included.
    pub(crate) fn vocab_size(&self) -> i64 {
        self.inner.get_vocab_size(true) as i64
    }

    /// What tells it from another, however its file is laid out.
    pub(crate) fn sha256(&self) -> [u8; 32] {
        let json: Value = serde_json::from_str(&self.files[0].1).unwrap_or_default();
        let mut hash = Sha256::new();
        hash.update(json.to_string());
        hash.update(self.end_of_text.to_le_bytes());
        hash.finalize().into()
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

    /// How many bytes of text each id stands for; 0 for special tokens.
    pub(crate) fn byte_lengths(&self, vocab_size: i64) -> Vec<i64> {
        let specials = self.inner.get_added_tokens_decoder();
        (0..u32::try_from(vocab_size).unwrap_or(0))
            .map(|id| match specials.get(&id) {
                Some(token) if token.special => 0,
                Some(token) => token.content.len() as i64,
                // A character of a byte-level token stands for a byte.
                None => self
                    .inner
                    .id_to_token(id)
                    .map_or(0, |token| token.chars().count() as i64),
            })
            .collect()
    }

    /// What goes into a checkpoint: (file name, content).
    pub(crate) fn files(&self) -> &[(&'static str, String)] {
        &self.files
    }
}
