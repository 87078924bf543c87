use std::path::{Path, PathBuf};

use host_core::{Error, Kind, Result};
use sha2::{Digest, Sha256};
use walkdir::WalkDir;

use crate::TrainConfig;

/// A file of source code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SourceFile {
    pub(crate) path: PathBuf,
    /// The path below the folder that was given, which does not change when the folder moves.
    name: String,
    pub(crate) bytes: u64,
}

/// What there is to train on and to evaluate on; both in the order of their names.
#[derive(Clone, Debug)]
pub(crate) struct Corpus {
    pub(crate) train: Vec<SourceFile>,
    pub(crate) valid: Vec<SourceFile>,
}

impl Corpus {
    /// Finds the files. A folder gives all files below it with one of the `extensions`, but for
    /// hidden ones; links are not followed. Whether a file is held out depends on its name alone.
    ///
    /// # Errors
    /// A path that is not there, or nothing found.
    pub(crate) fn find(config: &TrainConfig) -> Result<Self> {
        if config.data.is_empty() {
            return Err(Error::new(Kind::Config, "there is no training data")
                .hint("name a folder of source files: --data src/"));
        }
        let all = find_all("data", &config.data, &config.extensions)?;
        if !config.valid_data.is_empty() {
            return Ok(Self {
                train: all,
                valid: find_all("valid_data", &config.valid_data, &config.extensions)?,
            });
        }
        if all.len() < 2 {
            return Err(Error::new(
                Kind::Config,
                format!(
                    "one file cannot be split into training and evaluation: {}",
                    all[0].path.display()
                ),
            )
            .hint("give more files, or a file to evaluate on: --valid-data FILE"));
        }
        let (mut valid, mut train): (Vec<_>, Vec<_>) = all
            .into_iter()
            .partition(|file| name_hash(&file.name).is_multiple_of(config.valid_every.max(1)));
        // Few files may all fall on one side.
        if valid.is_empty() {
            valid.extend(train.pop());
        } else if train.is_empty() {
            train.extend(valid.pop());
        }
        Ok(Self { train, valid })
    }

    /// What tells this training data from another: names and sizes. Lower-case hexadecimal.
    pub(crate) fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for file in &self.train {
            hash.update(file.name.as_bytes());
            hash.update([0]);
            hash.update(file.bytes.to_le_bytes());
        }
        hex(&hash.finalize())
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn find_all(what: &str, paths: &[PathBuf], extensions: &[String]) -> Result<Vec<SourceFile>> {
    let mut found = Vec::new();
    for path in paths {
        let metadata = std::fs::metadata(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                Error::new(Kind::Config, format!("{what} is not there: {}", path.display()))
                    .hint("check the path; it is relative to the current folder on the command line, to the file in a configuration file")
            }
            _ => Error::io("read", path, &error),
        })?;
        if metadata.is_file() {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            found.push(SourceFile {
                path: path.clone(),
                name,
                bytes: metadata.len(),
            });
        } else {
            find_below(path, extensions, &mut found)?;
        }
    }
    found.retain(|file| file.bytes > 0);
    if found.is_empty() {
        let with = if extensions.is_empty() {
            String::new()
        } else {
            format!(" with the extension {}", extensions.join(" or "))
        };
        let paths: Vec<_> = paths
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        return Err(Error::new(
            Kind::Config,
            format!(
                "{what} has no file{with} that is not empty: {}",
                paths.join(", ")
            ),
        )
        .hint("name another folder, or other extensions: --extensions rs,toml"));
    }
    found.sort_by(|a, b| (&a.name, &a.path).cmp(&(&b.name, &b.path)));
    Ok(found)
}

fn find_below(folder: &Path, extensions: &[String], found: &mut Vec<SourceFile>) -> Result<()> {
    let hidden = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(b".");
    let entries = WalkDir::new(folder)
        .into_iter()
        .filter_entry(|entry| entry.depth() == 0 || !hidden(entry.file_name()));
    for entry in entries {
        let entry = entry.map_err(|error| {
            Error::new(
                Kind::System,
                format!("cannot look through the data: {error}"),
            )
        })?;
        let wanted = extensions.is_empty()
            || entry.path().extension().is_some_and(|extension| {
                extensions
                    .iter()
                    .any(|wanted| extension == wanted.trim_start_matches('.'))
            });
        if entry.file_type().is_file() && wanted {
            let below = entry.path().strip_prefix(folder).unwrap_or(entry.path());
            found.push(SourceFile {
                path: entry.path().to_owned(),
                name: below.to_string_lossy().into_owned(),
                // A file that vanishes in between is skipped when its turn comes.
                bytes: entry.metadata().map_or(0, |metadata| metadata.len()),
            });
        }
    }
    Ok(())
}

/// A number that depends on the name alone.
fn name_hash(name: &str) -> u64 {
    let digest = Sha256::digest(name.as_bytes());
    digest
        .iter()
        .take(8)
        .fold(0, |hash, &byte| hash << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for name in names {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            std::fs::write(path, name).expect("written");
        }
        folder
    }

    fn config(folder: &Path) -> TrainConfig {
        TrainConfig {
            data: vec![folder.to_owned()],
            extensions: vec!["rs".to_owned()],
            ..TrainConfig::default()
        }
    }

    #[test]
    fn the_split_depends_on_names_alone_and_leaves_both_sides_something() {
        let names: Vec<String> = (0..100).map(|n| format!("src/{n}.rs")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (a, b) = (folder(&names), folder(&names[..50]));
        let (a, b) = (
            Corpus::find(&config(a.path())).expect("found"),
            Corpus::find(&config(b.path())).expect("found"),
        );
        let held = |corpus: &Corpus| {
            corpus
                .valid
                .iter()
                .map(|file| file.name.clone())
                .collect::<Vec<_>>()
        };
        assert!(!held(&a).is_empty() && held(&a).len() < 20);
        assert!(held(&b).iter().all(|name| held(&a).contains(name)));
        assert_eq!(a.train.len() + a.valid.len(), 100);
        let two = folder(&["a.rs", "b.rs"]);
        let two = Corpus::find(&config(two.path())).expect("found");
        assert_eq!((two.train.len(), two.valid.len()), (1, 1));
    }

    #[test]
    fn hidden_files_other_extensions_and_empty_files_do_not_count() {
        let folder = folder(&["a.rs", "b.rs", "c.txt", ".hidden/d.rs", ".e.rs"]);
        std::fs::write(folder.path().join("empty.rs"), "").expect("written");
        let corpus = Corpus::find(&config(folder.path())).expect("found");
        assert_eq!(corpus.train.len() + corpus.valid.len(), 2);
    }

    #[test]
    fn what_is_missing_is_named() {
        let empty = folder(&["a.txt"]);
        let message = |config: &TrainConfig| Corpus::find(config).expect_err("nothing").to_string();
        assert!(
            message(&config(empty.path())).starts_with("data has no file with the extension rs")
        );
        assert!(message(&config(Path::new("/no/such/folder"))).starts_with("data is not there"));
        assert_eq!(
            message(&TrainConfig::default()),
            "there is no training data"
        );
    }
}
