//! The byte-level BPE tokenizer of GPT-2.

use std::fs;
use std::io::Read;
use std::path::Path;

use host_core::{Error, Kind, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, TokenizerBuilder};

use crate::data::{Compression, Format, SourceFile, hex, sample_records};

/// GPT-2's one special token.
const END_OF_TEXT: &str = "<|endoftext|>";
/// Text that a vocabulary is trained on at most.
const TRAINING_BYTES: u64 = 256 << 20;

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
        let texts = sample(files);
        let mut hash = Sha256::new();
        hash.update(format!("byte-level BPE {vocab_size}\0"));
        for text in &texts {
            hash.update(text.len().to_le_bytes());
            hash.update(text);
        }
        let folder = cache.join("tokenizers");
        let file = folder.join(format!("{}.json", &hex(&hash.finalize())[..32]));
        if file.is_file() {
            return Self::read(&file);
        }
        say("training a tokenizer");
        let text = Self::train_on(&texts, vocab_size)?;
        fs::create_dir_all(&folder)
            .map_err(|error| Error::io("make the tokenizer cache", &folder, &error))?;
        // Another run may do the same at this moment: each renames a whole file of its own.
        let partial = folder.join(format!(".{}.partial", std::process::id()));
        fs::write(&partial, &text)
            .and_then(|()| fs::rename(&partial, &file))
            .map_err(|error| Error::io("write the tokenizer cache", &file, &error))?;
        Self::read(&file)
    }

    fn train_on(texts: &[String], vocab_size: i64) -> Result<String> {
        let failed = |why: &dyn std::fmt::Display| {
            Error::new(
                Kind::System,
                format!("training the tokenizer failed: {why}"),
            )
        };
        let byte_level = ByteLevel::new(false, true, true);
        let mut tokenizer = TokenizerBuilder::<
            BPE,
            tokenizers::NormalizerWrapper,
            ByteLevel,
            ByteLevel,
            ByteLevel,
        >::new()
        .with_model(BPE::default())
        .with_pre_tokenizer(Some(byte_level))
        .with_post_processor(Some(ByteLevel::new(false, false, true)))
        .with_decoder(Some(byte_level))
        .build()
        .map_err(|error| failed(&error))?;
        let mut trainer = BpeTrainer::builder()
            .vocab_size(usize::try_from(vocab_size).unwrap_or(0))
            .show_progress(false)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
            .build();
        tokenizer
            .train(&mut trainer, texts.iter())
            .map_err(|error| failed(&error))?;
        tokenizer.to_string(true).map_err(|error| failed(&error))
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

/// The text a vocabulary is trained on, up to a bound, spread over all files: whole files of text, and
/// of files that have records or are compressed the beginnings.
fn sample(files: &[SourceFile]) -> Vec<String> {
    let is_plain = |file: &&SourceFile| file.format == Format::Text(Compression::None);
    let total: u64 = files.iter().filter(is_plain).map(|file| file.bytes).sum();
    let every = total.div_ceil(TRAINING_BYTES).max(1) as usize;
    let mut left = TRAINING_BYTES;
    let mut texts = Vec::new();
    for file in files.iter().filter(is_plain).step_by(every) {
        let mut text = String::new();
        let read =
            fs::File::open(&file.path).and_then(|open| open.take(left).read_to_string(&mut text));
        // What is no text, or cut within a character, is left out here as it is by the packer.
        if read.is_ok() {
            left = left.saturating_sub(text.len() as u64);
            texts.push(text);
        }
    }
    let others = files.iter().filter(|file| !is_plain(file));
    let share = left / others.clone().count().max(1) as u64;
    for file in others {
        sample_records(file, share, &mut texts);
    }
    texts
}
