//! Training data files in every supported format.
//!
//! The first byte selects the format; the rest is the file. Reading from the middle must give the same
//! passages as reading from the beginning. The passages of a plain text must add up to its bytes.
#![no_main]

mod contained;
mod folder;

use std::fs;
use std::sync::LazyLock;

use folder::Folder;
use host_train::fuzzing::{Read, read_data};
use libfuzzer_sys::fuzz_target;

const NAMES: [&str; 8] = [
    "x.rs",
    "x.rs.gz",
    "x.rs.zst",
    "x.jsonl",
    "x.jsonl.gz",
    "x.jsonl.zst",
    "x.parquet",
    "x.tokens",
];
/// Maximum number of passages to read. There is a limit because a small file can decompress to a large one.
const MOST: usize = 2000;

static FOLDER: LazyLock<Folder> = LazyLock::new(Folder::new);

fuzz_target!(|input: &[u8]| contained::run(|| test(input)));

fn test(input: &[u8]) {
    let Some((&chosen, bytes)) = input.split_first() else {
        return;
    };
    let name = NAMES[usize::from(chosen) % NAMES.len()];
    let path = FOLDER.write(name, bytes);
    let outcome = read_data(&path, 0, MOST);
    if let Ok(whole) = &outcome {
        let half = whole.len() / 2;
        let rest = read_data(&path, half as u64, MOST).expect("it was read before");
        let known = whole.len() - half;
        assert_eq!(
            rest[..known.min(rest.len())],
            whole[half..],
            "from passage {half}"
        );
        let is_whole =
            whole.len() < MOST && !whole.iter().any(|read| matches!(read, Read::LeftOut(_)));
        if is_whole {
            check_ends(whole);
            if name == "x.rs" {
                let text = whole.iter().map(|read| match read {
                    Read::Text(text, _) => text.as_str(),
                    _ => panic!("a text was read as {read:?}"),
                });
                assert_eq!(text.collect::<String>().as_bytes(), bytes);
            }
        }
    }
    fs::remove_file(path).expect("removed");
}

/// Checks that the last passage of a file ends its document.
fn check_ends(whole: &[Read]) {
    if let Some(Read::Text(_, ends) | Read::Ids(_, ends)) = whole.last() {
        assert!(ends, "the last document has no end");
    }
}
