use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use host_core::{Error, ErrorKind, Result};
use sha2::{Digest, Sha256};

use super::files::{Found, HeldOut, Part, SourceFile, find, number};
use super::format::{Compression, Format};
use super::passage::Content;
use super::reader::{Reader, text_content};
use super::token_file::TokenHeader;
use crate::TrainConfig;
use crate::tokenizer::Tokenizer;

/// The files to train on and to evaluate on.
#[derive(Clone, Debug)]
pub(crate) struct Corpus {
    /// With weights, one source for each given path. Without weights, one source with all files.
    pub(crate) train: Vec<Source>,
    pub(crate) valid: Arc<[SourceFile]>,
    /// Messages about folders and links that cannot be read.
    pub(crate) notices: Vec<String>,
}

/// Files that are read as one stream, sorted by name.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) files: Arc<[SourceFile]>,
    /// The share of the tokens, relative to the other sources.
    pub(crate) weight: f64,
}

impl Corpus {
    /// Finds the files and checks the first file of each source. Without `valid_data`, a part of the data is
    /// held out: see [`split`]. The held-out part depends only on the files' names or, if there is a single
    /// file, on its content.
    ///
    /// # Errors
    /// Returns an error if a path does not exist, nothing is found, or the records have no text column.
    pub(crate) fn find(config: &TrainConfig) -> Result<Self> {
        if config.data.is_empty() {
            return Err(Error::new(ErrorKind::Config, "no training data is given")
                .hint("name a folder of source files: --data src/"));
        }
        let pools: Vec<(f64, Found)> = if config.data_weights.is_empty() {
            vec![(1.0, find("data", &config.data, config)?)]
        } else {
            let weights = config.data_weights.iter().copied();
            weights
                .zip(&config.data)
                .map(|(weight, path)| {
                    Ok((weight, find("data", std::slice::from_ref(path), config)?))
                })
                .collect::<Result<_>>()?
        };
        let mut valid = Found::default();
        if !config.valid_data.is_empty() {
            valid = find("valid_data", &config.valid_data, config)?;
        }
        let valid_every = config.valid_every.max(1);
        let (mut train, mut notices) = (Vec::new(), Vec::new());
        for (weight, mut found) in pools {
            notices.append(&mut found.notices);
            let mut kept = found.files;
            if config.valid_data.is_empty() {
                let held_out;
                (kept, held_out) = split(kept, valid_every);
                valid.files.extend(held_out);
            }
            train.push(Source {
                files: kept.into(),
                weight,
            });
        }
        if valid.files.is_empty() {
            for source in &mut train {
                let (kept, held_out) = split_text(&source.files, valid_every);
                source.files = kept;
                valid.files.extend(held_out);
            }
        }
        if valid.files.is_empty() {
            let file = &train[0].files[0];
            let why = if file.format.has_records() {
                "its records cannot be split into training and evaluation data: they are all identical"
            } else {
                "a single file cannot be split into training and evaluation data"
            };
            let message = format!("{why}: {}", file.path.display());
            return Err(Error::new(ErrorKind::Config, message)
                .hint("add more files, or name a file to evaluate on: --valid-data FILE"));
        }
        notices.append(&mut valid.notices);
        Ok(Self {
            train,
            valid: valid.files.into(),
            notices,
        })
    }

    /// Returns the folder of the first token file. The folder must also contain the file's tokenizer. `None`
    /// if there are no token files.
    pub(crate) fn token_folder(&self) -> Option<PathBuf> {
        let mut tokens = self.token_files();
        tokens.next()?.path.parent().map(Path::to_owned)
    }

    /// Checks that the token files are complete and were created with this tokenizer.
    ///
    /// # Errors
    /// Returns an error for the first file that fails the check.
    pub(crate) fn check_tokens(&self, tokenizer: &Tokenizer) -> Result<()> {
        for file in self.token_files() {
            if TokenHeader::read(&file.path)?.tokenizer != tokenizer.sha256() {
                return Err(Error::new(
                    ErrorKind::Config,
                    format!(
                        "the token file was created with a different tokenizer: {}",
                        file.path.display()
                    ),
                )
                .hint("set --tokenizer to the tokenizer next to the file, or rewrite the file with `host data tokenize`"));
            }
        }
        Ok(())
    }

