use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use flate2::bufread::GzDecoder;

use super::json_lines;
use super::token_file;

/// The format of a file. It is determined by the file's name and, for token files and `.json`, also by the
/// file's beginning.
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
    /// Text or records in an unsupported codec.
    Unread { codec: &'static str, records: bool },
}

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// Unsupported codecs, by file name suffix.
const UNREAD: [(&str, &str); 10] = [
    (".xz", "xz"),
    (".lzma", "LZMA"),
    (".bz2", "bzip2"),
    (".lz4", "LZ4"),
    (".br", "Brotli"),
    (".lzo", "LZO"),
    (".sz", "Snappy"),
    (".snappy", "Snappy"),
    (".z", "compress"),
    (".zip", "ZIP"),
];

impl Format {
    /// Determines a file's format. `.parquet` is Parquet. `.jsonl` and `.ndjson` are JSON lines. A compressed
    /// `.json` is JSON lines too, because data sets are compressed and source code is not. An uncompressed
    /// `.json` is JSON lines if each of its first two lines is an object. This is never the case in a single
    /// JSON document. Any other name is text. A suffix `.gz` or `.zst` can follow.
    pub(crate) fn of(path: &Path) -> Self {
        let name = file_name(path);
        let (inner, compression) = split_compression(&name);
        match extension(inner) {
            "parquet" if compression == Compression::None => Self::Parquet,
            "parquet" => Self::Unread {
                codec: "Parquet inside a compressed file",
                records: true,
            },
            // Other programs use this extension for text, so the file's beginning is checked.
            "tokens" if token_file::is_one(path) => Self::Tokens,
            // An archive is not a text, so it is not decompressed.
            "tar" => Self::Text(Compression::None),
            "jsonl" | "ndjson" => Self::JsonLines(compression),
            "json" if compression != Compression::None || json_lines::is_lines(path) => {
                Self::JsonLines(compression)
            }
            _ => unread(inner).unwrap_or(Self::Text(compression)),
        }
    }

    /// Returns true if the file consists of records. Each record is a document.
    pub(crate) fn has_records(self) -> bool {
        match self {
            Self::Text(_) | Self::Tokens => false,
            Self::JsonLines(_) | Self::Parquet => true,
            Self::Unread { records, .. } => records,
        }
    }
}

/// Returns the format of a name such as `a.jsonl.xz`. Returns `None` for other names, and for archives.
/// Archives are treated like any other binary file.
fn unread(name: &str) -> Option<Format> {
    let of = |&(suffix, codec): &(&'static str, &'static str)| {
        let inner = extension(name.strip_suffix(suffix)?);
        let records = ["jsonl", "ndjson", "json", "parquet"].contains(&inner);
        let is_text = !inner.is_empty() && inner != "tar" && codec != "ZIP";
        (records || is_text).then_some(Format::Unread { codec, records })
    };
    UNREAD.iter().find_map(of)
}

/// Whether the name has one of the extensions, with or without a compression suffix.
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
    /// Returns the decompressed content of the file. Content that begins like gzip or Zstandard is
    /// decompressed as such, regardless of the file's name.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read. For an unsupported codec the error is `Unsupported` and
    /// names the codec.
    pub(crate) fn open(self, file: File) -> io::Result<Box<dyn Read + Send>> {
        let mut input = BufReader::with_capacity(1 << 16, file);
        let begin = input.fill_buf()?;
        let found = match begin {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A Zstandard frame, or a skippable frame. Files of parallel compressors begin with a skippable
            // frame.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => {
                if let Some(codec) = codec_of(begin) {
                    return Err(unsupported(codec));
                }
                self
            }
        };
        Ok(match found {
            Self::None => Box::new(input),
            Self::Gzip => Box::new(Members(Some(GzDecoder::new(input)))),
            Self::Zstd => {
                let mut frames = zstd::Decoder::with_buffer(input)?;
                // Allows windows of up to 2 GiB, the format's maximum, so that files written with --long are
                // readable.
                frames.window_log_max(31)?;
                Box::new(Frames(frames))
            }
        })
    }
}

