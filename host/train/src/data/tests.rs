//! Tests of the data pipeline from files to sequences, for every format.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::Compression::SNAPPY;

use super::packed::Packed;
use super::parquet_rows::tests::parquet;
use super::*;
use crate::TrainConfig;
use crate::collective::Share;
use crate::tokenizer::Tokenizer;

const SEQ_LENGTH: usize = 16;

/// Documents of different lengths, all of them longer than a token.
fn documents() -> Vec<String> {
    (0..40)
        .map(|n| format!("fn f_{n}() {{\n{}}}\n", "    x += 1;\n".repeat(n * 7 % 13)))
        .collect()
}

fn json_lines(documents: &[String]) -> Vec<u8> {
    let line = |text| serde_json::json!({ "path": "a", "content": text }).to_string() + "\n";
    documents.iter().map(line).collect::<String>().into_bytes()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).expect("written");
    gzip.finish().expect("finished")
}

/// Writes the same documents in the same order in every format.
fn write(folder: &Path, format: &str) {
    let documents = documents();
    let put = |name: &str, bytes: Vec<u8>| fs::write(folder.join(name), bytes).expect("written");
    match format {
        "text" => {
            for (n, text) in documents.iter().enumerate() {
                put(&format!("{n:02}.rs"), text.clone().into_bytes());
            }
        }
        "text.gz" => {
            for (n, text) in documents.iter().enumerate() {
                put(&format!("{n:02}.rs.gz"), gzip(text.as_bytes()));
            }
        }
        "jsonl" => put("a.jsonl", json_lines(&documents)),
        "jsonl.gz" => {
            for (n, part) in documents.chunks(15).enumerate() {
                put(&format!("{n}.jsonl.gz"), gzip(&json_lines(part)));
            }
        }
        "json.zst" => {
            for (n, part) in documents.chunks(15).enumerate() {
                let bytes = zstd::encode_all(&json_lines(part)[..], 1).expect("compressed");
                put(&format!("{n}.json.zst"), bytes);
            }
        }
        "parquet" => {
            for (n, part) in documents.chunks(15).enumerate() {
                let rows: Vec<_> = part.iter().map(|text| Some(text.as_bytes())).collect();
                put(&format!("{n}.parquet"), parquet(&rows, SNAPPY));
            }
        }
        other => unreachable!("{other}"),
    }
}

const FORMATS: [&str; 6] = [
    "text", "text.gz", "jsonl", "jsonl.gz", "json.zst", "parquet",
];

struct Data {
    tokenizer: Arc<Tokenizer>,
    corpus: Corpus,
    workers: Arc<Workers>,
}

/// Opens the folder as training data, with another file as evaluation data.
fn open(folder: &Path, workers: usize, change: impl Fn(&mut TrainConfig)) -> Data {
    let home = tempfile::tempdir().expect("a folder");
    let valid = home.path().join("valid.rs");
    fs::write(&valid, documents().concat()).expect("written");
    let mut config = TrainConfig {
        data: vec![folder.to_owned()],
        valid_data: vec![valid],
        ..TrainConfig::default()
    };
    change(&mut config);
    let corpus = Corpus::find(&config).expect("found");
    let tokenizer = Tokenizer::train(&corpus.valid, 300, home.path(), &mut |_| ());
    let tokenizer = Arc::new(tokenizer.expect("trained"));
    let workers = Arc::new(Workers::start(&tokenizer, workers).expect("started"));
    Data {
        tokenizer,
        corpus,
        workers,
    }
}

impl Data {
    fn once(&self) -> Packer {
        Packer::once(self.corpus.train_files(), &self.workers, SEQ_LENGTH)
    }

    fn endless(&self, position: StreamCursor) -> Packer {
        Packer::endless(&self.corpus.train, &self.workers, SEQ_LENGTH, 1, position)
    }

    fn tokens(&self, documents: &[String]) -> Vec<u32> {
        let mut tokens = Vec::new();
        for text in documents {
            tokens.extend(self.tokenizer.encode(text).expect("encoded"));
            tokens.push(self.tokenizer.end_of_text());
        }
        tokens
    }

