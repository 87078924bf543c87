//! Checks the style of the `.proto` files: buf's STANDARD rules, and a comment on every element.
#![allow(missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use prost_types::field_descriptor_proto::Label;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto};
use prost_types::{EnumOptions, FileDescriptorSet, ServiceDescriptorProto};

const OURS: [&str; 2] = ["tracker/v1/tracker.proto", "tracker/v1/control.proto"];
/// The files that use TensorBoard's names for messages and fields. In these files, only the comments are
/// checked.
const THEIRS: [&str; 3] = [
    "tensorboard/summary.proto",
    "tensorboard/hparams/plugin_data.proto",
    "tensorboard/data/data_provider.proto",
];

#[test]
fn our_files_have_no_faults() {
    let set = compile(Path::new(env!("CARGO_MANIFEST_DIR")), &OURS);
    assert_eq!(faults(&set), BTreeSet::new());
}

#[test]
fn every_element_of_theirs_has_a_comment() {
    for file in compile(Path::new(env!("CARGO_MANIFEST_DIR")), &THEIRS).file {
        let mut look = Look::at(&file);
        look.comments();
        assert_eq!(look.faults, BTreeSet::new());
    }
}

/// A file without faults. The test below plants faults in it.
const SOUND: &str = r#"syntax = "proto3";
package demo.v1;
// Reads.
service ReadService {
  // Reads one.
  rpc ReadOne(ReadOneRequest) returns (ReadOneResponse);
}
// Request of ReadOne.
message ReadOneRequest {
  // The run.
  string run_name = 1;
  reserved 2;
}
// Response of ReadOne.
message ReadOneResponse {
  // The state.
  oneof state {
    // The kind.
    Kind kind = 1;
  }
}
// A kind.
enum Kind {
  // Unknown.
  KIND_UNSPECIFIED = 0;
  // A good one.
  KIND_GOOD = 1;
}
"#;

#[test]
fn every_kind_of_fault_is_found() {
    assert_eq!(faults_of("demo/v1/read.proto", SOUND), BTreeSet::new());
    for (from, to, fault) in [
        ("syntax = \"proto3\";", "syntax = \"proto2\";", "syntax"),
        ("package demo.v1;", "package demo;", "package demo: version"),
        ("package demo.v1;", "package demo.v2;", "directory"),
        ("package demo.v1;", "package Demo.v1;", "package Demo.v1"),
        (
            "package demo.v1;",
            "package demo.v1;\nimport public \"google/protobuf/any.proto\";",
            "import",
        ),
        (
            "service ReadService",
            "service Reader",
            "service Reader: suffix",
        ),
        (
            "service ReadService",
            "service readService",
            "service readService: PascalCase",
        ),
        ("rpc ReadOne(", "rpc read_one(", "rpc read_one: PascalCase"),
        (
            "(ReadOneRequest)",
            "(ReadOneResponse)",
            "rpc ReadOne: request",
        ),
        (
            "(ReadOneResponse)",
            "(ReadOneRequest)",
            "rpc ReadOne: response",
        ),
        (
            "// Request of",
            "// .\nmessage read_all {}\n// Request of",
            "message read_all",
        ),
        (
            "string run_name",
            "string runName",
            "field ReadOneRequest.runName",
        ),
        (
            "string run_name",
            "string run__name",
            "field ReadOneRequest.run__name",
        ),
        (
            "reserved 2;",
            "// In it.\n  message inner {}",
            "message ReadOneRequest.inner",
        ),
        (
            "oneof state",
            "oneof theState",
            "oneof ReadOneResponse.theState",
        ),
        ("enum Kind", "enum the_kind", "enum the_kind: PascalCase"),
        ("KIND_UNSPECIFIED", "KIND_NONE", "enum Kind: zero"),
        ("KIND_GOOD", "GOOD", "value GOOD: prefix"),
        ("KIND_GOOD", "KIND_good", "value KIND_good: UPPER"),
        (
            "KIND_GOOD = 1;",
            "KIND_GOOD = 1;\n  // Again.\n  KIND_FINE = 1;\n  option allow_alias = true;",
            "enum Kind: alias",
        ),
        ("// Reads.\n", "", "service ReadService: no comment"),
        ("  // Reads one.\n", "", "rpc ReadOne: no comment"),
        (
            "// Request of ReadOne.\n",
            "",
            "message ReadOneRequest: no comment",
        ),
        ("  // The run.\n", "", "field run_name: no comment"),
        ("  // The state.\n", "", "oneof state: no comment"),
        ("    // The kind.\n", "", "field kind: no comment"),
        ("// A kind.\n", "", "enum Kind: no comment"),
        ("  // A good one.\n", "", "value KIND_GOOD: no comment"),
    ] {
        let planted = SOUND.replace(from, to).replace(
            "Kind kind",
            if to == "enum the_kind" {
                "the_kind kind"
            } else {
                "Kind kind"
            },
        );
        // In proto2, fields need a label.
        let planted = match to.contains("proto2") {
            true => planted.replace("string run_name", "required string run_name"),
            false => planted,
        };
        let found = faults_of("demo/v1/read.proto", &planted);
        assert!(
            found.iter().any(|found| found.contains(fault)),
            "{to:?} should cause {fault:?}: {found:?}"
        );
    }
    let proto2 = SOUND
        .replace("proto3", "proto2")
        .replace("string run_name", "required string run_name");
    let found = faults_of("demo/v1/read.proto", &proto2);
    assert!(
        found.contains("field ReadOneRequest.run_name: required"),
        "{found:?}"
    );
    let found = faults_of("demo/v1/ReadThings.proto", SOUND);
    assert!(
        found.contains("demo/v1/ReadThings.proto: file name"),
        "{found:?}"
    );
}

