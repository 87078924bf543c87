//! Files that cannot be plugins because of their type, and files that are replaced after the inspection.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use host_core::ErrorKind;
use host_plugin::{PluginConfig, PluginLock, SearchPath, Target};
use serde_json::json;

use crate::fixture::{Fixture, dir, find, load};
use crate::refusals::{NO_LIBRARY, assert_error, assert_refused};

const NO_PATH: &str = "pass the path of the plugin's .so file, or its id";

/// Runs a compiler or a related tool.
fn tool(name: &str, args: &[&str]) {
    let output = Command::new(name).args(args).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {errors}");
}

/// Checks that the file is rejected when it is opened, both by its path and in the search path.
#[track_caller]
fn assert_not_opened(path: &Path, reason: &str, hint: Option<&str>, kind: ErrorKind) {
    let error = find(&Target::Path(path.to_owned())).unwrap_err();
    assert_eq!(error.message(), format!("{reason}: {}", path.display()));
    assert_eq!(error.hint_text(), hint);
    assert_eq!(error.kind(), kind);
    let search = SearchPath::new([path.parent().unwrap().to_owned()]);
    let listed = search.list().into_iter().find(|its| its.path == path);
    if let Some(listed) = listed {
        assert_eq!(listed.outcome.unwrap_err().message(), error.message());
    }
}

#[test]
fn files_of_other_kinds_are_named() {
    let dir = dir();
    let at = |name: &str| dir.path().join(name);
    let text = |name: &str| at(name).to_str().unwrap().to_owned();
    fs::write(at("main.c"), "int main(void) { return 0; }").unwrap();
    let c = text("main.c");
    tool("cc", &["-no-pie", &c, "-o", &text("fixed")]);
    tool("cc", &["-pie", "-fPIE", &c, "-o", &text("movable")]);
    tool("cc", &["-c", &c, "-o", &text("main.o")]);
    tool("ar", &["rcs", &text("libmain.a"), &text("main.o")]);
    fs::write(at("empty.so"), "").unwrap();
    fs::write(at("short.so"), "\x7fELF").unwrap();
    fs::write(at("a.dll"), b"MZ\x90\0 and so on").unwrap();
    fs::write(at("a.dylib"), b"\xcf\xfa\xed\xfe and so on").unwrap();
    for (name, what) in [
        ("fixed", "a program"),
        ("movable", "a program"),
        ("main.o", "an object file"),
        ("libmain.a", "a static library"),
        ("empty.so", "an empty file"),
        ("short.so", "a file of less than 20 bytes"),
        ("a.dll", "a library for Windows"),
        ("a.dylib", "a library for macOS"),
        ("main.c", "a file without an ELF header"),
    ] {
        let reason = format!("plugin is {what}, not a shared library");
        assert_refused(&at(name), &reason, NO_LIBRARY);
    }
}

#[test]
fn opening_a_pipe_does_not_block() {
    let dir = dir();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("folder.so")).unwrap();
    tool("mkfifo", &[at("pipe.so").to_str().unwrap()]);
    for name in ["folder.so", "pipe.so"] {
        assert_not_opened(
            &at(name),
            "plugin is not a file",
            Some(NO_PATH),
            ErrorKind::Config,
        );
    }
    symlink("loop.so", at("loop.so")).unwrap();
    symlink("nowhere", at("dangling.so")).unwrap();
    let reason = "cannot open the plugin: Too many levels of symbolic links (os error 40)";
    assert_not_opened(&at("loop.so"), reason, None, ErrorKind::System);
    let reason = "plugin does not exist";
    assert_not_opened(&at("dangling.so"), reason, Some(NO_PATH), ErrorKind::Config);
}

#[test]
fn a_file_that_may_not_be_read() {
    let dir = dir();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let path = Fixture::metric("unreadable").build(dir.path());
    fs::set_permissions(&path, Permissions::from_mode(0o000)).unwrap();
    std::thread::scope(|scope| {
        let nobody = std::thread::Builder::new().name("nobody".to_owned());
        let look = || {
            // The superuser can read everything. This call removes that privilege from this thread, for file
            // access only, until the thread ends. For other users the call has no effect.
            // SAFETY: the function takes a number.
            unsafe { libc::setfsuid(65_534) };
            let reason = "cannot open the plugin: Permission denied (os error 13)";
            let hint = "check the owner and the permissions of the path, or choose another path";
            assert_not_opened(&path, reason, Some(hint), ErrorKind::System);
        };
        nobody.spawn_scoped(scope, look).unwrap();
    });
}

