use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;

use super::token_file;

/// How a file holds its documents. Its name says so, and of token files their beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// The whole file is one text.
    Text(Compression),
    /// Each line is a JSON object with a text in it.
    JsonLines(Compression),
    /// Each row of a Parquet file has a text in a column.
    Parquet,
    /// Token ids that `host data tokenize` wrote.
    Tokens,
}

/// What a file must go through to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Format {
    /// `.parquet` is Parquet. `.jsonl` and `.ndjson` are JSON lines, as is `.json` when it is compressed, which data sets
    /// are and source code is not. Any other name is text. `.gz` and `.zst` may follow.
    pub(crate) fn of(path: &Path) -> Self {
        let name = file_name(path);
        let (name, compression) = split_compression(&name);
        match extension(name) {
            "parquet" if compression == Compression::None => Self::Parquet,
            // Others use this name for text.
            "tokens" if token_file::is_one(path) => Self::Tokens,
            // An archive is not a text, so it is not unpacked.
            "tar" => Self::Text(Compression::None),
            "jsonl" | "ndjson" => Self::JsonLines(compression),
            "json" if compression != Compression::None => Self::JsonLines(compression),
            _ => Self::Text(compression),
        }
    }

    /// Whether a file may hold many documents.
    pub(crate) fn has_records(self) -> bool {
        match self {
            Self::Text(_) | Self::Tokens => false,
            Self::JsonLines(_) | Self::Parquet => true,
        }
    }
}

/// Whether the name ends in one of the extensions, before or behind that of a compression.
pub(crate) fn has_extension(path: &Path, extensions: &[String]) -> bool {
    let name = file_name(path);
    let (inner, _) = split_compression(&name);
    extensions.iter().any(|wanted| {
        let wanted = wanted.trim_start_matches('.');
        let ends = |name: &str| {
            name.strip_suffix(wanted)
                .is_some_and(|stem| stem.ends_with('.'))
        };
        ends(&name) || ends(inner)
    })
}

impl Compression {
    /// The content of the file.
    pub(crate) fn open(self, file: File) -> io::Result<Box<dyn Read + Send>> {
        Ok(match self {
            Self::None => Box::new(file),
            // Of several members behind one another all are read, as gzip does.
            Self::Gzip => Box::new(MultiGzDecoder::new(BufReader::with_capacity(1 << 16, file))),
            Self::Zstd => Box::new(zstd::Decoder::new(file)?),
        })
    }
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().to_ascii_lowercase()
}

fn split_compression(name: &str) -> (&str, Compression) {
    for (suffix, compression) in [
        (".gz", Compression::Gzip),
        (".zst", Compression::Zstd),
        (".zstd", Compression::Zstd),
    ] {
        if let Some(stem) = name.strip_suffix(suffix) {
            return (stem, compression);
        }
    }
    (name, Compression::None)
}

fn extension(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(_, extension)| extension)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_says_the_format() {
        let of = |name: &str| Format::of(Path::new(name));
        assert_eq!(of("a/b.rs"), Format::Text(Compression::None));
        assert_eq!(of("README"), Format::Text(Compression::None));
        assert_eq!(of("a.txt.gz"), Format::Text(Compression::Gzip));
        assert_eq!(of("a.txt.zst"), Format::Text(Compression::Zstd));
        assert_eq!(of("a.jsonl"), Format::JsonLines(Compression::None));
        assert_eq!(of("a.JSONL.GZ"), Format::JsonLines(Compression::Gzip));
        assert_eq!(of("f-0001.json.gz"), Format::JsonLines(Compression::Gzip));
        assert_eq!(of("a.parquet"), Format::Parquet);
        assert_eq!(of("package.json"), Format::Text(Compression::None));
        assert_eq!(of("a.tar.gz"), Format::Text(Compression::None));
    }

    #[test]
    fn extensions_are_looked_for_beneath_the_compression() {
        let has =
            |name: &str, extension: &str| has_extension(Path::new(name), &[extension.to_owned()]);
        assert!(has("a.rs", "rs") && has("a.rs", ".rs") && has("a.rs.gz", "rs"));
        assert!(has("a.jsonl.gz", "jsonl.gz") && has("a.jsonl.gz", "gz"));
        assert!(!has("a.rs", "s") && !has("rs", "rs") && !has("a.rs.bak", "rs"));
    }
}