    /// Checks that a model with this many vocabulary rows has a row for each id of the token files.
    ///
    /// # Errors
    /// Returns an error for the first file with a larger vocabulary.
    pub(crate) fn check_rows(&self, rows: i64) -> Result<()> {
        for file in self.token_files() {
            let ids = TokenHeader::read(&file.path)?.vocab_size;
            if i64::from(ids) > rows {
                let path = file.path.display();
                let message = format!(
                    "the token file needs {ids} vocabulary rows, but the model has {rows}: {path}"
                );
                return Err(Error::new(ErrorKind::Config, message)
                    .hint("rewrite the file with `host data tokenize`"));
            }
        }
        Ok(())
    }

    fn token_files(&self) -> impl Iterator<Item = &SourceFile> {
        let train = self.train.iter().flat_map(|source| source.files.iter());
        train
            .chain(self.valid.iter())
            .filter(|file| file.format == Format::Tokens)
    }

    /// Returns the training files of all sources.
    pub(crate) fn train_files(&self) -> Arc<[SourceFile]> {
        let files = self.train.iter().flat_map(|source| source.files.iter());
        files.cloned().collect()
    }
}

/// Splits the files into training files and held-out files. About one of every `valid_every` files is held
/// out, chosen by the hash of its name. A single file with records is split: about one of every `valid_every`
/// records is held out, chosen by the hash of its text. If that selects all records or no record, only the
/// record with the lowest hash is held out. A single file without records is not split here.
fn split(files: Vec<SourceFile>, valid_every: u64) -> (Vec<SourceFile>, Vec<SourceFile>) {
    if let [file] = &files[..] {
        return match some_records(file, valid_every) {
            None => (files, Vec::new()),
            Some(held_out) => (
                vec![file.with(Part::Train(held_out))],
                vec![file.with(Part::Valid(held_out))],
            ),
        };
    }
    let (mut valid, mut train): (Vec<_>, Vec<_>) = files
        .into_iter()
        .partition(|file| number(&Sha256::digest(&file.name)).is_multiple_of(valid_every));
    // If there are few files, the hashes can put all of them on one side.
    if valid.is_empty() {
        valid.extend(train.pop());
    } else if train.is_empty() {
        train.extend(valid.pop());
    }
    (train, valid)
}

/// Holds out the last part of a single text. Used only if no files or records were held out.
fn split_text(files: &Arc<[SourceFile]>, valid_every: u64) -> (Arc<[SourceFile]>, Vec<SourceFile>) {
    let held_out = match &files[..] {
        [file] => last_part(file, valid_every).map(|held_out| (file, held_out)),
        _ => None,
    };
    match held_out {
        None => (files.clone(), Vec::new()),
        Some((file, held_out)) => (
            Arc::new([file.with(Part::Train(held_out))]),
            vec![file.with(Part::Valid(held_out))],
        ),
    }
}

/// Reads records until the training part and the held-out part each have one. `None` if there are no records
/// or all are identical.
fn some_records(file: &SourceFile, valid_every: u64) -> Option<HeldOut> {
    if !file.format.has_records() {
        return None;
    }
    let mut reader = Reader::open(file).ok()?;
    let (mut train, mut valid) = (false, false);
    let mut hashes: Option<(u64, u64)> = None;
    let mut document = Sha256::new();
    while let Some(next) = reader.next() {
        let Ok(passage) = next else { continue };
        let Content::Text(text) = passage.content else {
            continue;
        };
        document.update(text);
        if !passage.ends_document {
            continue;
        }
        let hash = number(&document.finalize_reset());
        let is_valid = hash.is_multiple_of(valid_every);
        (train, valid) = (train || !is_valid, valid || is_valid);
        if train && valid {
            return Some(HeldOut::OneIn(valid_every));
        }
        let (lowest, highest) = hashes.unwrap_or((hash, hash));
        hashes = Some((lowest.min(hash), highest.max(hash)));
    }
    let (lowest, highest) = hashes?;
    (lowest < highest).then_some(HeldOut::Hash(lowest))
}

