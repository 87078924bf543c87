//! Creates lines of `.gitattributes`, which determine the files that are stored with Git LFS.

use std::fmt::Write;

/// File extensions of tensor formats. All files with such an extension are stored with LFS.
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

/// Files above this size are stored with LFS. The Hub's own limit for plain files is 10 MiB. The limit here
/// is lower, because files can grow between checkpoints.
const PLAIN_BYTES: u64 = 5 << 20;

/// Whether to store a file with LFS although `.gitattributes` does not require it. This can be necessary
/// because the Hub rejects plain files that are large or binary. `beginning` contains the first kilobytes of
/// the file.
pub(crate) fn wants_lfs(name: &str, size: u64, beginning: &[u8]) -> bool {
    size > PLAIN_BYTES || tensor_ending(name).is_some() || beginning.contains(&0)
}

/// Returns the attributes with added lines for more files. Existing lines are unchanged.
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

/// If the file has a tensor format, returns a pattern for all files of that format. Otherwise, returns a
/// pattern for this file only.
fn pattern(name: &str) -> String {
    if let Some(ending) = tensor_ending(name) {
        return format!("*.{ending}");
    }
    let mut pattern = "/".to_owned();
    for c in name.chars() {
        match c {
            // A space or tab would end the pattern.
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
    fn large_binary_and_tensor_files_are_stored_with_lfs() {
        assert!(wants_lfs("model.safetensors", 10, b""));
        assert!(wants_lfs("tokenizer.json", 6 << 20, b"{"));
        assert!(wants_lfs("cursor", 10, b"a\0b"));
        assert!(!wants_lfs("config.json", 10, b"{}"));
    }

    #[test]
    fn existing_lines_stay_and_no_line_is_added_twice() {
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