#[test]
fn a_message_belongs_to_one_method_and_a_package_to_one_folder() {
    let again = SOUND.replace(
        "  // Reads one.\n",
        "  // Reads all.\n  rpc ReadAll(ReadOneRequest) returns (ReadOneResponse);\n  // Reads one.\n",
    );
    let found = faults_of("demo/v1/read.proto", &again);
    assert!(
        found.contains("message .demo.v1.ReadOneRequest: of more than one method"),
        "{found:?}"
    );

    let more = "syntax = \"proto3\"; package demo.v1;";
    let found = faults_among(&[
        ("demo/v1/read.proto", SOUND),
        ("demo/v1/more/list.proto", more),
    ]);
    assert!(
        found.contains("demo/v1/more/list.proto: directory is not demo/v1"),
        "{found:?}"
    );
}

fn faults_of(name: &str, source: &str) -> BTreeSet<String> {
    faults_among(&[(name, source)])
}

fn faults_among(files: &[(&str, &str)]) -> BTreeSet<String> {
    let dir = tempfile::tempdir().expect("a folder");
    for (name, source) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(&path, source).expect("written");
    }
    let names: Vec<&str> = files.iter().map(|&(name, _)| name).collect();
    faults(&compile(dir.path(), &names))
}

fn compile(root: &Path, names: &[&str]) -> FileDescriptorSet {
    let mut compiler = protox::Compiler::new([root]).expect("the folder");
    compiler
        .include_source_info(true)
        .include_imports(false)
        .open_files(names)
        .unwrap_or_else(|error| panic!("{error}"));
    let set = compiler.file_descriptor_set();
    assert_eq!(set.file.len(), names.len());
    set
}

