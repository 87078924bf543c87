use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// Creates a bare repository with a hook that applies the Hub's checks. If `files` is not empty, the branch
/// `main` has one commit with these files.
pub(crate) fn make(repo: &Path, files: &[(&str, &str)]) {
    git(&["init", "--quiet", "--bare", "-b", "main"], repo);
    let hook = repo.join("hooks/pre-receive");
    fs::create_dir_all(repo.join("hooks")).expect("the hooks' folder");
    fs::write(&hook, include_str!("pre-receive.sh")).expect("the hook");
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).expect("the hook");
    if !files.is_empty() {
        let work = tempfile::tempdir().expect("a temporary folder");
        git(&["init", "--quiet", "-b", "main"], work.path());
        for (file, text) in files {
            fs::write(work.path().join(file), text).expect("a file");
        }
        git(&["add", "."], work.path());
        git(&["commit", "--quiet", "-m", "initial commit"], work.path());
        let to = repo.to_str().expect("a UTF-8 path");
        git(&["push", "--quiet", to, "main"], work.path());
    }
}

fn git(args: &[&str], dir: &Path) {
    fs::create_dir_all(dir).expect("a folder");
    let status = Command::new("git")
        .args(args)
        .current_dir(dir)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_NAME"), "hub")))
        .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_EMAIL"), "hub@localhost")))
        .status()
        .expect("git runs");
    assert!(status.success(), "git {args:?} failed");
}
