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
    /// The path below the folder that was given, which does not change when the folder moves.
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) format: Format,
    /// The field or column of a record that has its text.
    pub(crate) column: Arc<str>,
    pub(crate) part: Part,
}

/// Which part of a file counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    All,
    /// All but what is held out.
    Train(HeldOut),
    /// What is held out.
    Valid(HeldOut),
}

/// What of a file is held out for evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeldOut {
    /// One record in this many, by the hashes of their texts.
    OneIn(u64),
    /// The records whose text has this hash.
    Hash(u64),
    /// A text from this byte on.
    From(u64),
}

/// Files that were found, and what was not.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    pub(crate) files: Vec<SourceFile>,
    /// What could not be looked through, in sentences.
    pub(crate) notices: Vec<String>,
}

/// Records of a file that are looked at before the start, until one has a text.
const PATIENCE: usize = 10_000;
/// Bytes of a file that may be an empty text or no record in a compression or with blank lines.
const SMALL: u64 = 1 << 10;

/// Finds the files of some paths, in the order of their names, each once. A folder gives all files below
/// it with one of the extensions, but for hidden ones and what is excluded; links are followed. A path
/// that is not there may be a pattern (`**/*.rs`), whose folders count as if they were given by
/// themselves. The leading part that is there as it is written is not a pattern.
///
/// # Errors
/// A path that is not there, nothing found, a file of records in a codec that is not read, or first
/// records without a text.
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
            format!(
                "{what} has no file{with} that is not empty: {}",
                paths.join(", ")
            ),
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

/// A file, and what it really is.
struct Met {
    file: SourceFile,
    real: PathBuf,
    is_link: bool,
}

impl Search<'_> {
    /// A file or a folder that is there. The name of a file is its path below `base`.
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
            Error::new(ErrorKind::Config, format!("{what} is not there: {}", path.display()))
                .hint("check the path; it is relative to the current folder on the command line, to the file in a configuration file")
        };
        // A folder's name may have the characters of a pattern, too.
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
                let message = format!("{what} is not a pattern: {error}: {}", path.display());
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
        // A walk of its own: a folder that fits is looked through afterwards, whatever fits below it.
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
                // Else it is among the unreadable ones.
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

    /// The files in the order of their names. One that was met under several names has the one that says
    /// its format, as a link to a nameless file of a cache does, else the one that is no link.
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
                "{count} of the {what} cannot be read, and the files in it are left out (first: {first}: {error})"
            ));
        }
        if let Some(first) = self.walk.dangling.first() {
            let (links, lead) = match self.walk.dangling.len() {
                1 => ("1 link".to_owned(), "leads"),
                count => (format!("{count} links"), "lead"),
            };
            let first = first.display();
            notices.push(format!(
                "{links} of the {what} {lead} to no file (first: {first})"
            ));
        }
        notices
    }
}

/// The path below the folder; the whole path if it is not below it.
fn below<'a>(path: &'a Path, folder: &Path) -> &'a Path {
    path.strip_prefix(folder).unwrap_or(path)
}

fn is_hidden(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.as_encoded_bytes().starts_with(b".")
}

