use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use glob::Pattern;
use host_core::{Error, ErrorKind, Result};

use super::exclude::Exclude;
use super::format::{Compression, Format, has_extension};
use super::json_lines;
use super::left_out::{Missing, Reason};
use super::parquet_rows;
use super::reader::Reader;
use super::walk::{Entry, Walk};
use crate::TrainConfig;

/// A file with documents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SourceFile {
    pub(crate) path: PathBuf,
    /// The path relative to the given folder. It stays the same when that folder is moved.
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) format: Format,
    /// The field or column that contains a record's text.
    pub(crate) column: Arc<str>,
    pub(crate) part: Part,
}

/// The part of a file that is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    All,
    /// Everything except the held-out part.
    Train(HeldOut),
    /// The held-out part.
    Valid(HeldOut),
}

/// The part of a file that is held out for evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeldOut {
    /// One record in this many, chosen by the hashes of the records' texts.
    OneIn(u64),
    /// The records whose text has this hash.
    Hash(u64),
    /// The end of a text, from this byte on.
    From(u64),
}

/// The files found, and messages about what could not be read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    pub(crate) files: Vec<SourceFile>,
    /// Messages about folders and links that cannot be read.
    pub(crate) notices: Vec<String>,
}

/// Before training starts, at most this number of a file's records are read to find one that has a text.
const PATIENCE: usize = 10_000;
/// Files of at most this number of bytes are read to check whether they have content. Such a small file can
/// be an empty compressed text, or have only blank lines.
const SMALL: u64 = 1 << 10;

/// Finds the files of some paths and returns each once, sorted by name. A folder is searched, with its
/// subfolders, for files that have one of the extensions. Hidden and excluded files are left out. Links are
/// followed. A path that does not exist can be a pattern (`**/*.rs`); folders that match it are searched like
/// given folders. Leading folders of the path that exist are taken literally, even if their names contain
/// pattern characters.
///
/// # Errors
/// Returns an error if a path does not exist, nothing is found, a file of records uses an unsupported codec,
/// or the first records have no text.
pub(crate) fn find(what: &str, paths: &[PathBuf], config: &TrainConfig) -> Result<Found> {
    let mut search = Search {
        what,
        extensions: &config.extensions,
        exclude: Exclude::new(&config.exclude)?,
        column: config.text_column.as_str().into(),
        walk: Walk::default(),
        met: Vec::new(),
    };
    for path in paths {
        match fs::metadata(path) {
            Ok(_) => search.path(path, path)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => search.pattern(path)?,
            Err(error) => return Err(Error::io("read", path, &error)),
        }
    }
    let notices = search.notices();
    let mut files = Vec::new();
    for file in search.each_once() {
        if file.has_content()? {
            files.push(file);
        }
    }
    if files.is_empty() {
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
            ErrorKind::Config,
            format!("{what} has no non-empty file{with}: {}", paths.join(", ")),
        )
        .hint("name another folder, or other extensions: --extensions rs,toml"));
    }
    for file in files.iter().filter(|file| file.format.has_records()) {
        if file.has_text()? {
            break;
        }
    }
    Ok(Found { files, notices })
}

struct Search<'a> {
    what: &'a str,
    extensions: &'a [String],
    exclude: Exclude,
    column: Arc<str>,
    walk: Walk,
    met: Vec<Met>,
}

/// A file, with its canonical path.
struct Met {
    file: SourceFile,
    real: PathBuf,
    is_link: bool,
}