/// Divides a text into `valid_every` equal parts. Returns where the last part begins, moved forward to the
/// start of a line if one is near. `None` if the text cannot be split.
fn last_part(file: &SourceFile, valid_every: u64) -> Option<HeldOut> {
    /// How many bytes are searched for a line end. All of them are held in memory.
    const NEAR: u64 = 1 << 16;
    let Format::Text(compression) = file.format else {
        return None;
    };
    let content = || text_content(compression, File::open(&file.path).ok()?).ok();
    let bytes = match compression {
        Compression::None => file.bytes,
        _ => read_through(&mut content()?),
    };
    let wanted = (bytes - bytes / valid_every).min(bytes.checked_sub(1)?);
    let mut input = content()?;
    let mut near = Vec::new();
    io::copy(&mut (&mut input).take(wanted), &mut io::sink()).ok()?;
    input
        .take(NEAR.min(bytes - wanted))
        .read_to_end(&mut near)
        .ok()?;
    let begins = |&at: &usize| near[at] & 0xc0 != 0x80;
    let line = near.iter().position(|&byte| byte == b'\n');
    let line = line.map(|end| end + 1).filter(|&at| at < near.len());
    let at = line.or_else(|| (0..near.len()).find(begins))? as u64;
    let at = wanted + at;
    (0 < at && at < bytes).then_some(HeldOut::From(at))
}

