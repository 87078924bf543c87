//! How many bytes of text a token stands for.
//!
//! Text is what the tokens decode to. What a tokenizer puts before a text and takes away again, such as
//! the first `▁` of SentencePiece's kind, does not count.

use serde_json::Value;
use tokenizers::{Decoder, DecoderWrapper, Tokenizer};

/// Bytes of text by id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ByteLengths {
    /// Of a token within a text; 0 for special tokens and for ids without a token.
    pub(crate) within: Vec<i64>,
    /// Of a token that begins a text, less that within one.
    pub(crate) at_begin: Vec<i64>,
    /// 1 where a text begins after the token, else 0.
    pub(crate) ends: Vec<i64>,
}

impl ByteLengths {
    /// Those of the ids below `rows`; `json` is the tokenizer's own.
    pub(super) fn of(tokenizer: &Tokenizer, json: &Value, end_of_text: u32, rows: u32) -> Self {
        let pieces = Pieces::of(tokenizer, json);
        let added = tokenizer.get_added_tokens_decoder();
        let mut lengths = Self {
            within: Vec::with_capacity(rows as usize),
            at_begin: Vec::with_capacity(rows as usize),
            ends: Vec::with_capacity(rows as usize),
        };
        for id in 0..rows {
            let (within, first) = match (added.get(&id), tokenizer.id_to_token(id)) {
                (Some(token), _) if token.special => (0, 0),
                // It stands in the text as it is, whatever the decoder makes of its characters.
                (Some(token), _) => {
                    let length = token.content.len() as i64;
                    (length + pieces.joint, length)
                }
                (None, Some(token)) => (pieces.within(&token), pieces.first(&token)),
                (None, None) => (0, 0),
            };
            lengths.within.push(within);
            lengths.at_begin.push(first - within);
            // After an added token the rest is tokenized as a text of its own.
            let ends = id == end_of_text || added.contains_key(&id);
            lengths.ends.push(i64::from(ends));
        }
        lengths
    }

    /// Whether a token's bytes do not depend on its place.
    pub(crate) fn is_plain(&self) -> bool {
        self.at_begin.iter().all(|&length| length == 0)
    }
}

/// How tokens of a vocabulary become text.
struct Pieces<'a> {
    kind: Kind<'a>,
    /// Bytes that come between two tokens that are words.
    joint: i64,
}

enum Kind<'a> {
    /// A character stands for a byte; perhaps a space comes before each text.
    Bytes { adds_space: bool },
    /// The decoder says; perhaps `<0x0A>` stands for a byte.
    Decoded {
        decoder: Option<&'a DecoderWrapper>,
        has_bytes: bool,
    },
}

/// A word that any decoder leaves as it is.
const WORD: &str = "a";

impl<'a> Pieces<'a> {
    fn of(tokenizer: &'a Tokenizer, json: &Value) -> Self {
        let byte_level = |part: &str| find(&json[part], "ByteLevel");
        let is_byte_level = byte_level("decoder").is_some()
            || json["decoder"].is_null() && byte_level("pre_tokenizer").is_some();
        if is_byte_level {
            let adds_space = byte_level("pre_tokenizer")
                .is_some_and(|part| part["add_prefix_space"].as_bool() == Some(true));
            return Self {
                kind: Kind::Bytes { adds_space },
                joint: 0,
            };
        }
        let mut pieces = Self {
            kind: Kind::Decoded {
                decoder: tokenizer.get_decoder(),
                has_bytes: find(&json["decoder"], "ByteFallback").is_some(),
            },
            joint: 0,
        };
        pieces.joint = pieces.decoded(&[WORD, WORD]) - 2 * WORD.len() as i64;
        pieces
    }

    fn within(&self, token: &str) -> i64 {
        match self.kind {
            Kind::Bytes { .. } => bytes_of(token),
            Kind::Decoded {
                has_bytes: true, ..
            } if is_byte(token) => 1,
            Kind::Decoded { .. } => {
                self.decoded(&[WORD, token, WORD]) - self.decoded(&[WORD, WORD])
            }
        }
    }

    fn first(&self, token: &str) -> i64 {
        match self.kind {
            Kind::Bytes { adds_space } => {
                bytes_of(token) - i64::from(adds_space && token.starts_with(SPACE))
            }
            Kind::Decoded {
                has_bytes: true, ..
            } if is_byte(token) => 1,
            Kind::Decoded { .. } => self.decoded(&[token, WORD]) - WORD.len() as i64 - self.joint,
        }
    }

    fn decoded(&self, tokens: &[&str]) -> i64 {
        let Kind::Decoded { decoder, .. } = self.kind else {
            return 0;
        };
        let text = match decoder {
            Some(decoder) => {
                let tokens = tokens.iter().map(|&token| token.to_owned()).collect();
                decoder.decode(tokens).unwrap_or_default()
            }
            None => tokens.join(" "),
        };
        text.len() as i64
    }
}

/// What stands for a space in a byte-level token.
const SPACE: char = '\u{120}';

/// Bytes of a byte-level token. One with a character that stands for no byte stands for itself, as the
/// decoder has it.
fn bytes_of(token: &str) -> i64 {
    let is_byte =
        |c: char| matches!(u32::from(c), 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff | 0x100..=0x143);
    match token.chars().all(is_byte) {
        true => token.chars().count() as i64,
        false => token.len() as i64,
    }
}

/// Whether a token is `<0x0A>` or another byte.
fn is_byte(token: &str) -> bool {
    let digits = token
        .strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}

/// A part of a tokenizer of this type, alone or in a sequence.
fn find<'a>(part: &'a Value, kind: &str) -> Option<&'a Value> {
    if part["type"] == kind {
        return Some(part);
    }
    let parts = ["decoders", "pretokenizers", "normalizers"].map(|key| part[key].as_array());
    parts
        .into_iter()
        .flatten()
        .flatten()
        .find_map(|part| find(part, kind))
}