#[test]
fn a_file_that_is_removed_or_replaced_after_the_inspection() {
    let dir = dir();
    let path = Fixture::metric("goes").build(dir.path());
    let found = find(&Target::Path(path.clone())).unwrap();
    let load = || host_plugin::Plugin::load(&found, &PluginConfig::default());
    let other = Fixture::metric("comes").build(dir.path());
    fs::copy(&other, &path).unwrap();
    let reason = "plugin goes was replaced by comes";
    let hint = "the file changed during the check; try again";
    assert_error(load().unwrap_err(), reason, &path, hint);
    let size = path.metadata().unwrap().len();
    File::options()
        .write(true)
        .open(&path)
        .and_then(|file| file.set_len(size / 2))
        .unwrap();
    let error = load().unwrap_err();
    let start = "plugin is a damaged shared library: ";
    assert!(error.message().starts_with(start), "{error}");
    fs::remove_file(&path).unwrap();
    let gone = format!("plugin does not exist: {}", path.display());
    assert_eq!(load().unwrap_err().message(), gone);
}

#[test]
fn a_loaded_plugin_does_not_depend_on_its_file() {
    let dir = dir();
    let path = Fixture::metric("loaded").build(dir.path());
    let plugin = load(&path, json!({})).unwrap();
    let before = plugin.sha256().to_owned();
    // Overwrites the file in place, as `cp` does. If the library were mapped from this file, this would
    // modify the library.
    fs::write(&path, vec![0xcc; 100_000]).unwrap();
    let mut metric = plugin.metric().unwrap();
    metric.reset().unwrap();
    assert_eq!(plugin.sha256(), before);
}

#[test]
fn a_plugin_that_was_replaced_after_locking() {
    let dir = dir();
    let path = Fixture::metric("pinned").build(dir.path());
    let target = Target::Path(path.clone());
    let pinned = find(&target).unwrap().pin().unwrap();
    let lock = PluginLock::new("/c/plugins.lock", [pinned.clone()]).unwrap();
    let search = SearchPath::new([]).with_lock(lock);
    let load = || {
        let found = search.find(&target)?;
        host_plugin::Plugin::load(&found, &PluginConfig::default())
    };
    assert_eq!(load().unwrap().sha256(), pinned.sha256);
    let hint = "if you trust the new file, run `host plugin lock --file /c/plugins.lock` with the run's arguments";
    for (fixture, differences) in [
        (
            Fixture::metric("pinned").manifest_with("version", json!("0.2.0")),
            "version 0.2.0 instead of 0.1.0, ",
        ),
        (
            Fixture::metric("pinned").manifest_with("abi", json!([1, 4])),
            "ABI 1.4 instead of 1.0, ",
        ),
        (Fixture::metric("pinned").flag("-DTOKENS=\"taken\""), ""),
    ] {
        fixture.build(dir.path());
        let now = find(&target).unwrap().pin().unwrap();
        let size = match now.size == pinned.size {
            true => String::new(),
            false => format!("size {} instead of {}, ", now.size, pinned.size),
        };
        let reason = format!(
            "plugin pinned differs from its entry in the lock: {differences}{size}sha256 {} instead of \
             {} (lock: /c/plugins.lock)",
            now.sha256, pinned.sha256
        );
        assert_error(load().unwrap_err(), &reason, &path, hint);
    }
    let other = Target::Path(Fixture::metric("unpinned").build(dir.path()));
    let found = search.find(&other).unwrap();
    let error = host_plugin::Plugin::load(&found, &PluginConfig::default()).unwrap_err();
    let reason = "plugin unpinned is not in the lock /c/plugins.lock";
    assert_error(error, reason, &found.path, hint);
}

/// Loading hashes and copies the whole file once; the inspection reads only parts of it.
#[test]
fn a_library_with_200_megabytes_appended() {
    let dir = dir();
    let path = Fixture::metric("padded").build(dir.path());
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(200 << 20).unwrap();
    load(&path, json!({})).unwrap();
    file.set_len(513 << 20).unwrap();
    let reason = "plugin has 513 MiB, more than 512 MiB";
    let hint = "strip it, or move large data out of the library";
    let error = find(&Target::Path(path.clone())).unwrap_err();
    assert_error(error, reason, &path, hint);
}
