use std::fs;
use std::path::PathBuf;

use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::*;

const TEXTS: [&str; 9] = [
    "fn main() {\n\tprintln!(\"hello\");\n}\n",
    "one two  three",
    "naïve café — “quoted” 日本語 🦀",
    "\u{1}\u{7f}\u{a0}\u{ad}",
    "x",
    "▁ looks like a space",
    "tab\tnew\r\nline",
    "<0x0A> literally",
    "über alles",
];

fn of(json: &Value, end_of_text: &str) -> Tokenizer {
    Tokenizer::from_json(json.to_string(), None, Some(end_of_text)).expect("a tokenizer")
}

/// Counts the bytes of a document token by token, as the evaluation does.
fn bytes(tokenizer: &Tokenizer, ids: &[u32]) -> i64 {
    let lengths = tokenizer.byte_lengths(tokenizer.vocab_size());
    let mut previous = tokenizer.end_of_text();
    let mut sum = 0;
    for &id in ids {
        let at = id as usize;
        sum += lengths.within[at] + lengths.ends[previous as usize] * lengths.at_begin[at];
        previous = id;
    }
    sum
}

/// Checks that the tokens of each text represent as many bytes as the text has, and decode to the text.
fn assert_exact(tokenizer: &Tokenizer, texts: &[&str]) {
    for text in texts {
        let ids = tokenizer.encode(text).expect("tokens");
        assert_eq!(
            bytes(tokenizer, &ids),
            text.len() as i64,
            "{text:?}: {ids:?}"
        );
        assert_eq!(tokenizer.decode(&ids), *text, "{text:?}");
    }
}

fn token(id: u32, content: &str, special: bool) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": special,
    })
}

/// Returns a trained byte-level BPE as JSON.
fn byte_level() -> Value {
    let texts = [
        "fn main() { println!(\"hello\"); }\n".repeat(20),
        "the café the café".to_owned(),
    ];
    let home = tempfile::tempdir().expect("a folder");
    for (name, text) in ["a.txt", "b.txt"].iter().zip(&texts) {
        fs::write(home.path().join(name), text).expect("written");
    }
    let config = crate::TrainConfig {
        data: vec![home.path().to_owned()],
        ..crate::TrainConfig::default()
    };
    let found = crate::data::find("data", &config.data, &config).expect("found");
    let sample = crate::vocabulary::Sample::of(&found.files);
    let text = crate::vocabulary::train(&sample, 300, END_OF_TEXT).expect("trained");
    serde_json::from_str(&text).expect("JSON")
}

/// Returns a BPE like Llama's. It replaces each space by `▁`, adds `▁` before each text, and uses byte tokens
/// for unknown text.
fn byte_fallback() -> Value {
    let mut vocab = Map::new();
    let mut add = |token: &str| {
        let id = vocab.len();
        vocab.insert(token.to_owned(), id.into());
    };
    ["<unk>", "<s>", "</s>"].into_iter().for_each(&mut add);
    (0..256).for_each(|byte| add(&format!("<0x{byte:02X}>")));
    ["▁", "▁t", "▁th", "▁the", "▁▁"]
        .into_iter()
        .for_each(&mut add);
    ('a'..='z').for_each(|c| add(&c.to_string()));
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [token(0, "<unk>", true), token(1, "<s>", true), token(2, "</s>", true)],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "▁" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
        ] },
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
            { "type": "ByteFallback" },
            { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ] },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
            "merges": [["▁", "▁"], ["▁", "t"], ["▁t", "h"], ["▁th", "e"]],
        },
    })
}

/// Returns a Unigram model like T5's or XLM-R's.
fn unigram() -> Value {
    let metaspace = json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true });
    let mut vocab = vec![
        json!(["<unk>", 0.0]),
        json!(["</s>", 0.0]),
        json!(["▁", -2.0]),
        json!(["▁the", -3.0]),
    ];
    vocab.extend(('a'..='z').map(|c| json!([c.to_string(), -5.0])));
    vocab.extend(["é", "ü", "日"].map(|c| json!([c, -6.0])));
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [token(0, "<unk>", true), token(1, "</s>", true)],
        "normalizer": null,
        "pre_tokenizer": metaspace,
        "post_processor": null,
        "decoder": metaspace,
        "model": { "type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": false },
    })
}

