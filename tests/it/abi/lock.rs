//! Checks that the ABI keeps its promises. The file `plugins/abi/abi.lock` lists all structs, fields,
//! functions and constants of the ABI, and the names of all kinds, needs and events. Lines can be appended to
//! the file, but never changed.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::{env, fs};

use host_core::Need;
use host_plugin::{EventKind, PluginKind};
use host_plugin_abi::{HOST_ABI_MAJOR, HOST_ABI_MINOR};
use sha2::{Digest, Sha256};

use super::layout::rust_layout;
use super::{folder, generate};

/// The released versions, each with the digest of its lines in the lock. A version is added here when it is
/// released. Later additions to the ABI belong to the next minor version.
const FROZEN: [(&str, &str); 3] = [
    (
        "1.0",
        "dedc0e11423773a93c7b3c4eca997ab33d4dcbf497443f5050c4e7de457882cc",
    ),
    (
        "1.1",
        "1d424f8466439ba9e82974bcc63560e213c516f9c99d7fa793a3a1361c23727c",
    ),
    (
        "1.2",
        "68611a7ace7beb76c6d4c8a2fdfa425cd81e3e8e11b3cc2cdff795ac593f17de",
    ),
];

const HEAD: &str = "\
# The promises of version 1 of the plugin ABI, one per line, after the minor version that made them.
# Lines are only ever appended: `make bless` appends new promises and never changes a line.
";

/// A promise: its subject and its terms. The terms of a subject do not change, except that a struct can grow.
type Promise = (String, String);

#[test]
fn the_lock_is_fresh_and_its_promises_are_kept() {
    let path = folder().join("abi.lock");
    let mut lock = fs::read_to_string(&path).unwrap_or_else(|_| HEAD.to_owned());
    let fresh = unrecorded(&lock, &promises()).unwrap_or_else(|broken| panic!("{broken}"));
    let version = format!("{HOST_ABI_MAJOR}.{HOST_ABI_MINOR}");
    if !fresh.is_empty() && FROZEN.iter().any(|(frozen, _)| *frozen == version) {
        panic!(
            "ABI {version} was released without {}: raise HOST_ABI_MINOR",
            fresh[0].0
        );
    }
    if env::var_os("BLESS").is_some() {
        for (subject, terms) in &fresh {
            writeln!(lock, "{version} {subject} = {terms}").expect("text");
        }
        fs::write(&path, lock).expect("the lock");
    } else if let Some((subject, _)) = fresh.first() {
        panic!("plugins/abi/abi.lock lacks {subject}, run: make bless");
    }
}

#[test]
fn the_lines_of_a_released_version_do_not_change() {
    let lock = fs::read_to_string(folder().join("abi.lock")).expect("the lock");
    for (version, digest) in FROZEN {
        assert_eq!(digest_of(&lock, version), digest, "ABI {version}");
    }
}

/// Returns the SHA-256 of a version's lines.
fn digest_of(lock: &str, version: &str) -> String {
    let mut hash = Sha256::new();
    for line in lock.lines().filter(|line| is_of(line, version)) {
        hash.update(line);
        hash.update("\n");
    }
    let digest = hash.finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is_of(line: &str, version: &str) -> bool {
    line.split(' ').next() == Some(version)
}

/// Returns the promises that the lock lacks, or an error that describes a broken promise.
fn unrecorded(lock: &str, now: &[Promise]) -> Result<Vec<Promise>, String> {
    let current: HashMap<&str, &str> = now.iter().map(|(s, t)| (&**s, &**t)).collect();
    let mut recorded: HashMap<&str, &str> = HashMap::new();
    for line in lock.lines().filter(|line| !line.starts_with('#')) {
        let promise = line.split_once(' ').and_then(|(_, p)| p.split_once(" = "));
        let (subject, terms) = promise.ok_or_else(|| format!("not a line of the lock: {line}"))?;
        // If a struct has grown, the lock lists several sizes of it. The last of them counts.
        recorded.insert(subject, terms);
    }
    let mut fresh = Vec::new();
    for (subject, terms) in now {
        match recorded.get(&**subject) {
            None => {
                if let Some((name, offset)) = place(subject, terms) {
                    stands_behind(&recorded, name, offset)?;
                }
                fresh.push((subject.clone(), terms.clone()));
            }
            Some(promised) if promised == terms => {}
            Some(promised) if may_become(subject, promised, terms, &current) => {
                fresh.push((subject.clone(), terms.clone()));
            }
            Some(promised) => {
                return Err(format!(
                    "the ABI promised {subject} = {promised}, and now it is {terms}"
                ));
            }
        }
    }
    recorded.retain(|subject, _| !current.contains_key(subject));
    match recorded.keys().min() {
        None => Ok(fresh),
        Some(gone) => Err(format!("the ABI promised {gone}, and it is gone")),
    }
}

/// Returns the struct and the offset of a field.
fn place<'a>(subject: &'a str, terms: &str) -> Option<(&'a str, usize)> {
    let (name, _) = subject.strip_prefix("field ")?.split_once('.')?;
    Some((name, terms.split_once(": ")?.0.parse().ok()?))
}

