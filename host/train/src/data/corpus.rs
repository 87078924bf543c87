use std::path::{Path, PathBuf};
use std::sync::Arc;

use host_core::{Error, Kind, Result};
use sha2::{Digest, Sha256};

use super::files::{Part, SourceFile, find, hex, number};
use super::format::Format;
use super::token_file::TokenHeader;
use crate::TrainConfig;
use crate::tokenizer::Tokenizer;

/// What there is to train on and to evaluate on.
#[derive(Clone, Debug)]
pub(crate) struct Corpus {
    /// One source of all files, or with weights one for each path that was given.
    pub(crate) train: Vec<Source>,
    pub(crate) valid: Arc<[SourceFile]>,
}

/// Files that are read as one, in the order of their names.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) files: Arc<[SourceFile]>,
    /// Its share of the tokens, in relation to the other sources'.
    pub(crate) weight: f64,
}

impl Corpus {
    /// Finds the files and looks into the first of each source. What is held out when there is no
    /// `valid_data` depends on the files' names alone: see [`split`].
    ///
    /// # Errors
    /// A path that is not there, nothing found, or records without the text column.
    pub(crate) fn find(config: &TrainConfig) -> Result<Self> {
        if config.data.is_empty() {
            return Err(Error::new(Kind::Config, "there is no training data")
                .hint("name a folder of source files: --data src/"));
        }
        let pools: Vec<(f64, Vec<SourceFile>)> = if config.data_weights.is_empty() {
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
        let mut valid = Vec::new();
        if !config.valid_data.is_empty() {
            valid = find("valid_data", &config.valid_data, config)?;
        }
        let mut train = Vec::new();
        for (weight, files) in pools {
            let mut kept = files;
            if config.valid_data.is_empty() {
                let held_out;
                (kept, held_out) = split(kept, config.valid_every.max(1));
                valid.extend(held_out);
            }
            train.push(Source {
                files: kept.into(),
                weight,
            });
        }
        if valid.is_empty() {
            let file = &train[0].files[0];
            return Err(Error::new(
                Kind::Config,
                format!(
                    "one file cannot be split into training and evaluation: {}",
                    file.path.display()
                ),
            )
            .hint("give more files, or a file to evaluate on: --valid-data FILE"));
        }
        Ok(Self {
            train,
            valid: valid.into(),
        })
    }

    /// Where the tokenizer of token files must be: in the folder of the first. None: there are no token
    /// files.
    pub(crate) fn token_folder(&self) -> Option<PathBuf> {
        let mut tokens = self.token_files();
        tokens.next()?.path.parent().map(Path::to_owned)
    }

    /// Looks whether the token files are whole and of this tokenizer.
    ///
    /// # Errors
    /// The first that is not.
    pub(crate) fn check_tokens(&self, tokenizer: &Tokenizer) -> Result<()> {
        for file in self.token_files() {
            if TokenHeader::read(&file.path)?.tokenizer != tokenizer.sha256() {
                return Err(Error::new(
                    Kind::Config,
                    format!(
                        "the token file was made with another tokenizer: {}",
                        file.path.display()
                    ),
                )
                .hint("give the one beside it by --tokenizer, or write the file anew with `host data tokenize`"));
            }
        }
        Ok(())
    }

    /// Looks whether a model with this many rows of the vocabulary has one for each id of the token files.
    ///
    /// # Errors
    /// The first file that may have others.
    pub(crate) fn check_rows(&self, rows: i64) -> Result<()> {
        for file in self.token_files() {
            let ids = TokenHeader::read(&file.path)?.vocab_size;
            if i64::from(ids) > rows {
                let path = file.path.display();
                let message =
                    format!("the token file has ids up to {ids}, the model {rows} rows: {path}");
                return Err(Error::new(Kind::Config, message)
                    .hint("write the file again with `host data tokenize`"));
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

    /// The training files of all sources.
    pub(crate) fn train_files(&self) -> Arc<[SourceFile]> {
        let files = self.train.iter().flat_map(|source| source.files.iter());
        files.cloned().collect()
    }

    /// What tells this training data from another: names and sizes. Lower-case hexadecimal.
    pub(crate) fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for file in self.train.iter().flat_map(|source| source.files.iter()) {
            hash.update(file.name.as_bytes());
            hash.update([0]);
            hash.update(file.bytes.to_le_bytes());
        }
        hex(&hash.finalize())
    }
}

/// What to train on and what to hold out: one file in `valid_every`, by its name. A single file with
/// records gives one record in so many, by the hash of its text; any other single file gives nothing.
fn split(files: Vec<SourceFile>, valid_every: u64) -> (Vec<SourceFile>, Vec<SourceFile>) {
    if let [file] = &files[..] {
        if !file.format.has_records() {
            return (files, Vec::new());
        }
        let part = |part| SourceFile {
            part,
            ..file.clone()
        };
        return (
            vec![part(Part::Train { valid_every })],
            vec![part(Part::Valid { valid_every })],
        );
    }
    let (mut valid, mut train): (Vec<_>, Vec<_>) = files
        .into_iter()
        .partition(|file| number(&Sha256::digest(&file.name)).is_multiple_of(valid_every));
    // Few files may all fall on one side.
    if valid.is_empty() {
        valid.extend(train.pop());
    } else if train.is_empty() {
        train.extend(valid.pop());
    }
    (train, valid)
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
    fn the_split_depends_on_names_alone_and_leaves_both_sides_something() {
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

    #[test]
    fn one_text_cannot_be_split_and_one_file_of_records_can() {
        let text = folder(&["a.rs"]);
        let error = Corpus::find(&config(text.path())).expect_err("refused");
        assert!(error.message().starts_with("one file cannot be split"));
        let records = folder(&[]);
        let line = "{\"content\": \"a\"}\n";
        std::fs::write(records.path().join("a.jsonl"), line).expect("written");
        let corpus = Corpus::find(&config(records.path())).expect("found");
        assert_eq!(
            corpus.train_files()[0].part,
            Part::Train { valid_every: 20 }
        );
        assert_eq!(corpus.valid[0].part, Part::Valid { valid_every: 20 });
    }

    #[test]
    fn weights_make_sources_that_are_split_each_by_itself() {
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
    }
}
