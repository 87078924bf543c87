//! Each library that cannot be a plugin causes one clear error that names the library.

use std::fs;
use std::path::Path;
use std::process::Command;

use host_core::{Error, ErrorKind};
use host_plugin::{Target, inspect};
use host_plugin_abi::HOST_ABI_MINOR;
use serde_json::json;

use crate::fixture::{Fixture, dir, find, load};

const WRONG_BUILD: &str = "the library violates the ABI; its author must correct it";
pub(crate) const WRONG_MANIFEST: &str =
    "its author must correct the manifest that is embedded at build time";
pub(crate) const NO_LIBRARY: &str =
    "pass the .so file; a Rust crate builds one with crate-type = [\"cdylib\"]";

/// Checks an error about a plugin: the reason, followed by the path, and the hint.
pub(crate) fn assert_error(error: Error, reason: &str, path: &Path, hint: &str) {
    assert_eq!(error.message(), format!("{reason}: {}", path.display()));
    assert_eq!(error.hint_text(), Some(hint));
    assert_eq!(error.kind(), ErrorKind::Plugin);
}

/// Checks that the inspection rejects the file before any of the file's code runs.
pub(crate) fn assert_refused(path: &Path, reason: &str, hint: &str) {
    let found = find(&Target::Path(path.to_owned()));
    assert_error(found.unwrap_err(), reason, path, hint);
    let bytes = fs::read(path).unwrap();
    assert_error(inspect(&bytes, path).unwrap_err(), reason, path, hint);
}

/// Checks that the inspection accepts the file, but that loading it fails because of the description that the
/// file's code returns.
fn assert_not_loaded(fixture: &Fixture, reason: &str) {
    let dir = dir();
    let path = fixture.build(dir.path());
    find(&Target::Path(path.clone())).unwrap();
    let error = load(&path, json!({})).unwrap_err();
    assert_error(error, reason, &path, WRONG_BUILD);
}

#[test]
fn not_a_library() {
    let dir = dir();
    for (name, bytes, reason) in [
        (
            "a.so",
            &b""[..],
            "plugin is an empty file, not a shared library",
        ),
        (
            "b.so",
            &b"[[plugin]]\nid = \"perplexity\"\n"[..],
            "plugin is a file without an ELF header, not a shared library",
        ),
    ] {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        assert_refused(&path, reason, NO_LIBRARY);
    }
}

#[test]
fn not_a_file() {
    let dir = dir();
    for (path, reason) in [
        (dir.path().join("none.so"), "plugin does not exist"),
        (dir.path().to_owned(), "plugin is not a file"),
    ] {
        let error = find(&Target::Path(path.clone())).unwrap_err();
        assert_eq!(error.message(), format!("{reason}: {}", path.display()));
        assert_eq!(
            error.hint_text(),
            Some("pass the path of the plugin's .so file, or its id")
        );
        assert_eq!(error.kind(), ErrorKind::Config);
    }
}

#[test]
fn an_object_file_is_not_a_library() {
    let dir = dir();
    let path = dir.path().join("a.o");
    let cc = Command::new("cc")
        .args(["-c", "-x", "c", "/dev/null", "-o"])
        .arg(&path)
        .status();
    assert!(cc.unwrap().success());
    assert_refused(
        &path,
        "plugin is an object file, not a shared library",
        NO_LIBRARY,
    );
}

#[test]
fn built_for_another_machine() {
    let dir = dir();
    let path = Fixture::metric("another-machine").build(dir.path());
    let good = fs::read(&path).unwrap();
    for (at, byte, reason) in [
        (
            18,
            183,
            "plugin is built for aarch64, this host runs on x86_64",
        ),
        (18, 3, "plugin is built for x86, this host runs on x86_64"),
        (
            18,
            99,
            "plugin is built for ELF machine 99, this host runs on x86_64",
        ),
        (
            4,
            1,
            "plugin is built for x86_64 with 32-bit pointers, this host runs on x86_64",
        ),
    ] {
        let mut bytes = good.clone();
        bytes[at] = byte;
        fs::write(&path, bytes).unwrap();
        assert_refused(&path, reason, "build it for this machine");
    }
}