impl Search<'_> {
    /// Adds an existing file, or the files of an existing folder. A file's name is its path below `base`.
    fn path(&mut self, path: &Path, base: &Path) -> Result<()> {
        let io = |error| Error::io("read", path, &error);
        let metadata = fs::metadata(path).map_err(io)?;
        if !metadata.is_dir() {
            if metadata.is_file() && !self.exclude.has(below(path, base)) {
                self.meet(
                    Entry {
                        path: path.to_owned(),
                        real: fs::canonicalize(path).map_err(io)?,
                        bytes: metadata.len(),
                        is_folder: false,
                        is_link: fs::symlink_metadata(path).is_ok_and(|link| link.is_symlink()),
                    },
                    base,
                );
            }
            return Ok(());
        }
        let exclude = &self.exclude;
        let wants = |path: &Path| !is_hidden(path) && !exclude.has(below(path, base));
        let mut entries = Vec::new();
        self.walk
            .folder(path, &wants, &mut |entry| entries.push(entry))
            .map_err(io)?;
        for entry in entries {
            let wanted = self.extensions.is_empty() || has_extension(&entry.path, self.extensions);
            if wanted && !entry.is_folder {
                self.meet(entry, base);
            }
        }
        Ok(())
    }

    fn pattern(&mut self, path: &Path) -> Result<()> {
        let what = self.what;
        let absent = || {
            Error::new(ErrorKind::Config, format!("{what} does not exist: {}", path.display()))
                .hint("check the path: on the command line, it is relative to the current folder; in a configuration file, it is relative to the folder of that file")
        };
        // Existing folders are taken literally, as their names can contain pattern characters.
        let mut base = PathBuf::new();
        let whole = std::path::absolute(path).map_err(|error| Error::io("find", path, &error))?;
        let mut parts = whole.components().peekable();
        while let Some(part) = parts.next_if(|part| base.join(part).is_dir()) {
            base.push(part);
        }
        let parts: Vec<&str> = parts
            .map(|part| part.as_os_str().to_str())
            .collect::<Option<_>>()
            .ok_or_else(absent)?;
        if !parts.iter().any(|part| part.contains(['*', '?', '['])) {
            return Err(absent());
        }
        let parse = |pattern: &str| {
            Pattern::new(pattern).map_err(|error| {
                let message = format!("invalid pattern in {what}: {error}: {}", path.display());
                Error::new(ErrorKind::Config, message).hint("for example: --data 'src/**/*.rs'")
            })
        };
        let whole = parse(&parts.join("/"))?;
        let names_hidden = parts.iter().any(|part| part.starts_with('.'));
        let parts: Vec<Pattern> = parts.into_iter().map(parse).collect::<Result<_>>()?;
        let options = glob::MatchOptions {
            require_literal_leading_dot: true,
            require_literal_separator: true,
            ..glob::MatchOptions::new()
        };
        let exclude = &self.exclude;
        let wants = |path: &Path| {
            let rest = below(path, &base);
            (names_hidden || !is_hidden(path))
                && may_match(&parts, rest, options)
                && !exclude.has(rest)
        };
        let fits = |path: &Path| whole.matches_path_with(below(path, &base), options);
        // This walk has its own list of visited folders, because the code below walks each matching folder
        // again, to find all its files.
        let mut walk = Walk::default();
        let mut met = Vec::new();
        walk.folder(&base, &wants, &mut |entry| {
            if fits(&entry.path) {
                met.push(entry);
            }
        })
        .map_err(|error| Error::io("read", &base, &error))?;
        walk.dangling.retain(|path| fits(path));
        self.walk.unreadable.append(&mut walk.unreadable);
        self.walk.dangling.append(&mut walk.dangling);
        for entry in met {
            if !entry.is_folder {
                self.meet(entry, &base);
            } else if fs::read_dir(&entry.path).is_ok() {
                // If the folder cannot be read, it is already listed as unreadable.
                self.path(&entry.path, &base)?;
            }
        }
        Ok(())
    }

    fn meet(&mut self, entry: Entry, base: &Path) {
        let name = match below(&entry.path, base) {
            name if name.as_os_str().is_empty() => entry.path.file_name().unwrap_or_default(),
            name => name.as_os_str(),
        };
        self.met.push(Met {
            file: SourceFile {
                name: name.to_string_lossy().into_owned(),
                bytes: entry.bytes,
                format: Format::of(&entry.path),
                column: self.column.clone(),
                part: Part::All,
                path: entry.path,
            },
            real: entry.real,
            is_link: entry.is_link,
        });
    }

    /// Returns the files sorted by name. If a file was found under several names, keeps the name that shows
    /// the file's format. For a file in a cache, this can be the name of a link to it. If several names show
    /// the format, or if none does, keeps the name that is not a link.
    fn each_once(self) -> Vec<SourceFile> {
        let mut met = self.met;
        met.sort_by(|a, b| {
            let key = |met: &Met| {
                (
                    met.file.format == Format::Text(Compression::None),
                    met.is_link,
                )
            };
            let name = |met: &Met| (met.file.name.clone(), met.file.path.clone());
            key(a).cmp(&key(b)).then_with(|| name(a).cmp(&name(b)))
        });
        let mut seen = HashSet::new();
        met.retain(|met| seen.insert(met.real.clone()));
        let mut files: Vec<_> = met.into_iter().map(|met| met.file).collect();
        files.sort_by(|a, b| (&a.name, &a.path).cmp(&(&b.name, &b.path)));
        files
    }

    fn notices(&self) -> Vec<String> {
        let what = match self.what {
            "valid_data" => "evaluation data",
            _ => "data",
        };
        let mut notices = Vec::new();
        if let Some((first, error)) = self.walk.unreadable.first() {
            let count = match self.walk.unreadable.len() {
                1 => "1 folder".to_owned(),
                count => format!("{count} folders"),
            };
            let first = first.display();
            notices.push(format!(
                "{count} of the {what} cannot be read, so the files inside are left out (first: {first}: {error})"
            ));
        }
        if let Some(first) = self.walk.dangling.first() {
            let (links, lead) = match self.walk.dangling.len() {
                1 => ("1 symbolic link".to_owned(), "is"),
                count => (format!("{count} symbolic links"), "are"),
            };
            let first = first.display();
            notices.push(format!(
                "{links} in the {what} {lead} broken (first: {first})"
            ));
        }
        notices
    }
}

