//! The names that users of CodeParrot's training script know and that mean something here under
//! another name, or nothing any more.

use host_core::{Error, ErrorKind};

/// The script's name, and ours. Both work as TOML keys and as flags.
const RENAMED: [(&str, &str); 4] = [
    ("model_ckpt", "model"),
    ("save_dir", "runs_dir"),
    ("dataset_name_train", "data"),
    ("dataset_name_valid", "valid_data"),
];

/// The script's name, and what to do instead.
const REFUSED: [(&str, &str); 1] = [(
    "tokenized",
    "give token files as `data`, which `host data tokenize` writes; text is tokenized while it is read",
)];

/// Our name for an argument; every other name stands for itself.
pub(crate) fn renamed(key: &str) -> &str {
    RENAMED
        .iter()
        .find(|(script, _)| *script == key)
        .map_or(key, |(_, ours)| ours)
}

/// The error for an argument of the script's that has no place here.
pub(crate) fn refusal(key: &str) -> Option<Error> {
    REFUSED
        .iter()
        .find(|(script, _)| *script == key)
        .map(|(script, instead)| {
            Error::new(
                ErrorKind::Config,
                format!("{script} is not an argument here"),
            )
            .hint(*instead)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_ours_or_renamed_or_refused() {
        assert_eq!(renamed("model_ckpt"), "model");
        assert_eq!(renamed("seed"), "seed");
        assert!(refusal("model_ckpt").is_none());
        assert!(refusal("resume_from_checkpoint").is_none());
        let error = refusal("tokenized").expect("refused");
        assert!(error.hint_text().expect("a hint").contains("data tokenize"));
    }
}
