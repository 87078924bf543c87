//! How a run is named to a person.

use std::path::Path;

use host_core::RunName;
use host_plugin::shell_word;

use super::RunDir;

/// What other commands find the run by, from the folder where the user is.
pub(crate) fn how_to_name(dir: &RunDir) -> String {
    how_to_name_at(dir.name(), dir.path())
}

/// The same of a run that is not opened.
pub(crate) fn how_to_name_at(name: &RunName, path: &Path) -> String {
    let usual = std::env::current_dir().map(|here| here.join("runs").join(name.as_str()));
    match usual {
        Ok(usual) if usual == path => name.to_string(),
        _ => quoted(path),
    }
}

/// A path as a shell takes it.
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