#[test]
fn bytes_of_byte_level_tokens_are_those_of_the_text() {
    let tokenizer = of(&byte_level(), END_OF_TEXT);
    assert_exact(&tokenizer, &TEXTS);
    assert!(tokenizer.byte_lengths(tokenizer.vocab_size()).is_plain());
    // A model can have rows for ids beyond the vocabulary. These ids represent no text.
    let padded = tokenizer.byte_lengths(tokenizer.vocab_size() + 2);
    assert_eq!(padded.within[padded.within.len() - 2..], [0, 0]);
}

#[test]
fn a_space_added_before_a_text_does_not_count() {
    let mut json = byte_level();
    json["pre_tokenizer"]["add_prefix_space"] = true.into();
    let tokenizer = of(&json, END_OF_TEXT);
    for text in TEXTS {
        let ids = tokenizer.encode(text).expect("tokens");
        assert_eq!(bytes(&tokenizer, &ids), text.len() as i64, "{text:?}");
    }
}

#[test]
fn bytes_of_byte_fallback_tokens_are_those_of_the_text() {
    let tokenizer = of(&byte_fallback(), "</s>");
    assert_exact(&tokenizer, &TEXTS[..5]);
    assert_exact(&tokenizer, &TEXTS[6..]);
    let lengths = tokenizer.byte_lengths(tokenizer.vocab_size());
    let id = |token: &str| tokenizer.inner.token_to_id(token).expect("a token") as usize;
    for (token, within, first) in [
        ("<0x0A>", 1, 1),
        ("<0xE2>", 1, 1),
        ("▁", 1, 0),
        ("▁the", 4, 3),
        ("▁▁", 2, 1),
        ("a", 1, 1),
        ("<s>", 0, 0),
        ("</s>", 0, 0),
    ] {
        let at = id(token);
        assert_eq!(
            (
                lengths.within[at],
                lengths.within[at] + lengths.at_begin[at]
            ),
            (within, first),
            "{token}"
        );
    }
}

#[test]
fn bytes_of_unigram_tokens_are_those_of_the_text() {
    let tokenizer = of(&unigram(), "</s>");
    assert_exact(
        &tokenizer,
        &["the cat", "a", "thethe the  the", "caféü 日日"],
    );
}

#[test]
fn bytes_of_word_pieces_are_those_of_the_decoded_text() {
    let vocab = ["[UNK]", "[SEP]", "the", "cat", "##s", "##ting", ".", "sit"];
    let vocab: Map<String, Value> = vocab
        .iter()
        .enumerate()
        .map(|(id, token)| ((*token).to_owned(), id.into()))
        .collect();
    let tokenizer = of(
        &json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [token(0, "[UNK]", true), token(1, "[SEP]", true)],
            "normalizer": null,
            "pre_tokenizer": { "type": "BertPreTokenizer" },
            "post_processor": null,
            "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
            "model": {
                "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100, "vocab": vocab,
            },
        }),
        "[SEP]",
    );
    assert_exact(
        &tokenizer,
        &["the cats sitting.", "cat", "the cat. the cats."],
    );
}

#[test]
fn an_added_token_represents_its_own_text() {
    let mut json = byte_level();
    let next = json["model"]["vocab"]
        .as_object()
        .expect("a vocabulary")
        .len() as u32;
    let added = json["added_tokens"].as_array_mut().expect("a list");
    added.push(token(next, "<tool>", false));
    added.push(token(next + 1, "naïve", false));
    let tokenizer = of(&json, END_OF_TEXT);
    let text = "a <tool>b naïve";
    let ids = tokenizer.encode(text).expect("tokens");
    assert!(ids.contains(&next) && ids.contains(&(next + 1)), "{ids:?}");
    assert_eq!(bytes(&tokenizer, &ids), text.len() as i64);

    let mut json = byte_fallback();
    let next = json["model"]["vocab"]
        .as_object()
        .expect("a vocabulary")
        .len() as u32;
    json["added_tokens"]
        .as_array_mut()
        .expect("a list")
        .push(token(next, "<tool>", false));
    let tokenizer = of(&json, "</s>");
    let text = "the <tool>the";
    let ids = tokenizer.encode(text).expect("tokens");
    assert!(ids.contains(&next), "{ids:?}");
    assert_eq!(bytes(&tokenizer, &ids), text.len() as i64, "{ids:?}");
}

