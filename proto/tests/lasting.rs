//! Checks that `tracker.v1` stays compatible on the wire. The file `tracker.lock`, next to the `.proto`
//! files, lists every method, field and enum value. Each line is a promise to clients. Lines are only ever
//! appended.
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto};
use prost_types::{FileDescriptorProto, FileDescriptorSet};

const HEAD: &str = "\
# The promises of tracker.v1 to its clients, one per line: each method, field and enum value.
# Lines are only ever appended: `make bless` appends new promises and never changes a line. The number and the
# name of a removed field or value stay `reserved` in the .proto file.
";

/// Promises to clients. The key is the subject of a promise, for example a field. The value is its terms, for
/// example the field's type and name. The terms of a subject never change.
type Promises = BTreeMap<String, String>;

#[test]
fn the_lock_is_complete_and_its_promises_are_kept() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tracker/v1/tracker.lock");
    let mut lock = std::fs::read_to_string(&path).unwrap_or_else(|_| HEAD.to_owned());
    let fresh = unrecorded(&lock, &now()).unwrap_or_else(|broken| panic!("{broken}"));
    if std::env::var_os("BLESS").is_some() {
        for (subject, terms) in &fresh {
            writeln!(lock, "{subject} = {terms}").expect("text");
        }
        std::fs::write(&path, lock).expect("the lock");
    } else if let Some((subject, _)) = fresh.first_key_value() {
        panic!("{subject} is missing in tracker.lock; run `make bless`");
    }
}

#[test]
fn changed_and_missing_promises_are_found() {
    let lock = "field Run.1 = string name\nvalue State.1 = STATE_ON\n";
    let promises = |lines: &[(&str, &str)]| -> Promises {
        let owned = |&(subject, terms): &(&str, &str)| (subject.to_owned(), terms.to_owned());
        lines.iter().map(owned).collect()
    };
    let kept = [
        ("field Run.1", "string name"),
        ("value State.1", "STATE_ON"),
    ];
    assert_eq!(unrecorded(lock, &promises(&kept)), Ok(Promises::new()));

    let more = promises(&[kept[0], kept[1], ("field Run.2", "int64 steps")]);
    let fresh = unrecorded(lock, &more).expect("an addition");
    assert_eq!(fresh, promises(&[("field Run.2", "int64 steps")]));

    // Each of these breaks a promise: a changed type, a changed name, and a removed value whose number is not
    // reserved.
    for broken in [
        promises(&[("field Run.1", "bytes name"), kept[1]]),
        promises(&[("field Run.1", "string title"), kept[1]]),
        promises(&kept[..1]),
    ] {
        assert!(unrecorded(lock, &broken).is_err(), "{broken:?}");
    }
    // A value may be removed if its number and name are reserved.
    let reserved = promises(&[kept[0], ("value State.1", "reserved STATE_ON")]);
    assert_eq!(unrecorded(lock, &reserved), Ok(Promises::new()));
}

/// Returns the promises that are not in the lock.
///
/// # Errors
/// If promises of the lock are broken, returns an error that contains the first of them.
fn unrecorded(lock: &str, now: &Promises) -> Result<Promises, String> {
    let mut fresh = now.clone();
    for line in lock.lines().filter(|line| !line.starts_with('#')) {
        let (subject, promised) = line
            .split_once(" = ")
            .ok_or_else(|| format!("not a line of the lock: {line}"))?;
        fresh.remove(subject);
        match now.get(subject) {
            Some(terms) if terms == promised || is_retired(terms, promised) => {}
            Some(terms) => {
                return Err(format!(
                    "tracker.v1 promised {subject} = {promised}, but it is now {terms}"
                ));
            }
            None => {
                return Err(format!(
                    "tracker.v1 promised {subject} = {promised}, but it was removed: reserve it"
                ));
            }
        }
    }
    // A reserved number needs no line in the lock.
    fresh.retain(|_, terms| !terms.starts_with("reserved"));
    Ok(fresh)
}

