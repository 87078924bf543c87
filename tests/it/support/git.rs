use std::path::{Path, PathBuf};
use std::process::Command;

use super::Home;

/// Creates an empty bare repository in a home.
pub(crate) fn bare_repository(home: &Home) -> PathBuf {
    let path = home.path("remote.git");
    let text = home.text_path("remote.git");
    git(
        home.path("").as_path(),
        &["init", "--quiet", "--bare", "-b", "main", &text],
    );
    path
}

/// Runs git, which must succeed, and returns its stdout.
#[track_caller]
pub(crate) fn git(dir: &Path, args: &[&str]) -> String {
    String::from_utf8(git_bytes(dir, args)).expect("text")
}

/// Like [`git`], but returns bytes.
#[track_caller]
pub(crate) fn git_bytes(dir: &Path, args: &[&str]) -> Vec<u8> {
    let output = Command::new("git")
        .args(args)
        .current_dir(dir)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0")
        .output()
        .expect("git runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git {args:?}: {stderr}");
    output.stdout
}