/// Returns the codec of a file that begins with these bytes, if it is an unsupported codec.
fn codec_of(begin: &[u8]) -> Option<&'static str> {
    let magic: [(&[u8], &str); 4] = [
        (b"\xfd7zXZ\0", "xz"),
        (b"BZh", "bzip2"),
        (b"\x04\x22\x4d\x18", "LZ4"),
        (b"\xff\x06\0\0sNaPpY", "Snappy"),
    ];
    let found = magic.iter().find(|(magic, _)| begin.starts_with(magic))?;
    // A text can begin with `BZh`. The content is bzip2 only if a second magic number follows after one byte,
    // the block size.
    let is_sure = found.1 != "bzip2" || begin.get(4..7).is_some_and(|next| next == b"1AY");
    is_sure.then_some(found.1)
}

fn unsupported(codec: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, codec)
}

/// Reads the members of a gzip file one after the other. Skips the zero bytes that a tape or a block device
/// adds after a member.
struct Members(Option<GzDecoder<BufReader<File>>>);

impl Read for Members {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.0 {
            let read = member.read(bytes)?;
            if read > 0 || bytes.is_empty() {
                return Ok(read);
            }
            let Some(ended) = self.0.take() else { break };
            let mut input = ended.into_inner();
            loop {
                let ahead = input.fill_buf()?;
                let zeros = ahead.iter().take_while(|&&byte| byte == 0).count();
                let is_last = ahead.is_empty();
                if !is_last && zeros < ahead.len() {
                    input.consume(zeros);
                    self.0 = Some(GzDecoder::new(input));
                    break;
                }
                if is_last {
                    return Ok(0);
                }
                input.consume(zeros);
            }
        }
        Ok(0)
    }
}

