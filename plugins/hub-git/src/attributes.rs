//! Lines of `.gitattributes`: which files go by Git LFS.

use std::fmt::Write;

/// Endings of formats that hold tensors. All files of such a kind go by LFS, now and later.
const TENSORS: [&str; 9] = [
    "safetensors",
    "bin",
    "pt",
    "pth",
    "ckpt",
    "npy",
    "npz",
    "gguf",
    "msgpack",
];

/// What the Hub takes as a plain file at most; its limit is 10 MiB, and files grow.
const PLAIN_BYTES: u64 = 5 << 20;

/// Whether a file should go by LFS where nobody has said so: the Hub takes no large and no binary
/// plain files. `beginning` is the file's first kilobytes.
pub(crate) fn wants_lfs(name: &str, size: u64, beginning: &[u8]) -> bool {
    size > PLAIN_BYTES || tensor_ending(name).is_some() || beginning.contains(&0)
}

/// The attributes with lines for more files. What is there stays as it is.
pub(crate) fn extend<'a>(attributes: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    let mut text = attributes.to_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    for name in names {
        let line = format!("{} filter=lfs diff=lfs merge=lfs -text", pattern(name));
        if !text.lines().any(|there| there == line) {
            let _ = writeln!(text, "{line}");
        }
    }
    text
}

/// All files of a tensor format, or that one file.
fn pattern(name: &str) -> String {
    if let Some(ending) = tensor_ending(name) {
        return format!("*.{ending}");
    }
    let mut pattern = "/".to_owned();
    for c in name.chars() {
        match c {
            // A blank would end the pattern.
            ' ' | '\t' => pattern.push_str("[[:space:]]"),
            '*' | '?' | '[' | '\\' => pattern.extend(['\\', c]),
            _ => pattern.push(c),
        }
    }
    pattern
}

fn tensor_ending(name: &str) -> Option<&str> {
    let (_, ending) = name.rsplit_once('.')?;
    TENSORS.contains(&ending).then_some(ending)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_binary_and_tensor_files_go_by_lfs() {
        assert!(wants_lfs("model.safetensors", 10, b""));
        assert!(wants_lfs("tokenizer.json", 6 << 20, b"{"));
        assert!(wants_lfs("cursor", 10, b"a\0b"));
        assert!(!wants_lfs("config.json", 10, b"{}"));
    }

    #[test]
    fn what_is_there_stays_and_nothing_comes_twice() {
        let before = "*.h5 filter=lfs diff=lfs merge=lfs -text\n# mine";
        let names = ["a.bin", "b.bin", "my file[1].json"];
        let after = extend(before, names);
        assert_eq!(
            after,
            "*.h5 filter=lfs diff=lfs merge=lfs -text\n# mine\n\
             *.bin filter=lfs diff=lfs merge=lfs -text\n\
             /my[[:space:]]file\\[1].json filter=lfs diff=lfs merge=lfs -text\n"
        );
        assert_eq!(extend(&after, names), after);
    }
}
