use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

use crate::{Error, ErrorKind};

/// A run's name. It is also the name of a folder and of a git branch. Therefore, it contains only letters,
/// digits, `.`, `_` and `-`. It begins with a letter or digit, does not contain `..`, and does not end in `.`
/// or `.lock`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunName(String);

/// Maximum length, in bytes.
const LONGEST: usize = 100;

impl RunName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RunName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let fits = text.len() <= LONGEST
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
            && !text.contains("..")
            && !text.ends_with('.')
            && !text.ends_with(".lock");
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::new(ErrorKind::Config, format!("invalid run name: {text:?}")).hint(format!(
                "use at most {LONGEST} letters, digits, '.', '_' and '-', beginning with a letter or digit"
            )))
        }
    }
}

impl TryFrom<String> for RunName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<RunName> for String {
    fn from(name: RunName) -> Self {
        name.0
    }
}

impl fmt::Display for RunName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_folder_or_break_a_branch() {
        for good in ["demo", "a", "run-2026.11_3", "0"] {
            assert!(good.parse::<RunName>().is_ok(), "{good}");
        }
        let long = "x".repeat(LONGEST + 1);
        for bad in [
            "", ".", "..", "a/b", "../a", "-x", ".x", "a..b", "a b", "a.", "a.lock", "ü", &long,
        ] {
            assert!(bad.parse::<RunName>().is_err(), "{bad}");
        }
    }
}
