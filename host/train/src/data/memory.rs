//! Tests how much memory the readers use. In each test, a reader reads documents near the maximum size, in a
//! process whose memory is limited to what `data.rs` states.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::Command;

use parquet::basic::{Compression, Encoding};

use super::files::find;
use super::parquet_rows::tests::encoded;
use super::reader::Reader;
use crate::TrainConfig;

const MIB: u64 = 1 << 20;
/// The size of a large document, slightly below the maximum.
const LARGE: usize = 60 << 20;

/// Returns the size of this process's data segment (`VmData`).
fn own_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("a status");
    let line = status
        .lines()
        .find(|line| line.starts_with("VmData:"))
        .expect("a line");
    let kilobytes = line.split_whitespace().nth(1).expect("a number");
    1024 * kilobytes.parse::<u64>().expect("a number")
}

/// Calls `prepare` and then `act` in a separate process. While `act` runs, the process can allocate `bytes`
/// bytes of additional memory and no more.
pub(crate) fn within<T>(
    test: &str,
    bytes: u64,
    prepare: impl FnOnce(&Path) -> T,
    act: impl FnOnce(T),
) {
    const LIMITED: &str = "HOST_TEST_WITH_LIMITED_MEMORY";
    if std::env::var(LIMITED).is_ok() {
        let folder = tempfile::tempdir().expect("a folder");
        let prepared = prepare(folder.path());
        let limited = Command::new("prlimit")
            .args(["--pid", &std::process::id().to_string()])
            .arg(format!("--data={}", own_bytes() + bytes))
            .status()
            .expect("prlimit");
        assert!(limited.success());
        act(prepared);
        return;
    }
    let program = std::env::current_exe().expect("this program");
    let output = Command::new(program)
        .args([test, "--exact", "--nocapture"])
        .env(LIMITED, "1")
        .output()
        .expect("started");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "{}: {said}", output.status);
    assert!(said.contains("1 passed"), "{said}");
}

/// Reads the file. Keeps as many passages in a queue as training does.
fn read_file(test: &str, name: &str, ceiling: u64, bytes: u64, write: impl FnOnce(File)) {
    let prepare = |folder: &Path| {
        write(File::create(folder.join(name)).expect("made"));
        let config = TrainConfig::default();
        let found = find("data", &[folder.to_owned()], &config).expect("found");
        found.files[0].clone()
    };
    within(
        &format!("data::memory::{test}"),
        ceiling,
        prepare,
        |source| {
            let mut reader = Reader::open(&source).expect("opened");
            let mut queue = VecDeque::new();
            let mut read = 0;
            while let Some(passage) = reader.next() {
                let passage = passage.expect("a passage");
                read += passage.bytes() as u64;
                queue.push_back(passage);
                if queue.len() > 64 {
                    queue.pop_front();
                }
            }
            assert_eq!(read, bytes);
        },
    );
}

/// Writes `bytes` bytes of lines.
fn put_lines(mut out: impl Write, bytes: usize) {
    let block = b"a line of 16 byt\n".repeat(1 << 12);
    for at in (0..bytes).step_by(block.len()) {
        let part = block.len().min(bytes - at);
        out.write_all(&block[..part]).expect("written");
    }
}

/// Writes three records with documents near the maximum size. Every line end is escaped.
fn put_records(mut out: impl Write) {
    for _ in 0..3 {
        out.write_all(b"{\"content\": \"").expect("written");
        let block = b"a line of 15 by\\n".repeat(1 << 12);
        for _ in 0..LARGE / block.len() {
            out.write_all(&block).expect("written");
        }
        out.write_all(b"\"}\n").expect("written");
    }
}

/// Returns the total size of the three records' texts. Each escape counts as one byte.
fn records_bytes() -> u64 {
    let blocks = LARGE / (17 << 12);
    3 * (blocks * (16 << 12)) as u64
}

fn gzip(file: File) -> flate2::write::GzEncoder<File> {
    flate2::write::GzEncoder::new(file, flate2::Compression::fast())
}

fn zstd(file: File, window_log: u32) -> zstd::stream::AutoFinishEncoder<'static, File> {
    let mut zstd = zstd::Encoder::new(file, 1).expect("begun");
    zstd.window_log(window_log).expect("set");
    zstd.auto_finish()
}

#[test]
fn a_text_takes_little_whatever_its_size() {
    let test = "a_text_takes_little_whatever_its_size";
    let bytes = 64 << 20;
    read_file(test, "a.txt", 24 * MIB, bytes as u64, |file| {
        put_lines(file, bytes);
    });
}

#[test]
fn a_text_in_gzip_takes_little() {
    let test = "a_text_in_gzip_takes_little";
    let bytes = 64 << 20;
    let write = |file| put_lines(gzip(file), bytes);
    read_file(test, "a.txt.gz", 24 * MIB, bytes as u64, write);
}

#[test]
fn a_text_in_zstandard_takes_its_window() {
    let test = "a_text_in_zstandard_takes_its_window";
    let bytes = 64 << 20;
    let write = |file| put_lines(zstd(file, 26), bytes);
    read_file(test, "a.txt.zst", (64 + 24) * MIB, bytes as u64, write);
}

#[test]
fn json_lines_take_a_few_lines() {
    let test = "json_lines_take_a_few_lines";
    let write = |file| put_records(BufWriter::new(file));
    read_file(test, "a.jsonl", 384 * MIB, records_bytes(), write);
}

#[test]
fn json_lines_in_gzip_take_a_few_lines() {
    let test = "json_lines_in_gzip_take_a_few_lines";
    let write = |file| put_records(gzip(file));
    read_file(test, "a.jsonl.gz", 384 * MIB, records_bytes(), write);
}

