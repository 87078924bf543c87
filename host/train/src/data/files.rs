use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use host_core::{Error, Kind, Result};
use walkdir::WalkDir;

use super::format::{Format, has_extension};
use super::json_lines;
use super::left_out::Reason;
use super::parquet_rows;
use super::reader::Reader;
use crate::TrainConfig;

/// A file with documents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SourceFile {
    pub(crate) path: PathBuf,
    /// The path below the folder that was given, which does not change when the folder moves.
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) format: Format,
    /// The field or column of a record that has its text.
    pub(crate) column: Arc<str>,
    pub(crate) part: Part,
}

/// Which records of a file count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    All,
    /// All but one in so many.
    Train {
        valid_every: u64,
    },
    /// The others.
    Valid {
        valid_every: u64,
    },
}

/// Records of a file that are looked at before the start.
const SAMPLE: usize = 100;

/// Finds the files of some paths, in the order of their names. A folder gives all files below it with
/// one of the extensions, but for hidden ones; links are not followed. A path that is not there may be
/// a pattern (`**/*.rs`), whose folders count as if they were given by themselves.
///
/// # Errors
/// A path that is not there, or nothing found, or a first file with records that have no text.
pub(crate) fn find(what: &str, paths: &[PathBuf], config: &TrainConfig) -> Result<Vec<SourceFile>> {
    let mut search = Search {
        extensions: &config.extensions,
        column: config.text_column.as_str().into(),
        found: Vec::new(),
    };
    for path in paths {
        match std::fs::metadata(path) {
            Ok(_) => search.path(path, path)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                search.pattern(what, path)?;
            }
            Err(error) => return Err(Error::io("read", path, &error)),
        }
    }
    let mut found = search.found;
    found.retain(|file| file.bytes > 0);
    if found.is_empty() {
        let with = if config.extensions.is_empty() {
            String::new()
        } else {
            format!(" with the extension {}", config.extensions.join(" or "))
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
    if let Some(first) = found.iter().find(|file| file.format.has_records()) {
        first.check_records()?;
    }
    Ok(found)
}

struct Search<'a> {
    extensions: &'a [String],
    column: Arc<str>,
    found: Vec<SourceFile>,
}

impl Search<'_> {
    /// A file or a folder that is there. The name of a file is its path below `base`.
    fn path(&mut self, path: &Path, base: &Path) -> Result<()> {
        let metadata = std::fs::metadata(path).map_err(|error| Error::io("read", path, &error))?;
        if metadata.is_file() {
            self.file(path, base, metadata.len());
            return Ok(());
        }
        let hidden = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(b".");
        let entries = WalkDir::new(path)
            .into_iter()
            .filter_entry(|entry| entry.depth() == 0 || !hidden(entry.file_name()));
        for entry in entries {
            let entry = entry.map_err(|error| {
                Error::new(
                    Kind::System,
                    format!("cannot look through the data: {error}"),
                )
            })?;
            let wanted = self.extensions.is_empty() || has_extension(entry.path(), self.extensions);
            if entry.file_type().is_file() && wanted {
                // A file that vanishes in between is left out when its turn comes.
                let bytes = entry.metadata().map_or(0, |metadata| metadata.len());
                self.file(entry.path(), base, bytes);
            }
        }
        Ok(())
    }

    fn pattern(&mut self, what: &str, path: &Path) -> Result<()> {
        let absent = || {
            Error::new(Kind::Config, format!("{what} is not there: {}", path.display()))
                .hint("check the path; it is relative to the current folder on the command line, to the file in a configuration file")
        };
        let special = |part: &Component<'_>| {
            let part = part.as_os_str().as_encoded_bytes();
            part.iter().any(|byte| b"*?[".contains(byte))
        };
        let base: PathBuf = path
            .components()
            .take_while(|part| !special(part))
            .collect();
        if base == path {
            return Err(absent());
        }
        let pattern = path.to_str().ok_or_else(absent)?;
        let options = glob::MatchOptions {
            require_literal_leading_dot: true,
            require_literal_separator: true,
            ..glob::MatchOptions::new()
        };
        let matches = glob::glob_with(pattern, options).map_err(|error| {
            Error::new(
                Kind::Config,
                format!("{what} is no pattern: {error}: {pattern}"),
            )
            .hint("for example: --data 'src/**/*.rs'")
        })?;
        for found in matches {
            let found = found.map_err(|error| {
                let message = format!("cannot look through the data: {error}");
                Error::new(Kind::System, message)
            })?;
            // A link that leads nowhere matches as well.
            if found.exists() {
                self.path(&found, &base)?;
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, base: &Path, bytes: u64) {
        let below = path.strip_prefix(base).unwrap_or(path);
        let name = if below.as_os_str().is_empty() {
            Path::new(path.file_name().unwrap_or_default())
        } else {
            below
        };
        self.found.push(SourceFile {
            path: path.to_owned(),
            name: name.to_string_lossy().into_owned(),
            bytes,
            format: Format::of(path),
            column: self.column.clone(),
            part: Part::All,
        });
    }
}

