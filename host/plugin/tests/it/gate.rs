//! Inspection of a library's tables before the library is loaded.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use host_plugin::{Target, inspect};
use serde_json::json;

use crate::elf::{SH_NAME, entry_symbol, section, with_manifest};
use crate::fixture::{Fixture, dir, find, load};
use crate::refusals::{WRONG_MANIFEST, assert_error, assert_refused};

/// Writes an additional source file for the compiler.
fn source(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Builds a library that another library can link against.
fn library(dir: &Path, name: &str) -> PathBuf {
    let source = source(dir, "linked.c", "int fake_torch(void) { return 1; }");
    let library = dir.join(name);
    let cc = Command::new("cc")
        .args(["-shared", "-fPIC", &format!("-Wl,-soname,{name}"), &source])
        .arg("-o")
        .arg(&library)
        .status();
    assert!(cc.unwrap().success());
    library
}

#[test]
fn another_byte_order_or_word_size() {
    let dir = dir();
    let path = Fixture::metric("another-order").build(dir.path());
    let good = fs::read(&path).unwrap();
    for (class, order, machine, name) in [
        (2, 2, [0, 22], "s390x, big-endian"),
        (1, 2, [0, 20], "powerpc, big-endian"),
        (2, 2, [0, 183], "aarch64, big-endian"),
        (1, 1, [3, 0], "x86"),
        (1, 1, [40, 0], "arm"),
        (2, 1, [8, 1], "ELF machine 264"),
    ] {
        let mut bytes = good.clone();
        (bytes[4], bytes[5]) = (class, order);
        bytes[18..20].copy_from_slice(&machine);
        fs::write(&path, bytes).unwrap();
        let reason = format!("plugin is built for {name}, this host runs on x86_64");
        assert_refused(&path, &reason, "build it for this machine");
    }
    let mut bytes = good;
    bytes[4] = 9;
    fs::write(&path, bytes).unwrap();
    let reason = "plugin is a damaged shared library: its header is not valid";
    assert_refused(&path, reason, "build or copy it again");
}

#[test]
fn an_entry_that_cannot_be_called() {
    let dir = dir();
    let data = "__attribute__((visibility(\"default\"))) int host_plugin_entry_v1 = 1;";
    let path = Fixture::metric("data-entry")
        .flag("-DNO_ENTRY")
        .flag(source(dir.path(), "data.c", data))
        .build(dir.path());
    let reason = "plugin data-entry exports host_plugin_entry_v1 as data, not as a function";
    let hint = "its author must define it as a function";
    assert_refused(&path, reason, hint);
    // The symbol's type is a function, but its address is in a data section.
    let path = Fixture::metric("data-entry").build(dir.path());
    let mut bytes = fs::read(&path).unwrap();
    let (symbol, data) = (entry_symbol(&bytes), section(&bytes, ".host_manifest"));
    let address = bytes[data.header + 16..data.header + 24].to_vec();
    bytes[symbol + 8..symbol + 16].copy_from_slice(&address);
    fs::write(&path, bytes).unwrap();
    assert_refused(&path, reason, hint);
}

/// Two versions of one symbol count as two functions.
#[test]
fn an_entry_twice_under_one_name() {
    let dir = dir();
    let versions = source(dir.path(), "versions.map", "A { };\nB { };\n");
    let second = source(
        dir.path(),
        "second.c",
        "__asm__(\".symver one, host_plugin_entry_v1@A\\n.symver two, host_plugin_entry_v1@@B\");\n\
         __attribute__((visibility(\"default\"))) void *one(void *api) { return 0; }\n\
         __attribute__((visibility(\"default\"))) void *two(void *api) { return 0; }\n",
    );
    let path = Fixture::metric("entry-twice")
        .flag("-DNO_ENTRY")
        .flag(second)
        .flag(format!("-Wl,--version-script={versions}"))
        .build(dir.path());
    assert_refused(
        &path,
        "plugin entry-twice exports more than one entry function (host_plugin_entry_v1, host_plugin_entry_v1)",
        "build one library for each version of the ABI",
    );
}

#[test]
fn more_than_one_manifest() {
    let dir = dir();
    let reason = "plugin has 2 manifests, but a library can contain only one plugin";
    let hint = "build one library for each plugin";
    // Two manifests in one section, as written by the linker.
    let second =
        "__attribute__((section(\".host_manifest\"), used)) static const char second[] = MANIFEST;";
    let path = Fixture::metric("two-manifests")
        .flag(source(dir.path(), "second.c", second))
        .build(dir.path());
    assert_refused(&path, reason, hint);
    // Two manifests in two sections, as another tool might write them.
    let path = Fixture::metric("two-sections").build(dir.path());
    let mut bytes = fs::read(&path).unwrap();
    let (manifest, other) = (
        section(&bytes, ".host_manifest"),
        section(&bytes, ".comment"),
    );
    let at = manifest.header + SH_NAME;
    let name = bytes[at..at + 4].to_vec();
    bytes[other.header + SH_NAME..other.header + SH_NAME + 4].copy_from_slice(&name);
    fs::write(&path, bytes).unwrap();
    assert_refused(&path, reason, hint);
}

#[test]
fn a_manifest_of_other_bytes() {
    let dir = dir();
    let path = Fixture::metric("other-bytes").build(dir.path());
    let good = fs::read(&path).unwrap();
    let mut long = vec![b' '; (1 << 20) + 1];
    long[0] = b'{';
    let deep = format!("{{\"a\":{}", "[".repeat(100_000));
    let id = |id: &str| format!("{{\"id\": {id:?}, \"abi\": [1, 0], \"version\": \"1\"}}");
    for (manifest, why) in [
        (
            &b"{\"id\": \"x\xff\"}"[..],
            "plugin's manifest is not one JSON object: invalid utf-8 sequence of 1 bytes from index 9",
        ),
        (
            &long,
            "plugin's manifest is not one JSON object: it has 1048577 bytes, more than 1 MiB",
        ),
        (
            deep.as_bytes(),
            "plugin's manifest is not one JSON object: recursion limit exceeded at line 1 column 132",
        ),
        (
            id("../../etc/passwd").as_bytes(),
            "the plugin's manifest is invalid: id must be 1 to 64 lower-case letters, digits, - and _, beginning with a letter",
        ),
        (
            id("ok").as_bytes(),
            "the plugin's manifest is invalid: kinds must be a list of the kinds that it implements",
        ),
    ] {
        let bytes = with_manifest(&good, manifest);
        fs::write(&path, &bytes).unwrap();
        assert_refused(&path, why, WRONG_MANIFEST);
    }
}

#[test]
fn a_manifest_with_a_wrong_field() {
    let dir = dir();
    let newer = "use a newer host, or an older version of the plugin";
    for (key, value, reason, hint) in [
        (
            "version",
            json!("latest"),
            "the plugin's manifest is invalid: version must be like 1.2.3: at most 64 letters, digits, . - and +, beginning with a digit",
            WRONG_MANIFEST,
        ),
        (
            "needs",
            json!(["tears"]),
            "unknown value \"tears\" in needs of the plugin's manifest",
            newer,
        ),
        (
            "config",
            json!({"type": "objekt"}),
            "the plugin's manifest is invalid: config must be a JSON Schema (\"objekt\" is not valid under any of the schemas listed in the 'anyOf' keyword)",
            WRONG_MANIFEST,
        ),
        (
            "config",
            json!({"$ref": "https://example.org/schema"}),
            "the plugin's manifest is invalid: config must be a JSON Schema (it refers to \"https://example.org/schema\", which is not inside the schema)",
            WRONG_MANIFEST,
        ),
    ] {
        let path = Fixture::metric("wrong-field")
            .manifest_with(key, value)
            .build(dir.path());
        assert_refused(&path, reason, hint);
    }
}

#[test]
fn libraries_of_the_host_under_any_name() {
    let dir = dir();
    let hint = "remove it from the plugin's dependencies; the host passes tensors as DLPack views";
    for (name, how) in [
        ("libmkl_rt.so.2", "needed"),
        ("libc10_cuda.so", "needed"),
        ("libtorch_cpu.so", "filter"),
        ("libtorch.so", "auxiliary"),
    ] {
        let fixture = Fixture::metric("links-hosts");
        let path = match how {
            "needed" => fixture
                .flag("-DFAKE_TORCH")
                .flag(library(dir.path(), name).to_str().unwrap()),
            _ => fixture.flag(format!("-Wl,--{how},/opt/{name}")),
        }
        .build(dir.path());
        let shown = match how {
            "needed" => name.to_owned(),
            _ => format!("/opt/{name}"),
        };
        let reason = format!("plugin links-hosts links {shown}, which only the host may use");
        assert_refused(&path, &reason, hint);
    }
}

#[test]
fn relative_search_paths_in_both_tags() {
    let dir = dir();
    for (tags, place) in [
        ("--enable-new-dtags", "$ORIGIN/../lib"),
        ("--disable-new-dtags", "${ORIGIN}"),
        ("--disable-new-dtags", "/opt/lib:lib"),
    ] {
        let path = Fixture::metric("places")
            .flag(format!("-Wl,{tags},-rpath,{place}"))
            .build(dir.path());
        assert_refused(
            &path,
            &format!("plugin places has the library search path {place}, which is not absolute"),
            "link the libraries in that path statically, or build the plugin without that rpath",
        );
    }
}

/// Text from a library can reach a terminal, so control characters in it are replaced.
#[test]
fn names_that_move_the_cursor() {
    let dir = dir();
    let path = Fixture::metric("cursor")
        .flag(format!("-Wl,-rpath,a\u{1b}[2J{}", "b".repeat(300)))
        .build(dir.path());
    let shown = format!("a [2J{}…", "b".repeat(195));
    assert_refused(
        &path,
        &format!("plugin cursor has the library search path {shown}, which is not absolute"),
        "link the libraries in that path statically, or build the plugin without that rpath",
    );
}

#[test]
fn text_relocations_and_an_executable_stack() {
    let dir = dir();
    let absolute = source(
        dir.path(),
        "absolute.s",
        ".text\n.globl absolute\nabsolute: .quad absolute\n.section .note.GNU-stack,\"\",@progbits\n",
    );
    let path = Fixture::metric("changed-code")
        .flag(absolute)
        .flag("-Wl,-z,notext")
        .build(dir.path());
    assert_refused(
        &path,
        "plugin changed-code has text relocations (code that the loader must modify)",
        "compile all of it with -fPIC",
    );
    let path = Fixture::metric("run-stack")
        .flag("-Wl,-z,execstack")
        .build(dir.path());
    assert_refused(
        &path,
        "plugin run-stack requires an executable stack",
        "link it with -z noexecstack; an assembly file needs a .note.GNU-stack section",
    );
}

/// Only the dynamic loader can determine which symbols the linked libraries define.
#[test]
fn an_undefined_function() {
    let dir = dir();
    let path = Fixture::metric("nowhere")
        .flag("-DFAKE_TORCH")
        .build(dir.path());
    find(&Target::Path(path.clone())).unwrap();
    assert_error(
        load(&path, json!({})).unwrap_err(),
        "plugin nowhere cannot be loaded: undefined symbol: fake_torch",
        &path,
        "`ldd -r` on the library lists the libraries that it links and those that are missing",
    );
}

/// A table is not read if it is larger than the file, or larger than the limit.
#[test]
fn tables_of_any_size() {
    let dir = dir();
    let path = Fixture::metric("tables").build(dir.path());
    let good = fs::read(&path).unwrap();
    for name in [".dynsym", ".dynstr", ".shstrtab", ".host_manifest"] {
        for size in [1 << 63, 1 << 40, (64 << 20) + 1, u64::MAX] {
            let mut bytes = good.clone();
            let header = section(&bytes, name).header;
            crate::elf::put_u64(&mut bytes, header + crate::elf::SH_SIZE, size);
            assert!(inspect(&bytes, &path).is_err(), "{name} of {size}");
        }
    }
}

/// A library with a second symbol table is rejected. Otherwise a library could have many tables of the
/// maximum size, and inspecting them would take very long.
#[test]
fn a_second_symbol_table() {
    let dir = dir();
    let path = Fixture::metric("symbols").build(dir.path());
    let mut bytes = fs::read(&path).unwrap();
    let other = section(&bytes, ".symtab").header + 4;
    bytes[other..other + 4].copy_from_slice(&11u32.to_ne_bytes());
    let error = inspect(&bytes, &path).unwrap_err();
    let why = "it has more than one symbol table";
    assert!(error.message().contains(why), "{error}");
}

/// The loader uses the last string table, so the inspection must do the same.
#[test]
fn two_string_tables() {
    let dir = dir();
    let path = Fixture::metric("names").build(dir.path());
    let mut bytes = fs::read(&path).unwrap();
    let dynamic = section(&bytes, ".dynamic");
    let mut entries = (dynamic.offset..dynamic.offset + dynamic.size).step_by(16);
    let count = entries
        .rfind(|&at| crate::elf::u64_at(&bytes, at) == 0x6fff_fff9)
        .expect("a DT_RELACOUNT");
    crate::elf::put_u64(&mut bytes, count, 5);
    crate::elf::put_u64(&mut bytes, count + 8, u64::MAX / 2);
    let error = inspect(&bytes, &path).unwrap_err();
    let why = "its string table is not in any loaded segment";
    assert!(error.message().contains(why), "{error}");
}