#[test]
fn json_lines_in_zstandard_take_a_few_lines() {
    let test = "json_lines_in_zstandard_take_a_few_lines";
    let write = |file| put_records(zstd(file, 20));
    read_file(test, "a.jsonl.zst", 384 * MIB, records_bytes(), write);
}

#[test]
fn a_list_in_place_of_the_text_takes_no_more_than_its_line() {
    let test = "a_list_in_place_of_the_text_takes_no_more_than_its_line";
    let write = |mut file: File| {
        let numbers = "1,".repeat(LARGE / 2);
        write!(
            file,
            "{{\"content\": [{numbers}1]}}\n{{\"content\": \"a\"}}\n"
        )
        .expect("written");
    };
    let prepare = |folder: &Path| {
        let path = folder.join("a.jsonl");
        write(File::create(&path).expect("made"));
        let config = TrainConfig::default();
        let file = find("data", &[path], &config)
            .expect("found")
            .files
            .remove(0);
        Reader::open(&file).expect("opened")
    };
    within(
        &format!("data::memory::{test}"),
        200 * MIB,
        prepare,
        |mut reader| {
            assert!(reader.next().expect("a record").is_err());
            assert!(reader.next().expect("a record").is_ok());
        },
    );
}

/// Reads three rows with documents near the maximum size, in one page.
fn read_parquet(test: &str, compression: Compression, encoding: Encoding) {
    let text = "a line of 16 byt\n".repeat(LARGE / 17);
    let bytes = 3 * text.len() as u64;
    // The maximum in `data.rs` is a sum: the size of the page in the file, plus three times the page's
    // uncompressed size, plus the size of one document. Pages without compression, and pages with
    // `DELTA_BYTE_ARRAY`, need less.
    let ceiling = match encoding {
        Encoding::DELTA_BYTE_ARRAY => 5 * LARGE as u64,
        _ if compression == Compression::UNCOMPRESSED => 6 * LARGE as u64,
        _ => 10 * LARGE as u64,
    };
    read_file(test, "a.parquet", ceiling, bytes, |mut file| {
        let rows = [Some(text.as_bytes()); 3];
        file.write_all(&encoded(&rows, compression, Some(encoding)))
            .expect("written");
    });
}

#[test]
fn parquet_takes_a_page() {
    read_parquet(
        "parquet_takes_a_page",
        Compression::UNCOMPRESSED,
        Encoding::PLAIN,
    );
}

#[test]
fn parquet_in_snappy_takes_a_page() {
    read_parquet(
        "parquet_in_snappy_takes_a_page",
        Compression::SNAPPY,
        Encoding::PLAIN,
    );
}

#[test]
fn parquet_in_zstandard_takes_a_page() {
    let zstd = Compression::ZSTD(Default::default());
    read_parquet("parquet_in_zstandard_takes_a_page", zstd, Encoding::PLAIN);
}

#[test]
fn parquet_in_gzip_takes_a_page() {
    let gzip = Compression::GZIP(Default::default());
    read_parquet("parquet_in_gzip_takes_a_page", gzip, Encoding::PLAIN);
}

#[test]
fn parquet_in_brotli_takes_a_page() {
    let brotli = Compression::BROTLI(Default::default());
    read_parquet("parquet_in_brotli_takes_a_page", brotli, Encoding::PLAIN);
}

#[test]
fn parquet_in_lz4_takes_a_page() {
    read_parquet(
        "parquet_in_lz4_takes_a_page",
        Compression::LZ4_RAW,
        Encoding::PLAIN,
    );
}

#[test]
fn parquet_rows_that_share_their_beginning_take_a_page() {
    let test = "parquet_rows_that_share_their_beginning_take_a_page";
    let zstd = Compression::ZSTD(Default::default());
    read_parquet(test, zstd, Encoding::DELTA_BYTE_ARRAY);
}

#[test]
fn a_token_file_takes_little() {
    use super::token_file::{TokenHeader, TokenWriter};
    let test = "a_token_file_takes_little";
    let ids = 32 << 20;
    // Each id takes two bytes in the file, and four bytes in a passage.
    read_file(test, "a.tokens", 24 * MIB, 4 * ids as u64, |file| {
        let mut writer = TokenWriter::new(file, TokenHeader::new(300, 0, [7; 32])).expect("begun");
        for _ in 0..32 {
            writer.write(&vec![1; 1 << 20]).expect("written");
        }
        writer.finish().expect("finished");
    });
}

#[test]
fn a_vocabulary_takes_the_room_of_its_words() {
    use crate::vocabulary::{Sample, train_within};
    let test = "data::memory::a_vocabulary_takes_the_room_of_its_words";
    let prepare = |folder: &Path| {
        let path = folder.join("a.txt");
        let mut out = BufWriter::new(File::create(&path).expect("made"));
        // Writes distinct words, about ten times as many as fit in memory.
        for n in 0..1_000_000_u64 {
            let mut hash = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut word = *b"aaaaaaaaaaaaa ";
            for letter in &mut word[..13] {
                *letter = b'a' + (hash % 26) as u8;
                hash /= 26;
            }
            out.write_all(&word).expect("written");
        }
        out.flush().expect("written");
        let config = TrainConfig::default();
        find("data", &[path], &config).expect("found").files
    };
    within(test, 600 * MIB, prepare, |files| {
        let trained = train_within(&Sample::of(&files), 300, "<|endoftext|>", 1 << 20);
        let tokenizer: tokenizers::Tokenizer = trained.expect("trained").parse().expect("one");
        assert_eq!(tokenizer.get_vocab_size(true), 300);
    });
}