/// Reads up to the end or the first damage. Returns the number of bytes that could be read.
fn read_through(input: &mut dyn Read) -> u64 {
    let mut block = vec![0; 1 << 16];
    let mut bytes = 0;
    loop {
        match input.read(&mut block) {
            Ok(0) => return bytes,
            Ok(read) => bytes += read as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for name in names {
            std::fs::write(folder.path().join(name), name).expect("written");
        }
        folder
    }

    fn config(folder: &Path) -> TrainConfig {
        TrainConfig {
            data: vec![folder.to_owned()],
            ..TrainConfig::default()
        }
    }

    fn names(files: &[SourceFile]) -> Vec<&str> {
        files.iter().map(|file| file.name.as_str()).collect()
    }

    #[test]
    fn the_split_depends_only_on_names_and_no_side_is_empty() {
        let all: Vec<String> = (0..100).map(|n| format!("{n}.rs")).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let (a, b) = (folder(&all), folder(&all[..50]));
        let (a, b) = (
            Corpus::find(&config(a.path())).expect("found"),
            Corpus::find(&config(b.path())).expect("found"),
        );
        let held = names(&a.valid);
        assert!(!held.is_empty() && held.len() < 20);
        assert!(names(&b.valid).iter().all(|name| held.contains(name)));
        assert_eq!(a.train_files().len() + a.valid.len(), 100);
        let two = folder(&["a.rs", "b.rs"]);
        let two = Corpus::find(&config(two.path())).expect("found");
        assert_eq!((two.train_files().len(), two.valid.len()), (1, 1));
    }

    /// Returns the training and the evaluation documents of a single file.
    fn sides(name: &str, content: &[u8], valid_every: u64) -> Result<[Vec<String>; 2]> {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join(name), content).expect("written");
        let corpus = Corpus::find(&TrainConfig {
            valid_every,
            ..config(folder.path())
        })?;
        let texts = |file: &SourceFile| {
            let mut reader = Reader::open(file).expect("opened");
            let mut texts = vec![String::new()];
            while let Some(passage) = reader.next() {
                let passage = passage.expect("a passage");
                if let Content::Text(text) = passage.content {
                    texts.last_mut().expect("one").push_str(&text);
                }
                if passage.ends_document {
                    texts.push(String::new());
                }
            }
            assert_eq!(texts.pop().as_deref(), Some(""));
            texts
        };
        Ok([texts(&corpus.train_files()[0]), texts(&corpus.valid[0])])
    }

    #[test]
    fn one_text_is_split_where_a_line_begins() {
        let lines: String = (0..50_000).map(|n| format!("line {n} é\n")).collect();
        let zstd = zstd::encode_all(lines.as_bytes(), 1).expect("compressed");
        for (name, bytes) in [("a.txt", lines.as_bytes()), ("a.txt.zst", &zstd[..])] {
            let [train, valid] = sides(name, bytes, 20).expect("split");
            assert_eq!((train.len(), valid.len()), (1, 1));
            assert_eq!([&train[0][..], &valid[0]].concat(), lines);
            assert!(valid[0].starts_with("line 47") && valid[0].len() < lines.len() / 20);
        }
        // A text without lines is split between two characters, with at least one character on each side.
        let [train, valid] = sides("a.txt", "éééé".repeat(100).as_bytes(), 3).expect("split");
        assert_eq!((train[0].len(), valid[0].len()), (534, 266));
        let [train, valid] = sides("a.txt", b"ab", 20).expect("split");
        assert_eq!((&*train[0], &*valid[0]), ("a", "b"));
        for too_small in ["a", "é"] {
            let error = sides("a.txt", too_small.as_bytes(), 20).expect_err("refused");
            assert!(error.message().starts_with("a single file cannot be split"));
            assert!(error.hint_text().expect("a hint").contains("--valid-data"));
        }
    }

    #[test]
    fn a_file_of_few_records_is_split_so_that_no_side_is_empty() {
        let records = |texts: &[&str]| {
            let line = |text: &&str| serde_json::json!({ "content": text }).to_string() + "\n";
            texts.iter().map(line).collect::<String>().into_bytes()
        };
        for texts in [
            &["one", "two"][..],
            &["one", "two", "three"],
            &["one", "two", "two", "two"],
        ] {
            for valid_every in [2, 20, 1_000_000] {
                let sides = sides("a.jsonl", &records(texts), valid_every).expect("split");
                assert!(sides.iter().all(|side| !side.is_empty()), "{sides:?}");
                let mut all = sides.concat();
                all.sort();
                let mut expected = texts.to_vec();
                expected.sort_unstable();
                assert_eq!(all, expected);
            }
        }
        for texts in [&["one"][..], &["one", "one", ""]] {
            let error = sides("a.jsonl", &records(texts), 20).expect_err("refused");
            assert!(
                error.message().contains("they are all identical"),
                "{error}"
            );
            assert!(error.hint_text().expect("a hint").contains("--valid-data"));
        }
        let many: Vec<String> = (0..1000).map(|n| format!("text {n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let [train, valid] = sides("a.jsonl", &records(&many), 20).expect("split");
        assert!(valid.len() > 20 && valid.len() < 100 && train.len() + valid.len() == 1000);
    }

    #[test]
    fn each_weighted_source_is_split_separately() {
        let (a, b) = (folder(&["a.rs"]), folder(&["b.rs", "c.rs", "d.rs"]));
        let config = TrainConfig {
            data: vec![a.path().to_owned(), b.path().to_owned()],
            data_weights: vec![0.3, 0.7],
            ..TrainConfig::default()
        };
        let corpus = Corpus::find(&config).expect("found");
        assert_eq!(corpus.train.len(), 2);
        assert_eq!(names(&corpus.train[0].files), ["a.rs"]);
        assert_eq!(corpus.train[1].weight, 0.7);
        assert_eq!(corpus.train[1].files.len() + corpus.valid.len(), 3);
        assert_eq!(corpus.train[0].files[0].part, Part::All);
        // Each source is a single text, so each source is split.
        let config = TrainConfig {
            data: vec![a.path().join("a.rs"), b.path().join("b.rs")],
            ..config
        };
        let corpus = Corpus::find(&config).expect("found");
        assert_eq!(names(&corpus.valid), ["a.rs", "b.rs"]);
    }
}
