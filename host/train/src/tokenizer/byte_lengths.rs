//! Computes how many bytes of text each token represents.
//!
//! Here, text is the result of decoding tokens. Some tokenizers add a prefix before encoding, such as
//! SentencePiece's first `▁`, and remove it when decoding. This prefix does not count.

use serde_json::Value;
use tokenizers::{Decoder, DecoderWrapper, Tokenizer};

/// Numbers of bytes, indexed by token id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ByteLengths {
    /// Length of a token within a text; 0 for special tokens and for ids without a token.
    pub(crate) within: Vec<i64>,
    /// Difference of a token's two lengths: its length at the beginning of a text minus its length within a
    /// text.
    pub(crate) at_begin: Vec<i64>,
    /// 1 if a new text begins after the token, else 0.
    pub(crate) ends: Vec<i64>,
}

impl ByteLengths {
    /// Computes the lengths of the tokens with ids below `rows`. `json` is the content of the tokenizer's
    /// file `tokenizer.json`.
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
                // An added token appears in the text unchanged, regardless of the decoder.
                (Some(token), _) => {
                    let length = token.content.len() as i64;
                    (length + pieces.joint, length)
                }
                (None, Some(token)) => (pieces.within(&token), pieces.first(&token)),
                (None, None) => (0, 0),
            };
            lengths.within.push(within);
            lengths.at_begin.push(first - within);
            // The text after an added token is tokenized separately.
            let ends = id == end_of_text || added.contains_key(&id);
            lengths.ends.push(i64::from(ends));
        }
        lengths
    }

    /// Whether the length of each token is the same at every position in a text.
    pub(crate) fn is_plain(&self) -> bool {
        self.at_begin.iter().all(|&length| length == 0)
    }
}

/// Describes how a vocabulary's tokens are converted to text.
struct Pieces<'a> {
    kind: Kind<'a>,
    /// Number of bytes that the decoder inserts between two word tokens.
    joint: i64,
}

enum Kind<'a> {
    /// Each character of a token represents a byte. If `adds_space` is set, the tokenizer adds a space before
    /// each text.
    Bytes { adds_space: bool },
    /// The decoder determines the text of a token. If `has_bytes` is set, each token such as `<0x0A>`
    /// represents a byte.
    Decoded {
        decoder: Option<&'a DecoderWrapper>,
        has_bytes: bool,
    },
}

/// A word that every decoder leaves unchanged.
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

/// The character that represents a space in a byte-level token.
const SPACE: char = '\u{120}';

/// Returns the length of a byte-level token in bytes. If one of its characters does not represent a byte, all
/// its characters are taken as text, as in the tokenizers crate.
fn bytes_of(token: &str) -> i64 {
    let is_byte =
        |c: char| matches!(u32::from(c), 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff | 0x100..=0x143);
    match token.chars().all(is_byte) {
        true => token.chars().count() as i64,
        false => token.len() as i64,
    }
}

/// Whether a token represents a byte, such as `<0x0A>`.
fn is_byte(token: &str) -> bool {
    let digits = token
        .strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}

/// Finds the component of this type in a part of the tokenizer. Returns the part itself if it has this type.
/// If the part is a sequence, also searches its members.
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