/// Returns the path relative to the folder. If the path is not below the folder, returns the whole path.
fn below<'a>(path: &'a Path, folder: &Path) -> &'a Path {
    path.strip_prefix(folder).unwrap_or(path)
}

fn is_hidden(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.as_encoded_bytes().starts_with(b".")
}

/// Whether this path, or a path below it, can match the pattern's parts.
fn may_match(parts: &[Pattern], path: &Path, options: glob::MatchOptions) -> bool {
    let mut parts = parts.iter();
    for name in path.components() {
        match parts.next() {
            Some(part) if part.as_str() == "**" => return true,
            Some(part) if part.matches_with(&name.as_os_str().to_string_lossy(), options) => {}
            _ => return false,
        }
    }
    true
}

impl SourceFile {
    /// Returns this file, limited to `part`.
    pub(super) fn with(&self, part: Part) -> Self {
        Self {
            part,
            ..self.clone()
        }
    }

    /// Whether the file has content, judged by its beginning or its footer.
    ///
    /// # Errors
    /// Returns an error for a file of records in an unsupported codec: all its records would be missing.
    fn has_content(&self) -> Result<bool> {
        if self.bytes == 0 {
            return Ok(false);
        }
        // Text files are many and small, so they are opened only when they are read.
        let is_plain = self.format == Format::Text(Compression::None);
        if is_plain || !self.format.has_records() && self.bytes > SMALL {
            return Ok(true);
        }
        match Reader::open(self) {
            Err(missing) if missing.reason == Reason::Codec && self.format.has_records() => {
                Err(self.refused(&missing))
            }
            Err(_) => Ok(true),
            Ok(reader) if self.format == Format::Parquet => Ok(!reader.has_no_row()),
            Ok(mut reader) if self.bytes <= SMALL => Ok(match reader.next() {
                None => false,
                Some(Err(missing)) if !self.format.has_records() => missing.reason != Reason::Empty,
                Some(_) => true,
            }),
            Ok(_) => Ok(true),
        }
    }