/// Returns the faults. Each has the form `element: rule`.
fn faults(set: &FileDescriptorSet) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut used: BTreeMap<&str, u32> = BTreeMap::new();
    for file in &set.file {
        let mut look = Look::at(file);
        look.names();
        look.comments();
        found.extend(look.faults);
        for method in file.service.iter().flat_map(|service| &service.method) {
            *used.entry(method.input_type()).or_default() += 1;
            *used.entry(method.output_type()).or_default() += 1;
        }
    }
    let shared = used.into_iter().filter(|&(_, methods)| methods > 1);
    found.extend(shared.map(|(name, _)| format!("message {name}: of more than one method")));
    found
}

/// Checks one file and collects its faults.
struct Look<'a> {
    file: &'a FileDescriptorProto,
    faults: BTreeSet<String>,
}

impl<'a> Look<'a> {
    fn at(file: &'a FileDescriptorProto) -> Self {
        let faults = BTreeSet::new();
        Self { file, faults }
    }

    fn must(&mut self, holds: bool, what: &str, why: &str) {
        if !holds {
            self.faults.insert(format!("{what}: {why}"));
        }
    }

    fn names(&mut self) {
        let file = self.file;
        let (folder, name) = file.name().rsplit_once('/').unwrap_or(("", file.name()));
        let package = file.package();
        let what = format!("package {package}");
        let version = package.rsplit('.').next().unwrap_or_default();
        let number = version.strip_prefix('v').unwrap_or_default();
        self.must(number.parse::<u32>().is_ok_and(|n| n > 0), &what, "version");
        self.must(
            package.split('.').all(is_lower_snake),
            &what,
            "lower_snake_case",
        );
        let home = package.replace('.', "/");
        self.must(
            folder == home,
            file.name(),
            &format!("directory is not {home}"),
        );
        let stem = name.strip_suffix(".proto").unwrap_or_default();
        self.must(is_lower_snake(stem), file.name(), "file name");
        self.must(file.syntax() == "proto3", file.name(), "syntax");
        let plain = file.public_dependency.is_empty() && file.weak_dependency.is_empty();
        self.must(plain, file.name(), "import public or weak");
        file.service
            .iter()
            .for_each(|service| self.service(service));
        file.message_type
            .iter()
            .for_each(|message| self.message("", message));
        file.enum_type.iter().for_each(|kind| self.kind("", kind));
    }

    fn service(&mut self, service: &ServiceDescriptorProto) {
        let what = format!("service {}", service.name());
        self.must(is_pascal(service.name()), &what, "PascalCase");
        self.must(service.name().ends_with("Service"), &what, "suffix");
        for method in &service.method {
            let what = format!("rpc {}", method.name());
            self.must(is_pascal(method.name()), &what, "PascalCase");
            let named = |suffix| format!(".{}.{}{suffix}", self.file.package(), method.name());
            let (request, response) = (named("Request"), named("Response"));
            self.must(method.input_type() == request, &what, "request");
            self.must(method.output_type() == response, &what, "response");
        }
    }

    fn message(&mut self, within: &str, message: &DescriptorProto) {
        let name = format!("{within}{}", message.name());
        self.must(
            is_pascal(message.name()),
            &format!("message {name}"),
            "PascalCase",
        );
        for field in &message.field {
            let what = format!("field {name}.{}", field.name());
            self.must(is_lower_snake(field.name()), &what, "lower_snake_case");
            self.must(field.label() != Label::Required, &what, "required");
        }
        // Each `optional` field has a synthetic oneof `_name`. The synthetic oneofs follow the real ones.
        let made = message
            .field
            .iter()
            .filter(|field| field.proto3_optional())
            .count();
        for oneof in &message.oneof_decl[..message.oneof_decl.len() - made] {
            let what = format!("oneof {name}.{}", oneof.name());
            self.must(is_lower_snake(oneof.name()), &what, "lower_snake_case");
        }
        let within = format!("{name}.");
        message
            .nested_type
            .iter()
            .for_each(|message| self.message(&within, message));
        message
            .enum_type
            .iter()
            .for_each(|kind| self.kind(&within, kind));
    }