#[test]
fn a_gap_in_the_ids_has_rows() {
    let mut json = byte_level();
    let vocab = json["model"]["vocab"]
        .as_object_mut()
        .expect("a vocabulary");
    let count = vocab.len() as i64;
    vocab.insert("h".to_owned(), 700.into());
    let tokenizer = of(&json, END_OF_TEXT);
    assert_eq!(tokenizer.vocab_size(), 701);
    assert!(tokenizer.vocab_size() > count);
    let highest = tokenizer.encode("h h").expect("tokens").into_iter().max();
    assert_eq!(highest, Some(700));
    assert_exact(&tokenizer, &TEXTS);
}

#[test]
fn ids_without_a_row_in_the_model_are_rejected() {
    let refused =
        |json: &Value| Tokenizer::from_json(json.to_string(), None, None).expect_err("refused");
    let mut json = byte_level();
    json["model"]["vocab"]["h"] = u32::MAX.into();
    assert!(refused(&json).contains("a token has the id 4294967295"));
    // The tokenizers crate would silently assign an id that differs from the one in the file.
    let mut json = byte_level();
    let next = json["model"]["vocab"]
        .as_object()
        .expect("a vocabulary")
        .len();
    json["added_tokens"]
        .as_array_mut()
        .expect("a list")
        .push(token(700, "<tool>", false));
    let why = format!("\"<tool>\" has the id 700 in the file, but would be loaded with {next}");
    assert!(refused(&json).contains(&why));
}

/// Returns a folder with a trained tokenizer in GPT-2's older files, and the same tokenizer as JSON.
fn older() -> (TempDir, Value) {
    let json = byte_level();
    let folder = tempfile::tempdir().expect("a folder");
    let write =
        |name: &str, text: String| fs::write(folder.path().join(name), text).expect("written");
    write("vocab.json", json["model"]["vocab"].to_string());
    let pair = |pair: &Value| match pair.as_array() {
        Some(pair) => format!(
            "{} {}\n",
            pair[0].as_str().expect("a token"),
            pair[1].as_str().expect("a token")
        ),
        None => format!("{}\n", pair.as_str().expect("a pair")),
    };
    let merges: String = json["model"]["merges"]
        .as_array()
        .expect("merges")
        .iter()
        .map(pair)
        .collect();
    write("merges.txt", format!("#version: 0.2\n{merges}"));
    (folder, json)
}

#[test]
fn older_files_are_the_same_tokenizer() {
    let (folder, json) = older();
    let (one, other) = (
        of(&json, END_OF_TEXT),
        Tokenizer::read(folder.path(), None).expect("read"),
    );
    for text in TEXTS {
        assert_eq!(one.encode(text), other.encode(text), "{text:?}");
    }
    assert_eq!(one.end_of_text(), other.end_of_text());
    assert_eq!(other.encode("a<|endoftext|>b").expect("tokens").len(), 3);
    assert_exact(&other, &TEXTS);
    // The path of either file is enough to find both files.
    for name in ["vocab.json", "merges.txt"] {
        assert!(
            Tokenizer::read(&folder.path().join(name), None).is_ok(),
            "{name}"
        );
    }
    // Reading the files of a checkpoint gives the same tokenizer.
    let place = tempfile::tempdir().expect("a folder");
    for (name, content) in other.files() {
        fs::write(place.path().join(name), content).expect("written");
    }
    let again = Tokenizer::read(place.path(), None).expect("read");
    assert_eq!(again.sha256(), other.sha256());
}

#[test]
fn older_files_include_the_added_tokens_of_neighboring_files() {
    let (folder, json) = older();
    let next = json["model"]["vocab"]
        .as_object()
        .expect("a vocabulary")
        .len();
    let write = |name: &str, json: Value| {
        fs::write(folder.path().join(name), json.to_string()).expect("written");
    };
    write(
        "added_tokens.json",
        json!({ "<pad>": next, "<end>": next + 1 }),
    );
    write(
        "tokenizer_config.json",
        json!({ "eos_token": { "content": "<end>" }, "tokenizer_class": "GPT2Tokenizer" }),
    );
    let tokenizer = Tokenizer::read(folder.path(), None).expect("read");
    assert_eq!(tokenizer.vocab_size(), next as i64 + 2);
    assert_eq!(tokenizer.end_of_text(), next as u32 + 1);
    assert_eq!(tokenizer.encode("<pad>").expect("tokens"), [next as u32]);
    write(
        "tokenizer_config.json",
        json!({ "tokenizer_class": "CLIPTokenizer" }),
    );
    let error = Tokenizer::read(folder.path(), None).expect_err("refused");
    assert!(
        error.message().contains("its class is CLIPTokenizer"),
        "{error}"
    );
    write("tokenizer_config.json", json!([]));
    fs::write(folder.path().join("merges.txt"), "a b c\n").expect("written");
    assert!(Tokenizer::read(folder.path(), None).is_err());
}