/// Whether this path, or one below it, may match the pattern's parts.
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
    /// This part of the file.
    pub(super) fn with(&self, part: Part) -> Self {
        Self {
            part,
            ..self.clone()
        }
    }

    /// Whether the file has something in it, as far as its beginning or its footer shows.
    ///
    /// # Errors
    /// A file of records in a codec that is not read: all of its records would be missing.
    fn has_content(&self) -> Result<bool> {
        if self.bytes == 0 {
            return Ok(false);
        }
        // Files of text are as many as they are small, so they are opened only when their turn comes.
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

    /// Whether there is a text among the first records. Later ones may lack it, and are left out.
    ///
    /// # Errors
    /// Records that are there and have no text.
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
                // Such a record is as it should be, but for the text.
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
                "none of the first records can be used: {}",
                missing.words()
            ))
        };
        match missing.reason {
            Reason::NoText => {
                let why = format!("the records have no text {:?}", &*self.column);
                let fields = self.fields();
                if fields.is_empty() {
                    error(&why)
                } else {
                    let fields = fields.join(", ");
                    error(&why).hint(format!("name one of them by --text-column: {fields}"))
                }
            }
            Reason::Codec => error(&format!("the data is {}", missing.words())).hint(
                "write it again uncompressed, or with gzip or Zstandard; --exclude leaves such files out",
            ),
            Reason::Utf16 => unusable().hint("convert it: iconv -f UTF-16 -t UTF-8 FILE"),
            Reason::NotJson | Reason::NotUtf8 => {
                unusable().hint("a .jsonl file has a JSON object on each line")
            }
            _ => unusable().hint("bring the file again, or leave it out: --exclude PATTERN"),
        }
    }

    /// The names of the columns, or of the first record's fields.
    fn fields(&self) -> Vec<String> {
        match self.format {
            Format::Text(_) | Format::Tokens | Format::Unread { .. } => Vec::new(),
            Format::Parquet => parquet_rows::text_columns(&self.path),
            Format::JsonLines(compression) => json_lines::first_fields(&self.path, compression),
        }
    }
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
        Ok(found.files.into_iter().map(|file| file.name).collect())
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
        assert!(refused("a***").starts_with("data is not a pattern"));
    }

    #[test]
    fn links_are_followed_and_each_file_counts_once() {
        use std::os::unix::fs::symlink;
        let (data, elsewhere) = (folder(&["a.rs", "b/c.rs"]), folder(&["d.rs", "e/f.rs"]));
        let (top, other) = (data.path(), elsewhere.path());
        let link = |to: &Path, from: &str| symlink(to, top.join(from)).expect("linked");
        link(&other.join("d.rs"), "d-link.rs");
        link(&other.join("e"), "e-link");
        // Another name of the same folder, a file that is here already, and loops.
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
            notice.starts_with("2 links of the data lead to no file (first: "),
            "{notice}"
        );
        // Links alone, as in a cache, where the file itself has no name that says its format.
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
    fn folders_that_link_to_one_another_many_times_are_looked_through_once() {
        use std::os::unix::fs::symlink;
        let data = folder(&["0/a.rs"]);
        // Two to the power of forty paths.
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
    fn only_what_the_user_wrote_is_a_pattern() {
        let folder = folder(&["p[1]/a.rs", "p[1]/b/c.rs", "p1/d.rs", "q*/e.rs", "qq/f.rs"]);
        let found = |pattern: &str| names(folder.path().join(pattern), &["rs"]);
        assert_eq!(found("p[1]/*.rs").expect("found"), ["a.rs"]);
        assert_eq!(found("p[1]/**/*.rs").expect("found"), ["a.rs", "b/c.rs"]);
        assert_eq!(found("p[1]").expect("found"), ["a.rs", "b/c.rs"]);
        assert_eq!(found("q*/*.rs").expect("found"), ["e.rs"]);
        let missing = found("p[1]/nothing").expect_err("refused").to_string();
        assert!(missing.starts_with("data is not there"), "{missing}");
        assert_eq!(found("p[0-9]/*.rs").expect("found"), ["p1/d.rs"]);
    }

    #[test]
    fn what_is_excluded_is_neither_met_nor_entered() {
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
        assert!(
            error.starts_with("data has no file that is not empty"),
            "{error}"
        );
    }

    #[test]
    fn a_folder_that_cannot_be_read_is_left_out_and_named() {
        let folder = folder(&["a.rs"]);
        // Even a superuser cannot open a path of more than 4096 bytes. It is put together from two.
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
                "1 folder of the data cannot be read, and the files in it are left out (first: "
            ),
            "{notice}"
        );
        assert!(notice.contains("File name too long"), "{notice}");
    }

    #[test]
    fn an_empty_shard_is_passed_over_in_every_format() {
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
            assert!(
                error
                    .message()
                    .starts_with("data has no file that is not empty")
            );
        }
    }

    #[test]
    fn records_in_a_codec_that_is_not_read_are_refused_by_codec_and_file() {
        let good = "{\"content\": \"a\"}\n";
        for (name, bytes, codec) in [
            ("b.jsonl.xz", &b"\xfd7zXZ\0"[..], "xz"),
            ("b.json.bz2", b"BZh91AY&SY", "bzip2"),
            (
                "b.parquet.gz",
                b"any",
                "Parquet that is compressed as a whole",
            ),
            // Under another name, and not the first file.
            ("b.jsonl", b"\x04\x22\x4d\x18\0", "LZ4"),
            ("b.jsonl.gz", b"\xfd7zXZ\0", "xz"),
            ("b.parquet", b"PAR1 PARE", "encrypted Parquet"),
        ] {
            let folder = tempfile::tempdir().expect("a folder");
            std::fs::write(folder.path().join("a.jsonl"), good).expect("written");
            std::fs::write(folder.path().join(name), bytes).expect("written");
            let error = names(folder.path().to_owned(), &[]).expect_err("refused");
            let expected = format!(
                "the data is in a codec that this program does not read: {codec}: {}",
                folder.path().join(name).display()
            );
            assert_eq!(error.message(), expected);
            assert!(error.hint_text().expect("a hint").contains("--exclude"));
        }
        // A text beside others is left out when its turn comes.
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
        // A shard of nulls alone does not stop those behind it.
        std::fs::write(&path, "{\"content\": null}\n".repeat(20_000)).expect("written");
        names(path, &[]).expect("found");
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
        let (why, place) = error.message().rsplit_once(": ").expect("a place");
        assert!(place.ends_with("a.jsonl:1"), "{error}");
        assert_eq!(
            why,
            "none of the first records can be used: not a JSON object: expected ident in column 2"
        );
    }
}