    /// Whether one of the first records has a text. When the data is read, records without a text are left
    /// out.
    ///
    /// # Errors
    /// Returns an error if every one of the first records has a fault. A null or empty text is not a fault.
    fn has_text(&self) -> Result<bool> {
        let mut reader = match Reader::open(self) {
            Ok(reader) => reader,
            Err(missing) if missing.reason == Reason::Unreadable => return Ok(false),
            Err(missing) => return Err(self.refused(&missing)),
        };
        let mut at_fault = None;
        let mut blank = false;
        for _ in 0..PATIENCE {
            match reader.next() {
                None => break,
                Some(Ok(_)) => return Ok(true),
                // Apart from its null or empty text, the record is valid.
                Some(Err(missing)) if [Reason::Null, Reason::Empty].contains(&missing.reason) => {
                    blank = true;
                }
                Some(Err(missing)) => {
                    at_fault.get_or_insert(missing);
                }
            }
        }
        match at_fault {
            Some(missing) if !blank => Err(self.refused(&missing)),
            _ => Ok(false),
        }
    }

    fn refused(&self, missing: &Missing) -> Error {
        let place = missing.place(&self.path);
        let error = |why: &str| Error::new(ErrorKind::Config, format!("{why}: {place}"));
        let unusable = || {
            error(&format!(
                "none of the first records is usable: {}",
                missing.words()
            ))
        };
        match missing.reason {
            Reason::NoText => {
                let why = format!("the records have no text column {:?}", &*self.column);
                let fields = self.fields();
                if fields.is_empty() {
                    error(&why)
                } else {
                    let fields = fields.join(", ");
                    error(&why).hint(format!("choose one of these with --text-column: {fields}"))
                }
            }
            Reason::Codec => error(&format!("the data is {}", missing.words())).hint(
                "store it uncompressed or compressed with gzip or Zstandard, or skip such files with --exclude",
            ),
            Reason::Utf16 => unusable().hint("convert it: iconv -f UTF-16 -t UTF-8 FILE"),
            Reason::NotJson | Reason::NotUtf8 => {
                unusable().hint("store the records as UTF-8 text, with one JSON object on each line")
            }
            _ => unusable().hint("restore the file, or skip it with --exclude PATTERN"),
        }
    }

    /// Returns the names of the file's text columns (Parquet) or of its first record's fields (JSON lines).
    fn fields(&self) -> Vec<String> {
        match self.format {
            Format::Text(_) | Format::Tokens | Format::Unread { .. } => Vec::new(),
            Format::Parquet => parquet_rows::text_columns(&self.path),
            Format::JsonLines(compression) => json_lines::first_fields(&self.path, compression),
        }
    }
}

