use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// A file that building the workspace makes: `host`, `libperplexity.so`.
///
/// A test cannot depend on a program or on a library that is only there to be loaded, so cargo is
/// asked, once, for the profile that the tests were built with.
pub(crate) fn built(file: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(build).join(file)
}

fn build() -> PathBuf {
    let test = std::env::current_exe().expect("this test");
    let folder = test.ancestors().nth(2).expect("the profile's folder");
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(name) => name,
        None => panic!("no profile's folder: {}", folder.display()),
    };
    let target = folder.parent().expect("the target folder");
    let output = cargo()
        .current_dir(root())
        .args(["build", "--workspace", "--locked", "--quiet"])
        .args(["--profile", profile, "--target-dir"])
        .arg(target)
        .output()
        .expect("cargo runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    folder.to_owned()
}

/// The cargo that runs the tests, as a person would start it.
///
/// What cargo tells a test of its package would make some build scripts run again, now and when the
/// user's own cargo comes next.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| {
            name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
        }) {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// The repository's.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