/// Whether these terms reserve the promised name.
fn is_retired(terms: &str, promised: &str) -> bool {
    let names = terms.strip_prefix("reserved ").unwrap_or_default();
    let name = promised.rsplit(' ').next();
    names.split(' ').any(|reserved| Some(reserved) == name)
}

fn now() -> Promises {
    let mut compiler = protox::Compiler::new([env!("CARGO_MANIFEST_DIR")]).expect("the folder");
    compiler
        .open_files(["tracker/v1/tracker.proto", "tracker/v1/control.proto"])
        .unwrap_or_else(|error| panic!("{error}"));
    let set: FileDescriptorSet = compiler.file_descriptor_set();
    let mut promises = Promises::new();
    for file in &set.file {
        of_file(file, &mut promises);
    }
    promises
}

fn of_file(file: &FileDescriptorProto, promises: &mut Promises) {
    let within = format!(".{}.", file.package());
    let short = |name: &str| name.strip_prefix(&within).unwrap_or(name).to_owned();
    for service in &file.service {
        for method in &service.method {
            let stream = |is_stream| if is_stream { "stream " } else { "" };
            let terms = format!(
                "{}{} -> {}{}",
                stream(method.client_streaming()),
                short(method.input_type()),
                stream(method.server_streaming()),
                short(method.output_type())
            );
            let subject = format!("method {}.{}", service.name(), method.name());
            promises.insert(subject, terms);
        }
    }
    for message in &file.message_type {
        of_message(message, &short, promises);
    }
    for kind in &file.enum_type {
        of_enum(kind, promises);
    }
}

fn of_message(message: &DescriptorProto, short: &dyn Fn(&str) -> String, promises: &mut Promises) {
    let reserved = format!("reserved {}", message.reserved_name.join(" "));
    for range in &message.reserved_range {
        // The end of a message's reserved range is exclusive.
        for number in range.start()..range.end() {
            let subject = format!("field {}.{number}", message.name());
            promises.insert(subject, reserved.clone());
        }
    }
    for field in &message.field {
        let subject = format!("field {}.{}", message.name(), field.number());
        let terms = format!(
            "{}{} {}",
            shape(field, message),
            kind(field, short),
            field.name()
        );
        promises.insert(subject, terms);
    }
    // The lock has no lines for nested types, so nested types are not allowed.
    assert!(message.nested_type.is_empty(), "{}", message.name());
    assert!(message.enum_type.is_empty(), "{}", message.name());
}

fn of_enum(kind: &EnumDescriptorProto, promises: &mut Promises) {
    let reserved = format!("reserved {}", kind.reserved_name.join(" "));
    for range in &kind.reserved_range {
        // The end of an enum's reserved range is inclusive.
        for number in range.start()..=range.end() {
            promises.insert(format!("value {}.{number}", kind.name()), reserved.clone());
        }
    }
    for value in &kind.value {
        let subject = format!("value {}.{}", kind.name(), value.number());
        promises.insert(subject, value.name().to_owned());
    }
}

/// Returns `repeated `, `optional `, `oneof body ` or the empty string.
fn shape(field: &FieldDescriptorProto, message: &DescriptorProto) -> String {
    if field.label() == Label::Repeated {
        return "repeated ".to_owned();
    }
    if field.proto3_optional() {
        return "optional ".to_owned();
    }
    let oneof = field
        .oneof_index
        .and_then(|index| usize::try_from(index).ok());
    oneof.map_or_else(String::new, |index| {
        format!("oneof {} ", message.oneof_decl[index].name())
    })
}

/// Returns a field's type as written in the `.proto` file.
fn kind(field: &FieldDescriptorProto, short: &dyn Fn(&str) -> String) -> String {
    match field.r#type() {
        Type::Message | Type::Enum => short(field.type_name()),
        // Converts `TYPE_INT64` to `int64`.
        scalar => scalar.as_str_name()["TYPE_".len()..].to_ascii_lowercase(),
    }
}
