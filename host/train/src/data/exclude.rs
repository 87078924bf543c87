use std::path::Path;

use glob::{MatchOptions, Pattern};
use host_core::{Error, ErrorKind, Result};

/// What is left out of folders, by patterns. One without a slash fits any name of a file or a folder
/// (`*.min.js`, `node_modules`), one with a slash the path below the folder that was given
/// (`docs/*.md`, `**/test/**`). A folder that fits is left out with all that is in it.
#[derive(Debug)]
pub(super) struct Exclude(Vec<Rule>);

#[derive(Debug)]
struct Rule {
    pattern: Pattern,
    /// Whether it is compared with the whole path.
    is_path: bool,
}

impl Exclude {
    /// # Errors
    /// A text that is not a pattern.
    pub(super) fn new(patterns: &[String]) -> Result<Self> {
        let parse = |text: &String| {
            let pattern = text.trim_end_matches('/').trim_start_matches("./");
            Ok(Rule {
                is_path: pattern.contains('/'),
                pattern: Pattern::new(pattern.trim_start_matches('/')).map_err(|error| {
                    let message = format!("exclude is not a pattern: {error}: {text}");
                    Error::new(ErrorKind::Config, message).hint("for example: --exclude '*.min.js'")
                })?,
            })
        };
        patterns.iter().map(parse).collect::<Result<_>>().map(Self)
    }

    /// Whether this path below a given folder fits.
    pub(super) fn has(&self, path: &Path) -> bool {
        let options = MatchOptions {
            require_literal_separator: true,
            ..MatchOptions::new()
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        self.0.iter().any(|rule| {
            if rule.is_path {
                rule.pattern.matches_path_with(path, options)
            } else {
                rule.pattern.matches_with(&name, options)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_fits_a_name_or_a_path() {
        let has = |pattern: &str, path: &str| {
            let exclude = Exclude::new(&[pattern.to_owned()]).expect("a pattern");
            exclude.has(Path::new(path))
        };
        assert!(has("*.min.js", "a/b.min.js") && !has("*.min.js", "a/b.js"));
        assert!(has("target/", "a/target") && !has("target", "a/target.rs"));
        assert!(has("a/*.rs", "a/b.rs") && !has("a/*.rs", "a/b/c.rs"));
        assert!(has("./a/*", "a/b.rs") && !has("a/*.rs", "b/a/c.rs"));
        assert!(has("/a/b", "a/b") && !has("/b", "a/b") && has("/b", "b"));
        assert!(has("**/test/**", "a/test/b.rs") && !has("*.RS", "a.rs"));
        let error = Exclude::new(&["a***".to_owned()]).expect_err("refused");
        assert!(error.message().starts_with("exclude is not a pattern"));
    }
}