/// Returns an error if a new field begins before the end of the promised struct. A field in the old padding
/// would be within the size that older builds report, so their padding would be read as the field.
fn stands_behind(recorded: &HashMap<&str, &str>, name: &str, offset: usize) -> Result<(), String> {
    let size = recorded.get(&*format!("size {name}"));
    match size.and_then(|size| size.parse::<usize>().ok()) {
        Some(size) if offset < size => Err(format!(
            "a new field of {name} is at {offset}, within the {size} bytes that were promised"
        )),
        _ => Ok(()),
    }
}

/// Whether the terms may change: only a struct that contains its own size may grow.
fn may_become(subject: &str, promised: &str, terms: &str, current: &HashMap<&str, &str>) -> bool {
    let Some(name) = subject.strip_prefix("size ") else {
        return false;
    };
    let says_its_size = current.contains_key(&*format!("field {name}.struct_size"));
    let size = |terms: &str| terms.parse::<usize>().unwrap_or(0);
    says_its_size && size(terms) > size(promised)
}

/// Returns everything that a plugin can depend on. Collects it from the crate, from the crate's header, and
/// from the names of kinds, needs and events.
fn promises() -> Vec<Promise> {
    let declarations = declarations(&generate());
    let mut promises: Vec<Promise> = Vec::new();
    for line in rust_layout().lines() {
        let (name, number) = line.rsplit_once(' ').expect("a name and a number");
        promises.push(match name.contains('.') {
            false => (format!("size {name}"), number.to_owned()),
            true => {
                let subject = format!("field {name}");
                let declared = declarations.iter().find(|(of, _)| *of == subject);
                let (_, declared) = declared.expect("the header has every field");
                (subject, format!("{number}: {declared}"))
            }
        });
    }
    let others = declarations.into_iter();
    promises.extend(others.filter(|(subject, _)| !subject.starts_with("field ")));
    let kinds = PluginKind::ALL.map(|kind| ("kind", kind.name()));
    let needs = Need::ALL.map(|need| ("need", need.name()));
    let events = EventKind::ALL.map(|event| ("event", event.name()));
    for (of, name) in kinds.into_iter().chain(needs).chain(events) {
        promises.push((format!("{of} {name}"), "a word".to_owned()));
    }
    promises
}

/// Returns the constants, types and fields of a header that was written by cbindgen.
fn declarations(header: &str) -> Vec<Promise> {
    let mut found = Vec::new();
    let mut code = String::new();
    for line in header.lines() {
        let line = line.split("//").next().unwrap_or_default().trim();
        if let Some(constant) = line.strip_prefix("#define ") {
            // Excludes the header's guard, which has no value, and the minor version, which changes.
            if let Some((name, value)) = constant.split_once(' ')
                && name != "HOST_ABI_MINOR"
            {
                found.push((format!("constant {name}"), value.to_owned()));
            }
        } else if !line.starts_with('#') {
            code += line;
            code.push(' ');
        }
    }
    let code = code.split_whitespace().collect::<Vec<_>>().join(" ");
    for declared in code.split("typedef ").skip(1) {
        if let Some((body, rest)) = declared
            .strip_prefix("struct {")
            .and_then(|whole| whole.split_once('}'))
        {
            let name = rest.split(';').next().expect("a name").trim();
            for field in body.split(';').map(str::trim).filter(|f| !f.is_empty()) {
                found.push((
                    format!("field {name}.{}", declared_name(field)),
                    field.into(),
                ));
            }
        } else {
            let whole = declared.split(';').next().expect("a declaration");
            found.push((format!("type {}", declared_name(whole)), whole.to_owned()));
        }
    }
    found
}

