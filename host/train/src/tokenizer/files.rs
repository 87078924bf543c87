//! Finds and reads a tokenizer's files: a `tokenizer.json`, or a vocabulary and merges in GPT-2's older
//! format. The older files are converted in the same way as in transformers.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use host_core::{Error, ErrorKind, Result};
use serde_json::{Map, Value, json};

use super::{END_OF_TEXT, token_name};
use crate::manifest::verify_part;
use crate::regular_file::{self, SMALL};

/// A tokenizer's files, not yet read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TokenizerFiles {
    /// A `tokenizer.json`.
    Json(PathBuf),
    /// The files of a byte-level BPE: the tokens with their ids, and the merges.
    Merges { vocab: PathBuf, merges: PathBuf },
}

/// The names of the older files: first those of transformers, then those of OpenAI.
const MERGES: [(&str, &str); 2] = [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")];

/// Maximum size of a `tokenizer.json` in bytes. With the largest vocabularies, the file has 40 MB.
const LIMIT: u64 = 1 << 30;

impl TokenizerFiles {
    /// Finds the tokenizer files at a path, which can be a file or a folder. Returns `None` if there is no
    /// tokenizer in a supported format.
    pub(super) fn find(path: &Path) -> Option<Self> {
        let has = |path: &Path| path.symlink_metadata().is_ok();
        if !path.is_dir() {
            let name = path.file_name()?.to_str()?;
            let pair = MERGES
                .iter()
                .find(|(vocab, merges)| name == *vocab || name == *merges);
            return match pair {
                Some((vocab, merges)) => {
                    let pair = [vocab, merges].map(|name| path.with_file_name(name));
                    let [vocab, merges] = pair;
                    (has(&vocab) && has(&merges)).then_some(Self::Merges { vocab, merges })
                }
                None => (path.is_file() && !is_other(name)).then(|| Self::Json(path.to_owned())),
            };
        }
        let json = path.join("tokenizer.json");
        if has(&json) {
            return Some(Self::Json(json));
        }
        let pairs = MERGES.map(|(vocab, merges)| (path.join(vocab), path.join(merges)));
        let (vocab, merges) = pairs
            .into_iter()
            .find(|(vocab, merges)| has(vocab) && has(merges))?;
        Some(Self::Merges { vocab, merges })
    }

    /// Returns the file that messages about the tokenizer should name.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Json(path) | Self::Merges { vocab: path, .. } => path,
        }
    }

    /// Returns the texts of two files. The first is the `tokenizer.json`, which is created from the older
    /// files if necessary. The second is the `tokenizer_config.json` next to it, if there is one.
    ///
    /// # Errors
    /// Returns an error if a file cannot be read, does not match a checkpoint's manifest, or is invalid.
    pub(super) fn read(&self) -> Result<(String, Option<String>)> {
        let folder = self.path().parent().unwrap_or(Path::new(""));
        let taken = [
            self.path().file_name(),
            Some("tokenizer_config.json".as_ref()),
        ];
        verify_part(folder, &|name| taken.contains(&Some(name.as_ref())))?;
        let config = optional(&folder.join("tokenizer_config.json"))?;
        let text = match self {
            Self::Json(path) => text(path)?,
            Self::Merges { vocab, merges } => {
                let parts = Parts {
                    vocab: object(vocab)?,
                    merges: text(merges)?,
                    config: match &config {
                        Some(config) => parse(config, &folder.join("tokenizer_config.json"))?,
                        None => Value::Null,
                    },
                    added: match optional(&folder.join("added_tokens.json"))? {
                        Some(added) => parse(&added, &folder.join("added_tokens.json"))?,
                        None => Value::Null,
                    },
                };
                let json = parts.to_json().map_err(|why| unusable(&why, vocab))?;
                format!("{json:#}")
            }
        };
        Ok((text, config))
    }
}

/// Returns the error for a path without a readable tokenizer.
pub(super) fn none_at(path: &Path) -> Error {
    let other = other_in(path);
    let place = path.display();
    match other {
        Some(name) => Error::new(
            ErrorKind::Config,
            format!("the tokenizer is in an unsupported format: {name}: {place}"),
        )
        .hint(conversion(path)),
        None => Error::new(ErrorKind::Config, format!("no tokenizer found: {place}"))
            .hint("name a tokenizer.json, or a folder with one"),
    }
}

/// Returns a hint on how to convert a folder's tokenizer to a supported format.
fn conversion(path: &Path) -> String {
    let folder = match path.is_dir() {
        true => path,
        false => path.parent().unwrap_or(Path::new(".")),
    };
    format!(
        "convert it with transformers: AutoTokenizer.from_pretrained(\"{0}\").save_pretrained(\"{0}\") writes a tokenizer.json",
        folder.display()
    )
}

/// Returns the name of an unsupported tokenizer file, if there is one. If `path` is a folder, checks the
/// files in it. Otherwise, checks `path` itself.
pub(super) fn other_in(path: &Path) -> Option<String> {
    if !path.is_dir() {
        let name = path.file_name()?.to_str()?;
        return (path.exists() && is_other(name)).then(|| name.to_owned());
    }
    let entries = fs::read_dir(path).ok()?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| is_other(name)).min()
}