#[test]
fn a_tokenizer_in_another_format_is_reported() {
    for name in [
        "tokenizer.model",
        "spiece.model",
        "sentencepiece.bpe.model",
        "vocab.txt",
        "vocab.json",
        "merges.txt",
        "cl100k.tiktoken",
        "tekken.json",
        "source.spm",
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join(name), "{}").expect("written");
        let file: PathBuf = folder.path().join(name);
        for path in [folder.path(), file.as_path()] {
            let error = Tokenizer::read(path, None).expect_err(name);
            assert!(
                error
                    .message()
                    .contains(&format!("in an unsupported format: {name}")),
                "{error}"
            );
            assert!(error.hint_text().expect("a hint").contains("AutoTokenizer"));
        }
        assert!(Tokenizer::unreadable_in(folder.path()).is_some());
    }
    let empty = tempfile::tempdir().expect("a folder");
    let error = Tokenizer::read(empty.path(), None).expect_err("none");
    assert!(error.message().starts_with("no tokenizer found"), "{error}");
    assert!(Tokenizer::unreadable_in(empty.path()).is_none());
    fs::write(
        empty.path().join("tokenizer.json"),
        "version https://git-lfs.github.com/spec/v1\n",
    )
    .expect("written");
    let error = Tokenizer::read(empty.path(), None).expect_err("a pointer");
    assert!(error.message().contains("Git LFS pointer"), "{error}");
}

#[test]
fn the_end_of_text_can_be_named_and_is_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(
        folder.path().join("tokenizer.json"),
        byte_fallback().to_string(),
    )
    .expect("written");
    let error = Tokenizer::read(folder.path(), None).expect_err("no end");
    assert!(error.hint_text().expect("a hint").contains("--end-of-text"));
    let named = Tokenizer::read(folder.path(), Some("</s>")).expect("read");
    assert_eq!(named.end_of_text(), 2);
    let config = json!({ "eos_token": "<s>", "model_max_length": 5 }).to_string();
    fs::write(folder.path().join("tokenizer_config.json"), config).expect("written");
    assert_eq!(
        Tokenizer::read(folder.path(), None)
            .expect("read")
            .end_of_text(),
        1
    );
    let named = Tokenizer::read(folder.path(), Some("</s>")).expect("read");
    let (_, kept) = &named.files()[1];
    let kept: Value = serde_json::from_str(kept).expect("JSON");
    assert_eq!(kept, json!({ "eos_token": "</s>", "model_max_length": 5 }));
}

#[test]
fn an_unusable_cache_does_not_prevent_training() {
    let home = tempfile::tempdir().expect("a folder");
    let text = home.path().join("a.rs");
    fs::write(&text, "fn main() { println!(\"hello\"); }\n".repeat(20)).expect("written");
    let config = crate::TrainConfig {
        data: vec![text],
        ..crate::TrainConfig::default()
    };
    let files = crate::data::find("data", &config.data, &config)
        .expect("found")
        .files;
    let train = |cache: &Path| Tokenizer::train(&files, 300, cache, &mut |_| ()).expect("trained");
    let cache = home.path().join("cache");
    let first = train(&cache);
    assert_eq!(first.warning(), None);
    // The cache's path is a file instead of a folder.
    let taken = home.path().join("taken");
    fs::write(&taken, "").expect("written");
    let other = train(&taken);
    assert!(
        other
            .warning()
            .expect("a warning")
            .contains("the cache cannot be written")
    );
    assert_eq!(other.sha256(), first.sha256());
    // A damaged cache entry is created again.
    let kept: Vec<_> = fs::read_dir(cache.join("tokenizers"))
        .expect("kept")
        .collect();
    let kept = kept[0].as_ref().expect("an entry").path();
    fs::write(&kept, "{").expect("written");
    assert_eq!(train(&cache).sha256(), first.sha256());
    assert!(fs::read_to_string(&kept).expect("made again").len() > 1);
}