/// Returns the name that a C declaration declares.
fn declared_name(declaration: &str) -> &str {
    let name = match declaration.split_once("(*") {
        Some((_, function)) => function.split(')').next(),
        None => declaration.rsplit(' ').next(),
    };
    name.expect("a name").trim_start_matches('*')
}

#[test]
fn promises_are_read_from_the_whole_header() {
    let promises = promises();
    let terms = |subject: &str| {
        let found = promises.iter().find(|(of, _)| of == subject);
        &*found.unwrap_or_else(|| panic!("{subject}")).1
    };
    assert_eq!(terms("constant HOST_TEMPORARY"), "5");
    assert_eq!(terms("type HostStatus"), "int32_t HostStatus");
    assert_eq!(
        terms("type HostDestroy"),
        "void (*HostDestroy)(void *instance)"
    );
    assert_eq!(terms("size HostStr"), "16");
    assert_eq!(
        terms("field HostMetric.update"),
        "32: HostStatus (*update)(void *instance, const HostBatch *batch)"
    );
    assert_eq!(terms("field DLTensor.strides"), "32: int64_t *strides");
    assert_eq!(terms("need loss_sum"), "a word");
}

#[test]
fn a_broken_promise_is_found() {
    let table = |promises: &[(&str, &str)]| -> Vec<Promise> {
        let owned = |(subject, terms): &(&str, &str)| ((*subject).into(), (*terms).into());
        promises.iter().map(owned).collect()
    };
    let lock = "# a word\n\
                1.0 size HostStr = 16\n\
                1.0 field HostStr.ptr = 0: const uint8_t *ptr\n\
                1.0 size HostOut = 16\n\
                1.0 field HostOut.struct_size = 0: uint32_t struct_size\n\
                1.0 field HostOut.put = 8: HostStatus (*put)(void *ctx)\n\
                1.0 constant HOST_OK = 0\n";
    let promised = [
        ("size HostStr", "16"),
        ("field HostStr.ptr", "0: const uint8_t *ptr"),
        ("size HostOut", "16"),
        ("field HostOut.struct_size", "0: uint32_t struct_size"),
        ("field HostOut.put", "8: HostStatus (*put)(void *ctx)"),
        ("constant HOST_OK", "0"),
    ];
    assert_eq!(unrecorded(lock, &table(&promised)), Ok(Vec::new()));

    let changed = |at: usize, terms: &'static str| {
        let mut now = promised;
        now[at].1 = terms;
        unrecorded(lock, &table(&now))
    };
    for (at, terms) in [
        (0, "24"),
        (1, "0: uint8_t *ptr"),
        (2, "8"),
        (4, "12: HostStatus (*put)(void *ctx)"),
        (4, "8: HostStatus (*put)(void *ctx, double value)"),
        (5, "1"),
    ] {
        let broken = changed(at, terms).expect_err(terms);
        assert!(broken.contains(promised[at].0), "{broken}");
        assert!(broken.ends_with(&format!("now it is {terms}")), "{broken}");
    }
    assert_eq!(changed(2, "24"), Ok(table(&[("size HostOut", "24")])));

    let gone = unrecorded(lock, &table(&promised[..5])).expect_err("gone");
    assert_eq!(gone, "the ABI promised constant HOST_OK, and it is gone");

    let with = |more: (&'static str, &'static str)| {
        let mut now = promised.to_vec();
        now.push(more);
        unrecorded(lock, &table(&now))
    };
    let behind = ("field HostOut.end", "16: HostStatus (*end)(void *ctx)");
    assert_eq!(with(behind), Ok(table(&[behind])));
    let padding = with(("field HostOut.flags", "4: uint32_t flags")).expect_err("padding");
    assert!(padding.contains("within the 16 bytes"), "{padding}");
}

#[test]
fn a_digest_covers_only_the_lines_of_its_version() {
    let lock = "# x\n1.0 a = 1\n1.1 b = 2\n1.0 c = 3\n1.10 d = 4\n";
    assert_eq!(
        digest_of(lock, "1.0"),
        digest_of("1.0 a = 1\n1.0 c = 3\n", "1.0")
    );
    assert_ne!(digest_of(lock, "1.1"), digest_of(lock, "1.0"));
    assert_ne!(
        digest_of("1.0 a = 2\n1.0 c = 3\n", "1.0"),
        digest_of(lock, "1.0")
    );
}