/// Whether this is the name of a tokenizer file in an unsupported format. Returns true for an older file,
/// too, because it cannot be used without the other file of its pair.
fn is_other(name: &str) -> bool {
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
    matches!(ending, "model" | "spm" | "tiktoken" | "vocab" | "codes")
        || matches!(
            name,
            "vocab.json"
                | "merges.txt"
                | "encoder.json"
                | "vocab.bpe"
                | "vocab.txt"
                | "tekken.json"
                | "bpe.codes"
                | "dict.txt"
        )
}

/// The content of the older files.
struct Parts {
    vocab: Map<String, Value>,
    merges: String,
    config: Value,
    added: Value,
}

impl Parts {
    /// Returns the `tokenizer.json` that transformers' `GPT2Converter` creates from these files.
    fn to_json(&self) -> Result<Value, String> {
        let class = self.config["tokenizer_class"]
            .as_str()
            .unwrap_or("GPT2Tokenizer");
        if !matches!(
            class,
            "GPT2Tokenizer"
                | "GPT2TokenizerFast"
                | "CodeGenTokenizer"
                | "CodeGenTokenizerFast"
                | "PreTrainedTokenizerFast"
        ) {
            return Err(format!(
                "its class is {class}, but without a tokenizer.json only GPT2Tokenizer is supported"
            ));
        }
        let mut merges = Vec::new();
        for (number, line) in self.merges.split('\n').enumerate() {
            let line = line.trim_end_matches('\r');
            if line.is_empty() || number == 0 && line.starts_with("#version") {
                continue;
            }
            match line.split_once(' ') {
                Some((left, right)) if !right.contains(' ') => merges.push(json!([left, right])),
                _ => return Err(format!("line {} of its merges is not a pair", number + 1)),
            }
        }
        let byte_level = |prefix: bool, trim: bool| json!({ "type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": trim, "use_regex": true });
        let prefix = self.config["add_prefix_space"].as_bool().unwrap_or(false);
        Ok(json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": self.added_tokens()?,
            "normalizer": null,
            "pre_tokenizer": byte_level(prefix, true),
            "post_processor": byte_level(true, false),
            "decoder": byte_level(true, true),
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": null,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "",
                "fuse_unk": false,
                "byte_fallback": false,
                "vocab": self.vocab,
                "merges": merges,
            },
        }))
    }

    fn added_tokens(&self) -> Result<Vec<Value>, String> {
        let mut tokens: BTreeMap<u64, Value> = BTreeMap::new();
        let token = |content: &str, special: bool| {
            json!({
                "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": !special, "special": special,
            })
        };
        let specials = ["eos_token", "bos_token", "unk_token", "pad_token"]
            .map(|key| token_name(&self.config[key]).unwrap_or_else(|| END_OF_TEXT.to_owned()));
        for content in &specials {
            if let Some(id) = self.vocab.get(content).and_then(Value::as_u64) {
                tokens.insert(id, token(content, true));
            }
        }
        for (content, id) in self.added.as_object().into_iter().flatten() {
            let id = id
                .as_u64()
                .ok_or_else(|| format!("the added token {content:?} has no id"))?;
            tokens.insert(id, token(content, specials.contains(content)));
        }
        // `added_tokens_decoder` is the newest and most detailed list of added tokens, so it overrides the
        // others.
        for (id, stated) in self.config["added_tokens_decoder"]
            .as_object()
            .into_iter()
            .flatten()
        {
            let id = id.parse().map_err(|_| {
                format!("an added token has the id {id:?}, which is not a valid number")
            })?;
            let content =
                token_name(stated).ok_or_else(|| format!("the added token {id} has no content"))?;
            let mut entry = token(&content, stated["special"].as_bool().unwrap_or(false));
            for flag in ["single_word", "lstrip", "rstrip", "normalized"] {
                if let Some(value) = stated[flag].as_bool() {
                    entry[flag] = value.into();
                }
            }
            tokens.insert(id, entry);
        }
        let with_id = |(id, mut token): (u64, Value)| {
            token["id"] = id.into();
            token
        };
        Ok(tokens.into_iter().map(with_id).collect())
    }
}

fn optional(path: &Path) -> Result<Option<String>> {
    match path.symlink_metadata() {
        Ok(_) => text(path).map(Some),
        Err(_) => Ok(None),
    }
}

fn text(path: &Path) -> Result<String> {
    let text = regular_file::read_text(path, LIMIT)
        .map_err(|error| Error::io("read the tokenizer", path, &error))?;
    match regular_file::is_lfs_pointer(text.as_bytes()) {
        true => Err(unusable(
            "it is a Git LFS pointer; the file itself was not fetched",
            path,
        )
        .hint("run `git lfs pull` in its repository")),
        false => Ok(text),
    }
}

fn object(path: &Path) -> Result<Map<String, Value>> {
    let bytes = regular_file::read(path, SMALL)
        .map_err(|error| Error::io("read the tokenizer", path, &error))?;
    serde_json::from_slice(&bytes).map_err(|error| unusable(&error.to_string(), path))
}

fn parse(text: &str, path: &Path) -> Result<Value> {
    serde_json::from_str(text).map_err(|error| unusable(&error.to_string(), path))
}

/// Returns the error for a tokenizer file that cannot be used.
pub(super) fn unusable(why: &str, path: &Path) -> Error {
    let message = format!("the tokenizer cannot be used: {why}: {}", path.display());
    Error::new(ErrorKind::Config, message)
        .hint("use a tokenizer.json written by transformers' fast tokenizers, or GPT-2's vocab.json and merges.txt")
}