impl SourceFile {
    /// Whether there is a text among the first records. Later ones may lack it, and are left out.
    fn check_records(&self) -> Result<()> {
        let refused =
            |why: String| Error::new(Kind::Config, format!("{why}: {}", self.path.display()));
        let mut reason = Reason::Empty;
        match Reader::open(self) {
            Err(first) => reason = first,
            Ok(mut reader) => {
                for _ in 0..SAMPLE {
                    match reader.next() {
                        None => break,
                        Some(Ok(_)) => return Ok(()),
                        Some(Err(next)) => reason = next,
                    }
                }
            }
        }
        Err(match reason {
            Reason::NoText => {
                let fields = self.fields();
                let error = refused(format!("the records have no text {:?}", &*self.column));
                if fields.is_empty() {
                    error
                } else {
                    error.hint(format!(
                        "name one of them by --text-column: {}",
                        fields.join(", ")
                    ))
                }
            }
            reason => refused(format!(
                "none of the first records can be used: {}",
                reason.words()
            ))
            .hint("a .jsonl file has a JSON object on each line"),
        })
    }

    /// The names of the columns, or of the first record's fields.
    fn fields(&self) -> Vec<String> {
        match self.format {
            Format::Text(_) | Format::Tokens => Vec::new(),
            Format::Parquet => parquet_rows::text_columns(&self.path),
            Format::JsonLines(compression) => json_lines::first_fields(&self.path, compression),
        }
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A number from a digest.
pub(super) fn number(digest: &[u8]) -> u64 {
    digest
        .iter()
        .take(8)
        .fold(0, |number, &byte| number << 8 | u64::from(byte))
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

    fn names(path: PathBuf, extensions: &[&str]) -> Result<Vec<String>> {
        let config = TrainConfig {
            extensions: extensions
                .iter()
                .map(|&extension| extension.to_owned())
                .collect(),
            ..TrainConfig::default()
        };
        let found = find("data", &[path], &config)?;
        Ok(found.into_iter().map(|file| file.name).collect())
    }

    #[test]
    fn hidden_files_other_extensions_and_empty_files_do_not_count() {
        let folder = folder(&["a.rs", "b.rs", "c.txt", ".hidden/d.rs", ".e.rs", "f/g.rs"]);
        std::fs::write(folder.path().join("empty.rs"), "").expect("written");
        let found = names(folder.path().to_owned(), &["rs"]).expect("found");
        assert_eq!(found, ["a.rs", "b.rs", "f/g.rs"]);
        let found = names(folder.path().join("a.rs"), &["py"]).expect("found");
        assert_eq!(found, ["a.rs"]);
    }

    #[test]
    fn a_pattern_gives_names_below_its_plain_part() {
        let folder = folder(&["a/b.rs", "a/c/d.rs", "a/c/e.py", "f.rs", ".g/h.rs"]);
        let found = |pattern: &str| names(folder.path().join(pattern), &["rs"]);
        assert_eq!(
            found("**/*.rs").expect("found"),
            ["a/b.rs", "a/c/d.rs", "f.rs"]
        );
        assert_eq!(found("a/*.rs").expect("found"), ["b.rs"]);
        // A folder that matches is looked through, a file that matches is taken as it is.
        assert_eq!(found("a/c*").expect("found"), ["c/d.rs"]);
        assert_eq!(found("a/c/*.py").expect("found"), ["e.py"]);
        let refused = |pattern: &str| found(pattern).expect_err("refused").to_string();
        assert!(refused("*.md").starts_with("data has no file"));
        assert!(refused("a***").starts_with("data is no pattern"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let folder = folder(&["a.txt"]);
        let refused = |path: PathBuf| names(path, &["rs"]).expect_err("refused").to_string();
        let nothing = refused(folder.path().to_owned());
        assert!(nothing.starts_with("data has no file with the extension rs"));
        assert!(refused("/no/such/folder".into()).starts_with("data is not there"));
    }

    #[test]
    fn records_without_text_are_refused_with_the_fields_there_are() {
        let folder = tempfile::tempdir().expect("a folder");
        let refused = |content: &str| {
            let path = folder.path().join("a.jsonl");
            std::fs::write(&path, content).expect("written");
            names(path, &[]).expect_err("refused")
        };
        let error = refused("{\"text\": \"a\", \"path\": \"b\"}\n");
        assert!(
            error
                .message()
                .starts_with("the records have no text \"content\"")
        );
        assert!(error.hint_text().expect("a hint").ends_with("text, path"));
        let error = refused("fn main() {}\n");
        assert!(error.message().contains("not a JSON object"), "{error}");
    }
}
