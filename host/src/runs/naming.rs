//! Names of runs in commands that are shown to users.

use std::path::Path;

use host_core::RunName;
use host_plugin::shell_word;

use super::RunDir;

/// If a command in the current folder would find the run by its name, returns the name. Otherwise, returns
/// the run's path.
pub(crate) fn how_to_name(dir: &RunDir) -> String {
    how_to_name_at(dir.name(), dir.path())
}

/// Like [`how_to_name`], for a run without a `RunDir`.
pub(crate) fn how_to_name_at(name: &RunName, path: &Path) -> String {
    let usual = std::env::current_dir().map(|here| here.join("runs").join(name.as_str()));
    match usual {
        Ok(usual) if usual == path => name.to_string(),
        _ => quoted(path),
    }
}

/// Quotes a path for the shell if necessary.
pub(crate) fn quoted(path: &Path) -> String {
    shell_word(&path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_paths_are_quoted() {
        assert_eq!(quoted(Path::new("/a/b-c.d")), "/a/b-c.d");
        assert_eq!(quoted(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }
}
