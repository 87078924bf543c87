use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Returns the path of a build product of the workspace, such as `host` or `libperplexity.so`.
///
/// The first call builds the workspace with the profile of the tests. This is necessary because cargo does
/// not let a test depend on a program, or on a library that is loaded only at run time.
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
    assert_starts(&folder.join("host"));
    folder.to_owned()
}

/// Checks that the program starts. Otherwise, for example without a shared library, each test would wait in vain.
fn assert_starts(program: &Path) {
    let version = Command::new(program).arg("--version").output();
    let version = version.expect("the program starts");
    let errors = String::from_utf8_lossy(&version.stderr);
    assert!(version.status.success(), "host --version failed: {errors}");
}

/// Returns a command for the cargo that runs the tests. The command has the same environment as in a shell.
///
/// The variables that cargo sets for a test are therefore removed. They would make some build scripts run
/// again, both now and in the user's next build.
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

/// Returns the root of the repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