    fn kind(&mut self, within: &str, kind: &EnumDescriptorProto) {
        let what = format!("enum {within}{}", kind.name());
        self.must(is_pascal(kind.name()), &what, "PascalCase");
        let aliases = kind.options.as_ref().is_some_and(EnumOptions::allow_alias);
        self.must(!aliases, &what, "alias");
        let prefix = screaming(kind.name());
        let zero = kind
            .value
            .first()
            .map(|value| (value.number(), value.name()));
        let unspecified = format!("{prefix}UNSPECIFIED");
        self.must(
            zero == Some((0, &*unspecified)),
            &what,
            "zero is not UNSPECIFIED",
        );
        for value in &kind.value {
            let what = format!("value {}", value.name());
            self.must(value.name().starts_with(&prefix), &what, "prefix");
            let lower = value.name().to_ascii_lowercase();
            let upper = is_lower_snake(&lower) && lower.to_ascii_uppercase() == value.name();
            self.must(upper, &what, "UPPER_SNAKE_CASE");
        }
    }

    /// Checks that every element has a comment. Paths use the numbers of descriptor.proto: messages 4
    /// (fields 2, messages 3, enums 4, oneofs 8), enums 5 (values 2), services 6 (methods 2).
    fn comments(&mut self) {
        let info = self.file.source_code_info.as_ref().expect("asked for");
        for location in &info.location {
            let has_comment = !location.leading_comments().trim().is_empty();
            if let Some(what) = element(self.file, &location.path) {
                self.must(has_comment, &what, "no comment");
            }
        }
    }
}

/// Returns the element at a path, or `None` if it does not need a comment.
fn element(file: &FileDescriptorProto, path: &[i32]) -> Option<String> {
    let at = |index: i32| usize::try_from(index).expect("an index");
    match *path {
        [4, message, ref rest @ ..] => in_message(&file.message_type[at(message)], rest),
        [5, kind, ref rest @ ..] => in_enum(&file.enum_type[at(kind)], rest),
        [6, service] => Some(format!("service {}", file.service[at(service)].name())),
        [6, service, 2, method] => {
            let method = &file.service[at(service)].method[at(method)];
            Some(format!("rpc {}", method.name()))
        }
        _ => None,
    }
}

fn in_message(message: &DescriptorProto, path: &[i32]) -> Option<String> {
    let at = |index: i32| usize::try_from(index).expect("an index");
    match *path {
        [] => Some(format!("message {}", message.name())),
        [2, field] => Some(format!("field {}", message.field[at(field)].name())),
        [3, inner, ref rest @ ..] => in_message(&message.nested_type[at(inner)], rest),
        [4, kind, ref rest @ ..] => in_enum(&message.enum_type[at(kind)], rest),
        [8, oneof] => Some(format!("oneof {}", message.oneof_decl[at(oneof)].name())),
        _ => None,
    }
}

fn in_enum(kind: &EnumDescriptorProto, path: &[i32]) -> Option<String> {
    match *path {
        [] => Some(format!("enum {}", kind.name())),
        [2, value] => {
            let value = &kind.value[usize::try_from(value).expect("an index")];
            Some(format!("value {}", value.name()))
        }
        _ => None,
    }
}

/// Whether a name is `lower_snake_case` without double underscores.
fn is_lower_snake(name: &str) -> bool {
    name.split('_').all(|word| {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        !word.is_empty() && word.chars().all(plain)
    }) && name.starts_with(|c: char| c.is_ascii_lowercase())
}

/// Whether a name is `PascalCase`.
fn is_pascal(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_uppercase())
        && name.chars().all(|c| c.is_ascii_alphanumeric())
}

/// Converts `RunState` to `RUN_STATE_`.
fn screaming(name: &str) -> String {
    let mut screamed = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !screamed.is_empty() {
            screamed.push('_');
        }
        screamed.push(letter.to_ascii_uppercase());
    }
    screamed + "_"
}
