//! Arguments of CodeParrot's training script that either have a different name here, or have no counterpart
//! here.

use host_core::{Error, ErrorKind};

/// An argument's name in the script, and its name here. Both names work as TOML keys and as flags.
const RENAMED: [(&str, &str); 4] = [
    ("model_ckpt", "model"),
    ("save_dir", "runs_dir"),
    ("dataset_name_train", "data"),
    ("dataset_name_valid", "valid_data"),
];

/// An argument's name in the script, and the hint for the user.
const REFUSED: [(&str, &str); 1] = [(
    "tokenized",
    "remove it: `data` can be token files from `host data tokenize`, or text, which the run tokenizes itself",
)];

/// Returns the name that an argument of the script has here. If the argument is not in `RENAMED`, its name
/// is the same here.
pub(crate) fn renamed(key: &str) -> &str {
    RENAMED
        .iter()
        .find(|(script, _)| *script == key)
        .map_or(key, |(_, ours)| ours)
}

/// Returns the error for an argument of the script that has no counterpart here.
pub(crate) fn refusal(key: &str) -> Option<Error> {
    REFUSED
        .iter()
        .find(|(script, _)| *script == key)
        .map(|(script, instead)| {
            Error::new(ErrorKind::Config, format!("unsupported argument: {script}")).hint(*instead)
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