#[test]
fn another_major_version() {
    let dir = dir();
    let path = Fixture::metric("wrong-major")
        .flag("-DENTRY=host_plugin_entry_v2")
        .build(dir.path());
    let reason = "plugin wrong-major uses ABI 2, but this host supports ABI 1";
    assert_refused(&path, reason, "rebuild it against ABI 1.x");
    let path = Fixture::metric("wrong-manifest-major")
        .manifest_with("abi", json!([3, 1]))
        .build(dir.path());
    let reason = "plugin wrong-manifest-major uses ABI 3, but this host supports ABI 1";
    assert_refused(&path, reason, "rebuild it against ABI 1.x");
}

#[test]
fn another_minor_version() {
    let dir = dir();
    let newer = Fixture::metric("newer-minor").manifest_with("abi", json!([1, 9]));
    newer.load(dir.path()).unwrap();
    let path = Fixture::metric("too-new")
        .manifest_with("min_host_minor", json!(9))
        .build(dir.path());
    assert_refused(
        &path,
        &format!("plugin too-new needs ABI 1.9, but this host supports ABI 1.{HOST_ABI_MINOR}"),
        "use a newer host, or an older version of the plugin",
    );
    assert_not_loaded(
        &Fixture::metric("too-new-in-code").flag("-DMIN_HOST_MINOR=9"),
        &format!(
            "plugin too-new-in-code needs ABI 1.9, but this host supports ABI 1.{HOST_ABI_MINOR}"
        ),
    );
}

#[test]
fn no_entry_function() {
    let dir = dir();
    let path = Fixture::metric("no-entry")
        .flag("-DNO_ENTRY")
        .build(dir.path());
    assert_refused(
        &path,
        "plugin no-entry exports no function host_plugin_entry_v1",
        "if it is a plugin, build it with the SDK's macro, or give the function C linkage and default visibility",
    );
    let path = Fixture::metric("odd-entry")
        .flag("-DENTRY=host_plugin_entry_vX")
        .build(dir.path());
    assert_refused(
        &path,
        "plugin odd-entry exports host_plugin_entry_vX, not host_plugin_entry_v1",
        "its author must rename the entry function",
    );
}

#[test]
fn two_entry_functions() {
    let dir = dir();
    let path = Fixture::metric("two-entries")
        .flag("-DSECOND_ENTRY")
        .build(dir.path());
    let error = find(&Target::Path(path.clone())).unwrap_err();
    // The linker decides the order of the two functions, so the test checks only the start and the end of the
    // message.
    let start = "plugin two-entries exports more than one entry function (host_plugin_entry_v";
    assert!(error.message().starts_with(start), "{error}");
    assert!(error.message().ends_with(&path.display().to_string()));
    assert_eq!(
        error.hint_text(),
        Some("build one library for each version of the ABI")
    );
}

#[test]
fn no_manifest() {
    let dir = dir();
    let path = Fixture::metric("no-manifest")
        .flag("-DNO_MANIFEST")
        .build(dir.path());
    assert_refused(
        &path,
        "plugin has no manifest (the section .host_manifest)",
        "build it with the SDK's macro, or put the JSON text into that section; in Rust the item needs #[used]",
    );
}

#[test]
fn a_manifest_that_cannot_be_read() {
    let dir = dir();
    for (id, text, why) in [
        ("not-json", "id = 'x'", "expected value at line 1 column 1"),
        ("empty", "", "EOF while parsing a value at line 1 column 0"),
        (
            "a-list",
            "[1]",
            "invalid type: sequence, expected a map at line 1 column 0",
        ),
        (
            "two-values",
            "{}[]",
            "trailing characters at line 1 column 3",
        ),
    ] {
        let path = Fixture::metric(id).manifest_text(text).build(dir.path());
        let reason = format!("plugin's manifest is not one JSON object: {why}");
        assert_refused(&path, &reason, WRONG_MANIFEST);
    }
    let path = Fixture::metric("no-id")
        .manifest_text("{\"abi\": [1, 0]}")
        .build(dir.path());
    assert_refused(
        &path,
        "the plugin's manifest is invalid: id must be 1 to 64 lower-case letters, digits, - and _, beginning with a letter",
        WRONG_MANIFEST,
    );
}

#[test]
fn a_library_that_links_libtorch() {
    let dir = dir();
    let source = dir.path().join("torch.c");
    fs::write(&source, "int fake_torch(void) { return 1; }").unwrap();
    for library in ["libtorch_cpu.so", "libc10.so", "libopenblas.so.0"] {
        let fake = dir.path().join(library);
        let cc = Command::new("cc")
            .args(["-shared", "-fPIC"])
            .arg(format!("-Wl,-soname,{library}"))
            .arg(&source)
            .arg("-o")
            .arg(&fake)
            .status();
        assert!(cc.unwrap().success());
        let path = Fixture::metric("links-torch")
            .flag("-DFAKE_TORCH")
            .flag(fake.to_str().unwrap())
            .build(dir.path());
        assert_refused(
            &path,
            &format!("plugin links-torch links {library}, which only the host may use"),
            "remove it from the plugin's dependencies; the host passes tensors as DLPack views",
        );
    }
}

