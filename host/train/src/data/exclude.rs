use std::path::Path;

use glob::{MatchOptions, Pattern};
use host_core::{Error, ErrorKind, Result};

/// Patterns of files and folders to leave out. A pattern without a slash matches the name of any file or
/// folder (`*.min.js`, `node_modules`); a pattern with a slash matches the path below the given folder
/// (`docs/*.md`, `**/test/**`). A matching folder is left out with all its content.
#[derive(Debug)]
pub(super) struct Exclude(Vec<Rule>);

#[derive(Debug)]
struct Rule {
    pattern: Pattern,
    /// True if the pattern is matched against the path below the given folder, false if it is matched against
    /// the name of a file or folder.
    is_path: bool,
}

impl Exclude {
    /// # Errors
    /// Returns an error if a text is not a valid pattern.
    pub(super) fn new(patterns: &[String]) -> Result<Self> {
        let parse = |text: &String| {
            let pattern = text.trim_end_matches('/').trim_start_matches("./");
            Ok(Rule {
                is_path: pattern.contains('/'),
                pattern: Pattern::new(pattern.trim_start_matches('/')).map_err(|error| {
                    let message = format!("invalid pattern in exclude: {error}: {text}");
                    Error::new(ErrorKind::Config, message).hint("for example: --exclude '*.min.js'")
                })?,
            })
        };
        patterns.iter().map(parse).collect::<Result<_>>().map(Self)
    }

    /// Whether this path below a given folder is excluded.
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
    fn a_pattern_matches_a_name_or_a_path() {
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
        assert!(error.message().starts_with("invalid pattern in exclude"));
    }
}