    /// Returns the documents in the order of a single pass. Also returns the message about the documents that
    /// were left out.
    fn texts(&self) -> (Vec<String>, Option<String>) {
        let mut packer = Packer::once(self.corpus.train_files(), &self.workers, 1);
        let mut tokens = Vec::new();
        while let Some(packed) = packer.next().expect("packed") {
            tokens.push(packed.tokens[0]);
        }
        assert_eq!(tokens.pop(), Some(self.tokenizer.end_of_text()));
        let texts = tokens.split(|&token| token == self.tokenizer.end_of_text());
        let texts = texts.map(|text| self.tokenizer.decode(text)).collect();
        (texts, packer.left_out().message("data"))
    }
}

fn take(packer: &mut Packer, n: usize) -> Vec<Packed> {
    (0..n)
        .map(|_| packer.next().expect("packed").expect("endless"))
        .collect()
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

#[test]
fn the_shares_of_a_batch_add_up_and_have_the_same_cursor() {
    let folder = folder();
    write(folder.path(), "text");
    let data = open(folder.path(), 1, |_| ());
    let loader = || {
        let packer = data.endless(StreamCursor::default());
        Loader::new(packer, 32, 1, None).expect("started")
    };
    let mut whole = loader();
    let mut ranks = [0, 1, 2].map(|rank| (loader(), Share { rank, of: 3 }));
    for _ in 0..20 {
        let all = whole.next(6, Share::WHOLE).expect("a batch");
        let parts = ranks.each_mut().map(|(loader, share)| {
            let part = loader.next(2, *share).expect("a batch");
            (part, loader.cursor())
        });
        for (piece, sequence) in all.iter().enumerate() {
            assert_eq!(sequence, &parts[piece / 2].0[piece % 2]);
        }
        for (_, cursor) in parts {
            assert_eq!(cursor, whole.cursor());
        }
    }
}

#[test]
fn the_sequences_are_the_documents_one_after_the_other() {
    for format in FORMATS {
        for workers in [1, 3] {
            let folder = folder();
            write(folder.path(), format);
            let data = open(folder.path(), workers, |_| ());
            let mut packer = data.once();
            let mut joined = Vec::new();
            while let Some(packed) = packer.next().expect("packed") {
                assert_eq!(packed.tokens.len(), SEQ_LENGTH);
                joined.extend(packed.tokens);
            }
            let mut tokens = data.tokens(&documents());
            tokens.truncate(tokens.len() / SEQ_LENGTH * SEQ_LENGTH);
            assert_eq!(joined, tokens, "{format}");
            assert_eq!(packer.left_out().message("data"), None);
        }
    }
}

#[test]
fn the_stream_resumes_identically_from_any_position() {
    for format in FORMATS {
        let folder = folder();
        write(folder.path(), format);
        let data = open(folder.path(), 2, |_| ());
        // About three epochs.
        let whole = take(&mut data.endless(StreamCursor::default()), 300);
        for cut in [1, 2, 50, 99, 100, 101, 102, 200, 290] {
            let mut resumed = data.endless(whole[cut - 1].after.clone());
            assert_eq!(
                take(&mut resumed, 300 - cut),
                whole[cut..],
                "{format} {cut}"
            );
        }
    }
}

#[test]
fn a_position_survives_json() {
    let folder = folder();
    write(folder.path(), "jsonl.gz");
    let data = open(folder.path(), 1, |_| ());
    let after = take(&mut data.endless(StreamCursor::default()), 70)
        .pop()
        .expect("some")
        .after;
    let json = serde_json::to_string(&after).expect("written");
    assert_eq!(
        serde_json::from_str::<StreamCursor>(&json).expect("read"),
        after
    );
}

#[test]
fn the_parts_of_a_text_have_the_tokens_of_the_whole() {
    let folder = folder();
    write(folder.path(), "text");
    let data = open(folder.path(), 1, |_| ());
    let text = documents().concat();
    let tokens = |text: &str| data.tokenizer.encode(text).expect("encoded");
    for limit in [20, 100, 333] {
        let (mut parts, mut rest) = (Vec::new(), text.as_str());
        while rest.len() > limit {
            let (part, after) = rest.split_at(passage::cut(rest.as_bytes(), limit));
            parts.extend(tokens(part));
            rest = after;
        }
        parts.extend(tokens(rest));
        assert_eq!(parts, tokens(&text), "{limit}");
    }
}

#[test]
fn weights_are_shares_of_the_tokens() {
    let (a, b) = (folder(), folder());
    write(a.path(), "text");
    write(b.path(), "jsonl.gz");
    let data = open(a.path(), 2, |config| {
        config.data.push(b.path().to_owned());
        config.data_weights = vec![1.0, 3.0];
    });
    let whole = take(&mut data.endless(StreamCursor::default()), 400);
    for packed in &whole {
        let position = serde_json::to_value(&packed.after).expect("written");
        let tokens = |source: usize| {
            position["sources"][source]["tokens"]
                .as_f64()
                .expect("a count")
        };
        // The longest document has fewer than 100 tokens.
        assert!((3.0 * tokens(0) - tokens(1)).abs() < 300.0, "{position}");
    }
    for cut in [1, 57, 203] {
        let mut resumed = data.endless(whole[cut - 1].after.clone());
        assert_eq!(take(&mut resumed, 400 - cut), whole[cut..]);
    }
}

#[test]
fn a_single_file_of_records_is_split_by_their_texts() {
    let folder = folder();
    write(folder.path(), "jsonl");
    let data = open(&folder.path().join("a.jsonl"), 1, |config| {
        config.valid_data.clear();
        config.valid_every = 4;
    });
    let texts = |files: &Arc<[SourceFile]>| {
        let mut packer = Packer::once(files.clone(), &data.workers, 1);
        let mut tokens = Vec::new();
        while let Some(packed) = packer.next().expect("packed") {
            tokens.push(packed.tokens[0]);
        }
        let texts = tokens.split(|&token| token == data.tokenizer.end_of_text());
        let mut texts: Vec<String> = texts.map(|text| data.tokenizer.decode(text)).collect();
        assert_eq!(texts.pop().as_deref(), Some(""));
        texts
    };
    let (train, valid) = (texts(&data.corpus.train_files()), texts(&data.corpus.valid));
    assert!(valid.len() > 3 && valid.len() < 20, "{}", valid.len());
    let mut all = [train, valid].concat();
    let mut expected = documents();
    all.sort();
    expected.sort();
    assert_eq!(all, expected);
}

/// Writes the tokens of the training data, in the order of the first epoch, to a token file.
fn write_tokens(data: &Data, path: &Path) {
    let files = data.corpus.train_files();
    let order = Order::Shuffled(1);
    let left_out = Arc::new(LeftOut::default());
    let place = PassageId::default();
    let mut stream = Stream::new(0, files, data.workers.clone(), left_out, order, place);
    let end_of_text = data.tokenizer.end_of_text();
    let header = TokenHeader::new(300, end_of_text, data.tokenizer.sha256());
    let file = fs::File::create(path).expect("made");
    let mut writer = TokenWriter::new(file, header).expect("begun");
    while let Some(passage) = stream.next().expect("tokenized") {
        writer.write(&passage.tokens).expect("written");
    }
    writer.finish().expect("finished");
}

#[test]
fn a_token_file_gives_the_sequences_of_the_first_epoch_and_resumes() {
    let (text, tokens) = (folder(), folder());
    write(text.path(), "text");
    let text = open(text.path(), 2, |_| ());
    let path = tokens.path().join("train.tokens");
    write_tokens(&text, &path);
    let data = open(&path, 1, |_| ());
    data.corpus
        .check_tokens(&data.tokenizer)
        .expect("the same tokenizer");
    assert_eq!(data.corpus.token_folder().as_deref(), Some(tokens.path()));
    let sequences = |data: &Data, n| {
        let packed = take(&mut data.endless(StreamCursor::default()), n);
        packed
            .into_iter()
            .map(|packed| packed.tokens)
            .collect::<Vec<_>>()
    };
    let epoch = text.tokens(&documents()).len() / SEQ_LENGTH;
    assert!(sequences(&data, epoch) == sequences(&text, epoch));
    let whole = take(&mut data.endless(StreamCursor::default()), 300);
    for cut in [1, 50, epoch, epoch + 1, 290] {
        let mut resumed = data.endless(whole[cut - 1].after.clone());
        assert_eq!(take(&mut resumed, 300 - cut), whole[cut..], "{cut}");
    }
}

#[test]
fn foreign_token_files_are_rejected_and_other_files_with_the_extension_are_text() {
    let (text, tokens) = (folder(), folder());
    write(text.path(), "text");
    let text = open(text.path(), 1, |_| ());
    let path = tokens.path().join("train.tokens");
    write_tokens(&text, &path);
    let mut bytes = fs::read(&path).expect("read");
    bytes[40] ^= 1;
    fs::write(&path, &bytes).expect("written");
    let data = open(&path, 1, |_| ());
    let error = data
        .corpus
        .check_tokens(&data.tokenizer)
        .expect_err("refused");
    assert!(
        error
            .message()
            .starts_with("the token file was created with a different tokenizer")
    );
    fs::write(&path, &bytes[..bytes.len() - 2]).expect("written");
    let data = open(&path, 1, |_| ());
    let error = data
        .corpus
        .check_tokens(&data.tokenizer)
        .expect_err("refused");
    assert!(error.message().contains("it is truncated"));
    fs::write(&path, "ID=1\n").expect("written");
    let data = open(&path, 1, |_| ());
    assert_eq!(data.corpus.token_folder(), None);
    assert_eq!(data.texts().0, ["ID=1\n"]);
}

#[test]
fn a_token_file_truncated_while_it_is_read_is_left_out() {
    let (text, tokens) = (folder(), folder());
    write(text.path(), "text");
    let text = open(text.path(), 1, |_| ());
    let path = tokens.path().join("train.tokens");
    write_tokens(&text, &path);
    let corpus = open(&path, 1, |_| ()).corpus;
    let mut reader = reader::Reader::open(&corpus.train_files()[0]).expect("opened");
    fs::File::options()
        .write(true)
        .open(&path)
        .and_then(|file| file.set_len(100))
        .expect("cut");
    assert_eq!(reader.next(), Some(Err(left_out::Reason::Changed.into())));
    assert_eq!(reader.next(), None);
}

/// Reads a folder that contains this file and a good file. The good file comes last in the order of names.
/// Returns the texts, and the message about the documents that were left out. In the message, `FILE` replaces
/// the path of this file.
fn next_to_a_good_file(name: &str, bytes: &[u8]) -> (Vec<String>, String) {
    let folder = folder();
    fs::write(folder.path().join(name), bytes).expect("written");
    fs::write(folder.path().join("z.txt"), "good").expect("written");
    let (texts, message) = open(folder.path(), 2, |_| ()).texts();
    let message = message.unwrap_or_default();
    let path: PathBuf = folder.path().join(name);
    (texts, message.replace(&path.display().to_string(), "FILE"))
}

#[test]
fn unusable_files_are_left_out_and_counted() {
    let left_out = |name: &str, bytes: &[u8]| {
        let (texts, message) = next_to_a_good_file(name, bytes);
        assert_eq!(texts, ["good"], "{name}: {message}");
        message
    };
    let one = |why: &str, more: &str| {
        format!("1 document of the data was left out: 1 {why} (first: FILE{more})")
    };
    let damaged = |more| one("damaged or truncated", more);
    assert_eq!(left_out("a.txt", b"a\xff"), one("not UTF-8", ""));
    assert_eq!(
        left_out("a.txt.gz", b"this is no gzip"),
        damaged(": invalid gzip header")
    );
    assert_eq!(
        left_out("a.txt.zst", b"no zstd"),
        damaged(": Unknown frame descriptor")
    );
    let cut = gzip(b"a text that ends too early");
    assert_eq!(
        left_out("a.txt.gz", &cut[..cut.len() - 9]),
        damaged(": incomplete deflate stream")
    );
    let codec = "in an unsupported codec";
    assert_eq!(left_out("a.txt.xz", b"\xfd7zXZ\0"), one(codec, ": xz"));
    assert_eq!(
        left_out("a.txt.gz", b"\xfd7zXZ\0"),
        one(codec, ": xz"),
        "under another name"
    );
    assert_eq!(left_out("a.txt", b""), "");
}

#[test]
fn the_good_lines_of_a_bad_file_count() {
    let lines = b"{\"content\": \"one\"}\n{broken\n{\"content\": \"\"}\n{\"text\": \"a\"}\n{\"content\": \"\xff\"}\n\
        {\"content\": null}\n[\n{\"content\": \"two\"}\n";
    let (texts, message) = next_to_a_good_file("a.jsonl", lines);
    assert_eq!(texts, ["one", "two", "good"]);
    assert_eq!(
        message,
        "6 documents of the data were left out: 1 not UTF-8 (first: FILE:5), \
         2 not a JSON object (first: FILE:2: key must be a string in column 2), \
         1 without the text column (first: FILE:4), 1 with null in the text column (first: FILE:6), 1 empty (first: FILE)"
    );
}

#[test]
fn the_good_rows_of_a_parquet_file_count() {
    let rows: [Option<&[u8]>; 4] = [Some(b"one"), None, Some(b""), Some(b"two")];
    let whole = parquet(&rows, SNAPPY);
    let (texts, message) = next_to_a_good_file("a.parquet", &whole);
    assert_eq!(texts, ["one", "two", "good"]);
    assert_eq!(
        message,
        "2 documents of the data were left out: 1 with null in the text column (first: FILE), 1 empty (first: FILE)"
    );
}

#[test]
fn a_truncated_compressed_file_counts_up_to_the_cut() {
    // Enough documents for several compressed blocks, with gzip as well as with Zstandard.
    let documents = vec![documents(); 60].concat();
    for (name, whole) in [
        ("a.jsonl.gz", gzip(&json_lines(&documents))),
        (
            "a.jsonl.zst",
            zstd::encode_all(&json_lines(&documents)[..], 1).expect("compressed"),
        ),
    ] {
        let (texts, message) = next_to_a_good_file(name, &whole[..whole.len() - 12]);
        assert!(texts.len() > 600 && texts.len() <= documents.len());
        assert_eq!(texts.last().expect("one"), "good");
        assert_eq!(texts[..texts.len() - 1], documents[..texts.len() - 1]);
        let expected = "1 document of the data was left out: 1 damaged or truncated (first: FILE:";
        assert!(message.starts_with(expected), "{message}");
    }
}

#[test]
fn a_file_that_vanishes_or_changes_is_left_out() {
    let folder = folder();
    write(folder.path(), "text");
    let data = open(folder.path(), 2, |_| ());
    fs::remove_file(folder.path().join("03.rs")).expect("removed");
    fs::write(folder.path().join("05.rs"), "shorter").expect("written");
    let (texts, message) = data.texts();
    let mut expected = documents();
    expected.remove(5);
    expected.remove(3);
    assert_eq!(texts, expected);
    let message = message.expect("a sentence");
    assert!(
        message.starts_with("2 documents of the data were left out: 1 cannot be read (first: ")
    );
    assert!(
        message.contains("03.rs: No such file or directory), 1 changed since the start (first: ")
    );
}

#[test]
fn the_name_of_a_special_token_is_that_token_or_text() {
    let folder = folder();
    let name = "<|endoftext|>";
    fs::write(folder.path().join("a.txt"), format!("a{name}b")).expect("written");
    let data = open(folder.path(), 1, |_| ());
    let end = data.tokenizer.end_of_text();
    let ends = |tokenizer: &Tokenizer| {
        let tokens = tokenizer.encode(&format!("a{name}b")).expect("encoded");
        tokens.into_iter().filter(|&token| token == end).count()
    };
    assert_eq!(ends(&data.tokenizer), 1);
    // The workers hold the tokenizer until they are dropped.
    drop(data.workers);
    let tokenizer = Arc::into_inner(data.tokenizer).expect("the last");
    let tokenizer = tokenizer.splitting_special_tokens(true);
    assert_eq!(ends(&tokenizer), 0);
    let tokens = tokenizer.encode(name).expect("encoded");
    assert_eq!(tokenizer.decode(&tokens), name);
}

#[test]
fn data_without_usable_documents_is_an_error() {
    let folder = folder();
    fs::write(folder.path().join("a.txt"), b"a\xff").expect("written");
    let data = open(folder.path(), 1, |_| ());
    let mut packer = data.endless(StreamCursor::default());
    let error = packer.next().expect_err("refused");
    assert!(error.message().starts_with("no usable data: 1 document"));
}