#[test]
fn a_library_with_a_relative_search_path() {
    let dir = dir();
    for rpath in ["$ORIGIN", "lib", "/opt/lib:"] {
        let path = Fixture::metric("rpath")
            .flag(format!("-Wl,-rpath,{rpath}"))
            .build(dir.path());
        assert_refused(
            &path,
            &format!("plugin rpath has the library search path {rpath}, which is not absolute"),
            "link the libraries in that path statically, or build the plugin without that rpath",
        );
    }
    let absolute = Fixture::metric("absolute-rpath").flag("-Wl,-rpath,/opt/lib");
    absolute.load(dir.path()).unwrap();
}

#[test]
fn a_library_whose_own_libraries_are_missing() {
    let dir = dir();
    let source = dir.path().join("gone.c");
    fs::write(&source, "int fake_torch(void) { return 1; }").unwrap();
    let gone = dir.path().join("libgone.so.7");
    let cc = Command::new("cc")
        .args(["-shared", "-fPIC", "-Wl,-soname,libgone.so.7"])
        .arg(&source)
        .arg("-o")
        .arg(&gone)
        .status();
    assert!(cc.unwrap().success());
    let path = Fixture::metric("links-gone")
        .flag("-DFAKE_TORCH")
        .flag(gone.to_str().unwrap())
        .build(dir.path());
    fs::remove_file(gone).unwrap();
    assert_error(
        load(&path, json!({})).unwrap_err(),
        "plugin links-gone cannot be loaded: libgone.so.7: cannot open shared object file: No such file or directory",
        &path,
        "`ldd -r` on the library lists the libraries that it links and those that are missing",
    );
}

#[test]
fn code_that_contradicts_its_manifest() {
    assert_not_loaded(
        &Fixture::metric("other-id").flag("-DID=\"another\""),
        "plugin other-id has the id \"other-id\" in its manifest and \"another\" in its code",
    );
    assert_not_loaded(
        &Fixture::metric("other-version").flag("-DVERSION=\"7\""),
        "plugin other-version has the version \"0.1.0\" in its manifest and \"7\" in its code",
    );
    assert_not_loaded(
        &Fixture::metric("other-kinds")
            .manifest_with("kinds", json!(["metric", "checkpoint_sink"])),
        "plugin other-kinds has the kinds [2, 3] in its manifest and [2] in its code",
    );
    assert_not_loaded(
        &Fixture::metric("other-major").flag("-DMAJOR=2"),
        "plugin other-major uses ABI 2, but this host supports ABI 1",
    );
}

#[test]
fn a_plugin_that_rejects_the_host() {
    assert_not_loaded(
        &Fixture::metric("refuses").flag("-DREFUSES"),
        "plugin refuses rejected this host: this host is not supported",
    );
}

#[test]
fn a_null_function() {
    assert_not_loaded(
        &Fixture::metric("null-function").flag("-DNULL_FUNCTION"),
        "plugin null-function lacks the function merge_state of metric",
    );
}

#[test]
fn a_wrong_struct_size() {
    assert_not_loaded(
        &Fixture::metric("short-table").flag("-DTABLE_SIZE=60"),
        "plugin short-table lacks the function compute of metric",
    );
    assert_not_loaded(
        &Fixture::metric("tiny-table").flag("-DTABLE_SIZE=3"),
        "plugin tiny-table has a function table of 3 bytes, not 8 to 4096, for metric",
    );
    assert_not_loaded(
        &Fixture::metric("huge-table").flag("-DTABLE_SIZE=0xffffffffu"),
        "plugin huge-table has a function table of 4294967295 bytes, not 8 to 4096, for metric",
    );
    assert_not_loaded(
        &Fixture::metric("short-plugin").flag("-DPLUGIN_SIZE=16"),
        "plugin short-plugin has a description of 16 bytes, fewer than the 64 of ABI 1.0",
    );
    assert_not_loaded(
        &Fixture::metric("short-item").flag("-DITEM_SIZE=4"),
        "plugin short-item has a description with an item of 4 bytes, not 16 to 4096",
    );
}