/// Reads the frames of a Zstandard file. Its errors name unsupported features.
struct Frames(zstd::Decoder<'static, BufReader<File>>);

impl Read for Frames {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.read(bytes).map_err(|error| {
            // The library reports its reasons only as text.
            let why = error.to_string();
            let lacks = |part: &str| why.contains(part);
            if lacks("Dictionary mismatch") {
                unsupported("Zstandard with a dictionary")
            } else if lacks("Unsupported") || lacks("Version not supported") {
                unsupported(&format!("Zstandard: {why}"))
            } else if lacks("not enough memory") {
                io::Error::new(io::ErrorKind::OutOfMemory, why)
            } else {
                error
            }
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
    use std::io::Write;

    #[test]
    fn the_name_determines_the_format() {
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
        assert_eq!(of("a.tar.xz"), Format::Text(Compression::None));
        assert_eq!(of("a.zip"), Format::Text(Compression::None));
        let unread = |codec, records| Format::Unread { codec, records };
        assert_eq!(of("a.jsonl.xz"), unread("xz", true));
        assert_eq!(of("a.json.BZ2"), unread("bzip2", true));
        assert_eq!(of("a.jsonl.zip"), unread("ZIP", true));
        assert_eq!(of("notes.txt.lz4"), unread("LZ4", false));
        let whole = "Parquet inside a compressed file";
        assert_eq!(of("a.parquet.gz"), unread(whole, true));
    }

    #[test]
    fn json_is_lines_where_each_of_the_first_two_is_an_object() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.json");
        let of = |content: &str| {
            std::fs::write(&path, content).expect("written");
            Format::of(&path)
        };
        let (lines, text) = (
            Format::JsonLines(Compression::None),
            Format::Text(Compression::None),
        );
        assert_eq!(of("{\"a\": 1}\n{\"a\": 2}\n"), lines);
        assert_eq!(of("\u{feff}\n{\"a\": NaN}\r\n\r\n{\"a\": [2]}"), lines);
        assert_eq!(of("{\n  \"a\": 1\n}\n"), text);
        assert_eq!(of("{\"a\": 1}\n"), text);
        assert_eq!(of("[{\"a\": 1},\n{\"a\": 2}]\n"), text);
        assert_eq!(of(""), text);
    }

    #[test]
    fn extensions_match_with_and_without_the_compression() {
        let has =
            |name: &str, extension: &str| has_extension(Path::new(name), &[extension.to_owned()]);
        assert!(has("a.rs", "rs") && has("a.rs", ".rs") && has("a.rs.gz", "rs"));
        assert!(has("a.jsonl.gz", "jsonl.gz") && has("a.jsonl.gz", "gz"));
        assert!(!has("a.rs", "s") && !has("rs", "rs") && !has("a.rs.bak", "rs"));
    }

    fn read(compression: Compression, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(bytes).expect("written");
        io::Seek::rewind(&mut file).expect("back");
        let mut content = Vec::new();
        compression.open(file)?.read_to_end(&mut content)?;
        Ok(content)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(bytes).expect("written");
        gzip.finish().expect("finished")
    }

    #[test]
    fn gzip_members_are_joined_and_padding_is_skipped() {
        let members = [gzip(b"one "), gzip(b""), gzip(b"two")].concat();
        let whole = |bytes: &[u8]| read(Compression::Gzip, bytes).expect("read");
        assert_eq!(whole(&members), b"one two");
        assert_eq!(whole(&[&members[..], &[0; 100_000]].concat()), b"one two");
        let between = [&gzip(b"one ")[..], &[0; 512], &gzip(b"two")].concat();
        assert_eq!(whole(&between), b"one two");
        assert_eq!(whole(&gzip(b"")), b"");
        assert!(read(Compression::Gzip, &members[..members.len() - 3]).is_err());
        assert!(read(Compression::Gzip, &[&members[..], b"rest"].concat()).is_err());
    }

    /// Returns a Zstandard frame that needs a window of 2^`log` bytes.
    fn long_window(bytes: &[u8], log: u32) -> Vec<u8> {
        let mut zstd = zstd::Encoder::new(Vec::new(), 1).expect("begun");
        zstd.long_distance_matching(true).expect("set");
        zstd.window_log(log).expect("set");
        zstd.write_all(bytes).expect("written");
        zstd.finish().expect("finished")
    }

    #[test]
    fn zstandard_frames_of_any_window_are_joined_and_skippable_ones_skipped() {
        let skipped = [&[0x53, 0x2a, 0x4d, 0x18, 5, 0, 0, 0][..], b"index"].concat();
        let frame = |bytes: &[u8]| zstd::encode_all(bytes, 1).expect("compressed");
        let long = long_window(b"three", 31);
        let parts = [
            &skipped[..],
            &frame(b"one "),
            &frame(b""),
            &skipped,
            &frame(b"two "),
            &long,
            &skipped,
        ];
        let whole = read(Compression::Zstd, &parts.concat()).expect("read");
        assert_eq!(whole, b"one two three");
        // The library's default limit for the window is 2^27 bytes, which this frame exceeds.
        assert!(zstd::decode_all(&long[..]).is_err());
        assert!(read(Compression::Zstd, &long[..long.len() - 1]).is_err());
    }

    #[test]
    fn the_beginning_determines_the_codec_regardless_of_the_name() {
        let zstd = zstd::encode_all(&b"text"[..], 1).expect("compressed");
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            assert_eq!(read(compression, &gzip(b"text")).expect("read"), b"text");
            assert_eq!(read(compression, &zstd).expect("read"), b"text");
            let xz = b"\xfd7zXZ\0\0\x04";
            let error = read(compression, xz).expect_err("refused");
            assert_eq!(error.kind(), io::ErrorKind::Unsupported);
            assert_eq!(error.to_string(), "xz");
        }
        let bzip2 = read(Compression::None, b"BZh91AY&SY").expect_err("refused");
        assert_eq!(bzip2.to_string(), "bzip2");
        let text = b"BZh is how bzip2 begins";
        assert_eq!(read(Compression::None, text).expect("read"), text);
    }

    #[test]
    fn a_missing_dictionary_is_reported() {
        // One raw block of one byte, in a frame that names dictionary 7.
        let bytes = [0x28, 0xb5, 0x2f, 0xfd, 0x21, 7, 1, 9, 0, 0, b'a'];
        let error = read(Compression::Zstd, &bytes).expect_err("refused");
        assert_eq!(error.to_string(), "Zstandard with a dictionary");
    }
}