/// Converts the first eight bytes of a digest to a number.
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
        Ok(found.files.into_iter().map(|file| file.name).collect())
    }

    #[test]
    fn hidden_files_other_extensions_and_empty_files_are_ignored() {
        let folder = folder(&["a.rs", "b.rs", "c.txt", ".hidden/d.rs", ".e.rs", "f/g.rs"]);
        std::fs::write(folder.path().join("empty.rs"), "").expect("written");
        let found = names(folder.path().to_owned(), &["rs"]).expect("found");
        assert_eq!(found, ["a.rs", "b.rs", "f/g.rs"]);
        let found = names(folder.path().join("a.rs"), &["py"]).expect("found");
        assert_eq!(found, ["a.rs"]);
    }

    #[test]
    fn names_are_relative_to_the_literal_part_of_a_pattern() {
        let folder = folder(&["a/b.rs", "a/c/d.rs", "a/c/e.py", "f.rs", ".g/h.rs"]);
        let found = |pattern: &str| names(folder.path().join(pattern), &["rs"]);
        assert_eq!(
            found("**/*.rs").expect("found"),
            ["a/b.rs", "a/c/d.rs", "f.rs"]
        );
        assert_eq!(found("a/*.rs").expect("found"), ["b.rs"]);
        // A matching folder is searched; a matching file is used regardless of its extension.
        assert_eq!(found("a/c*").expect("found"), ["c/d.rs"]);
        assert_eq!(found("a/c/*.py").expect("found"), ["e.py"]);
        let refused = |pattern: &str| found(pattern).expect_err("refused").to_string();
        assert!(refused("*.md").starts_with("data has no non-empty file"));
        assert!(refused("a***").starts_with("invalid pattern in data"));
    }

    #[test]
    fn links_are_followed_and_each_file_counts_once() {
        use std::os::unix::fs::symlink;
        let (data, elsewhere) = (folder(&["a.rs", "b/c.rs"]), folder(&["d.rs", "e/f.rs"]));
        let (top, other) = (data.path(), elsewhere.path());
        let link = |to: &Path, from: &str| symlink(to, top.join(from)).expect("linked");
        link(&other.join("d.rs"), "d-link.rs");
        link(&other.join("e"), "e-link");
        // A second link to the same folder, a link to a file that is found anyway, and loops.
        link(&other.join("e"), "b/again");
        link(&top.join("a.rs"), "0.rs");
        link(top, "b/loop");
        link(Path::new("self"), "self");
        link(&other.join("gone.rs"), "gone.rs");
        std::fs::hard_link(top.join("a.rs"), top.join("hard.rs")).expect("linked");
        let expected = ["a.rs", "b/c.rs", "d-link.rs", "e-link/f.rs", "hard.rs"];
        let found = names(top.to_owned(), &["rs"]).expect("found");
        assert_eq!(found, expected);
        let found = names(top.join("**/*.rs"), &[]).expect("found");
        assert_eq!(found, expected);
        let config = TrainConfig::default();
        let found = find("data", &[top.to_owned()], &config).expect("found");
        assert_eq!(found.notices.len(), 1);
        let notice = &found.notices[0];
        assert!(
            notice.starts_with("2 symbolic links in the data are broken (first: "),
            "{notice}"
        );
        // The link's name shows the format, but the file's own name does not. Some caches contain such files.
        let cache = folder(&["blobs/0a1b"]);
        std::fs::create_dir(cache.path().join("main")).expect("made");
        let blob = cache.path().join("blobs/0a1b");
        std::fs::write(&blob, "{\"content\": \"a\"}\n").expect("written");
        symlink(&blob, cache.path().join("main/x.jsonl")).expect("linked");
        assert_eq!(
            names(cache.path().join("main"), &[]).expect("found"),
            ["x.jsonl"]
        );
        assert_eq!(
            names(cache.path().to_owned(), &[]).expect("found"),
            ["main/x.jsonl"]
        );
    }

    #[test]
    fn folders_linked_many_times_are_searched_once() {
        use std::os::unix::fs::symlink;
        let data = folder(&["0/a.rs"]);
        // Creates links that result in 2^40 different paths.
        for n in 0..40 {
            let (here, next) = (
                data.path().join(n.to_string()),
                data.path().join((n + 1).to_string()),
            );
            std::fs::create_dir_all(&next).expect("made");
            symlink(&next, here.join("left")).expect("linked");
            symlink(&next, here.join("right")).expect("linked");
        }
        std::fs::write(data.path().join("40/b.rs"), "b").expect("written");
        let found = names(data.path().join("0"), &[]).expect("found");
        assert_eq!(found.len(), 2);
        let found = names(data.path().join("0/**/*.rs"), &[]).expect("found");
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn existing_folders_are_not_patterns() {
        let folder = folder(&["p[1]/a.rs", "p[1]/b/c.rs", "p1/d.rs", "q*/e.rs", "qq/f.rs"]);
        let found = |pattern: &str| names(folder.path().join(pattern), &["rs"]);
        assert_eq!(found("p[1]/*.rs").expect("found"), ["a.rs"]);
        assert_eq!(found("p[1]/**/*.rs").expect("found"), ["a.rs", "b/c.rs"]);
        assert_eq!(found("p[1]").expect("found"), ["a.rs", "b/c.rs"]);
        assert_eq!(found("q*/*.rs").expect("found"), ["e.rs"]);
        let missing = found("p[1]/nothing").expect_err("refused").to_string();
        assert!(missing.starts_with("data does not exist"), "{missing}");
        assert_eq!(found("p[0-9]/*.rs").expect("found"), ["p1/d.rs"]);
    }

    #[test]
    fn excluded_files_and_folders_are_skipped() {
        let folder = folder(&[
            "a.rs",
            "a.min.rs",
            "target/b.rs",
            "c/target/d.rs",
            "docs/e.rs",
        ]);
        let config = |exclude: &[&str]| TrainConfig {
            exclude: exclude.iter().map(|&pattern| pattern.to_owned()).collect(),
            ..TrainConfig::default()
        };
        let found = |path: &Path, exclude: &[&str]| {
            let found = find("data", &[path.to_owned()], &config(exclude)).expect("found");
            found
                .files
                .into_iter()
                .map(|file| file.name)
                .collect::<Vec<_>>()
        };
        let exclude = ["*.min.rs", "target", "docs/*"];
        assert_eq!(found(folder.path(), &exclude), ["a.rs"]);
        assert_eq!(found(&folder.path().join("**/*.rs"), &exclude), ["a.rs"]);
        let error = find("data", &[folder.path().to_owned()], &config(&["*"]));
        let error = error.expect_err("refused").to_string();
        assert!(error.starts_with("data has no non-empty file"), "{error}");
    }

    #[test]
    fn a_folder_that_cannot_be_read_is_left_out_and_named() {
        let folder = folder(&["a.rs"]);
        // Even root cannot open a path of more than 4096 bytes. The path is assembled from two shorter paths.
        let elsewhere = tempfile::tempdir().expect("a folder");
        let name = "d".repeat(200);
        let chain = |top: &Path| (0..11).fold(top.to_owned(), |path, _| path.join(&name));
        let (upper, lower) = (chain(folder.path()), chain(elsewhere.path()));
        std::fs::create_dir_all(&upper).expect("made");
        std::fs::create_dir_all(&lower).expect("made");
        std::fs::write(lower.join("b.rs"), "b").expect("written");
        std::fs::rename(elsewhere.path().join(&name), upper.join(&name)).expect("moved");
        let config = TrainConfig::default();
        let found = find("data", &[folder.path().to_owned()], &config).expect("found");
        assert_eq!(found.files.len(), 1);
        let notice = &found.notices[0];
        assert!(
            notice.starts_with(
                "1 folder of the data cannot be read, so the files inside are left out (first: "
            ),
            "{notice}"
        );
        assert!(notice.contains("File name too long"), "{notice}");
    }

    #[test]
    fn an_empty_shard_is_ignored_in_every_format() {
        use crate::data::parquet_rows::tests::parquet;
        use parquet::basic::Compression::{SNAPPY, ZSTD};
        use std::io::Write;
        let gzip = |bytes: &[u8]| {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(bytes).expect("written");
            gzip.finish().expect("finished")
        };
        let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).expect("compressed");
        let empty: Vec<(&str, Vec<u8>)> = vec![
            ("0.jsonl", vec![]),
            ("0.jsonl", b"\n \r\n".to_vec()),
            ("0.jsonl", "\u{feff}".into()),
            ("0.ndjson.gz", gzip(b"")),
            ("0.json.gz", gzip(b"\n")),
            ("0.jsonl.gz", [gzip(b""), gzip(b"")].concat()),
            ("0.jsonl.gz", vec![]),
            ("0.jsonl.zst", zstd(b"")),
            ("0.jsonl.zst", vec![0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0]),
            ("0.parquet", parquet(&[], SNAPPY)),
            ("0.parquet", parquet(&[], ZSTD(Default::default()))),
            ("0.parquet", vec![]),
            ("0.txt", vec![]),
            ("0.txt.gz", gzip(b"")),
            ("0.txt.zst", zstd(b"")),
        ];
        let good = [
            ("1.jsonl", b"{\"content\": \"a\"}\n".to_vec()),
            ("1.parquet", parquet(&[Some(b"a")], SNAPPY)),
        ];
        for (name, bytes) in &empty {
            for (good_name, good) in &good {
                let folder = tempfile::tempdir().expect("a folder");
                std::fs::write(folder.path().join(name), bytes).expect("written");
                std::fs::write(folder.path().join(good_name), good).expect("written");
                let found = names(folder.path().to_owned(), &[]);
                assert_eq!(found.expect("found"), [*good_name], "{name} {bytes:?}");
            }
            let folder = tempfile::tempdir().expect("a folder");
            std::fs::write(folder.path().join(name), bytes).expect("written");
            let error = names(folder.path().to_owned(), &[]).expect_err("refused");
            assert!(error.message().starts_with("data has no non-empty file"));
        }
    }

    #[test]
    fn an_unsupported_codec_of_records_is_an_error_with_codec_and_file() {
        let good = "{\"content\": \"a\"}\n";
        for (name, bytes, codec) in [
            ("b.jsonl.xz", &b"\xfd7zXZ\0"[..], "xz"),
            ("b.json.bz2", b"BZh91AY&SY", "bzip2"),
            ("b.parquet.gz", b"any", "Parquet inside a compressed file"),
            // Files with a misleading name.
            ("b.jsonl", b"\x04\x22\x4d\x18\0", "LZ4"),
            ("b.jsonl.gz", b"\xfd7zXZ\0", "xz"),
            ("b.parquet", b"PAR1 PARE", "encrypted Parquet"),
        ] {
            let folder = tempfile::tempdir().expect("a folder");
            std::fs::write(folder.path().join("a.jsonl"), good).expect("written");
            std::fs::write(folder.path().join(name), bytes).expect("written");
            let error = names(folder.path().to_owned(), &[]).expect_err("refused");
            let expected = format!(
                "the data is in an unsupported codec: {codec}: {}",
                folder.path().join(name).display()
            );
            assert_eq!(error.message(), expected);
            assert!(error.hint_text().expect("a hint").contains("--exclude"));
        }
        // A text file in an unsupported codec is left out only when it is read.
        let folder = folder(&["a.txt", "b.txt.xz"]);
        assert_eq!(
            names(folder.path().to_owned(), &[]).expect("found").len(),
            2
        );
    }

    #[test]
    fn a_column_may_begin_with_null() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.jsonl");
        for record in [
            "{\"content\": null}\n",
            "{\"other\": 1}\n",
            "{\"content\": \"\"}\n",
        ] {
            let lines = record.repeat(150) + "{\"content\": \"a\"}\n";
            std::fs::write(&path, lines).expect("written");
            names(path.clone(), &[]).expect("found");
        }
        // A shard that contains only nulls does not prevent the next shards from being read.
        std::fs::write(&path, "{\"content\": null}\n".repeat(20_000)).expect("written");
        names(path, &[]).expect("found");
    }

    #[test]
    fn missing_files_are_errors() {
        let folder = folder(&["a.txt"]);
        let refused = |path: PathBuf| names(path, &["rs"]).expect_err("refused").to_string();
        let nothing = refused(folder.path().to_owned());
        assert!(nothing.starts_with("data has no non-empty file with the extension rs"));
        assert!(refused("/no/such/folder".into()).starts_with("data does not exist"));
    }

    #[test]
    fn records_without_text_are_an_error_that_lists_their_fields() {
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
                .starts_with("the records have no text column \"content\"")
        );
        assert!(error.hint_text().expect("a hint").ends_with("text, path"));
        let error = refused("fn main() {}\n");
        let (why, place) = error.message().rsplit_once(": ").expect("a place");
        assert!(place.ends_with("a.jsonl:1"), "{error}");
        assert_eq!(
            why,
            "none of the first records is usable: not a JSON object: expected ident in column 2"
        );
    }
}
