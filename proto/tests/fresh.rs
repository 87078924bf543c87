//! The generated code is what the `.proto` files say, and the `.proto` files keep their own rules.
#![allow(missing_docs)]

use std::path::Path;

use prost::Message as _;
use prost_types::{FileDescriptorProto, FileDescriptorSet};

/// Those that are ours to name.
const OURS: [&str; 2] = ["tracker/v1/tracker.proto", "tracker/v1/control.proto"];
/// Those that speak TensorBoard's language.
const TENSORBOARD: [&str; 3] = [
    "tensorboard/summary.proto",
    "tensorboard/hparams/plugin_data.proto",
    "tensorboard/data/data_provider.proto",
];
const GENERATED: [&str; 5] = [
    "tracker.v1.rs",
    "tensorboard.rs",
    "tensorboard.hparams.rs",
    "tensorboard.data.rs",
    "descriptors.bin",
];

fn compile(source_info: bool) -> FileDescriptorSet {
    let root = env!("CARGO_MANIFEST_DIR");
    let mut compiler = protox::Compiler::new([root]).expect("the folder");
    compiler
        .include_imports(true)
        .include_source_info(source_info)
        .open_files(OURS.iter().chain(&TENSORBOARD))
        .unwrap_or_else(|error| panic!("{error}"));
    compiler.file_descriptor_set()
}

#[test]
fn generated_code_is_fresh() {
    let out = tempfile::tempdir().expect("a folder");
    tonic_prost_build::configure()
        .build_transport(false)
        .out_dir(out.path())
        .compile_fds(compile(true))
        .expect("generated");
    // Comments are for people who read the file; a server need not carry them.
    std::fs::write(
        out.path().join("descriptors.bin"),
        compile(false).encode_to_vec(),
    )
    .expect("written");

    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/generated");
    let bless = std::env::var_os("BLESS").is_some();
    for name in GENERATED {
        let fresh = std::fs::read(out.path().join(name)).expect("generated");
        if bless {
            std::fs::write(committed.join(name), &fresh).expect("written");
        }
        let old = std::fs::read(committed.join(name)).unwrap_or_default();
        assert!(
            old == fresh,
            "proto/src/generated/{name} is not what the .proto files say; run `make bless`"
        );
    }
    let made = std::fs::read_dir(out.path()).expect("the folder").count();
    assert_eq!(
        made,
        GENERATED.len(),
        "a file was generated that nobody commits"
    );
}

#[test]
fn every_element_has_a_comment() {
    let set = compile(true);
    let mine = files(&set, &OURS);
    let theirs = files(&set, &TENSORBOARD);
    for file in mine.into_iter().chain(theirs) {
        let info = file.source_code_info.as_ref().expect("asked for");
        // Paths as descriptor.proto numbers them: messages 4 (fields 2), enums 5 (values 2),
        // services 6 (methods 2).
        let bare: Vec<String> = info
            .location
            .iter()
            .filter(|location| {
                matches!(location.path[..], [4..=6, _] | [4..=6, _, 2, _])
                    && location.leading_comments().trim().is_empty()
            })
            .map(|location| format!("{} line {}", file.name(), location.span[0] + 1))
            .collect();
        assert!(bare.is_empty(), "no comment: {}", bare.join(", "));
    }
}

#[test]
fn names_follow_the_usual_rules() {
    for file in files(&compile(false), &OURS) {
        let package = file.package().replace('.', "/");
        assert!(
            file.name().starts_with(&package),
            "{package}: {}",
            file.name()
        );
        for service in &file.service {
            assert!(service.name().ends_with("Service"), "{}", service.name());
            for method in &service.method {
                let named = |suffix| format!(".{}.{}{suffix}", file.package(), method.name());
                assert_eq!(method.input_type(), named("Request"));
                assert_eq!(method.output_type(), named("Response"));
            }
        }
        for kind in &file.enum_type {
            let prefix = screaming(kind.name());
            for value in &kind.value {
                assert!(value.name().starts_with(&prefix), "{}", value.name());
            }
            assert_eq!(kind.value[0].name(), format!("{prefix}UNSPECIFIED"));
        }
    }
}

fn files<'a>(set: &'a FileDescriptorSet, names: &[&str]) -> Vec<&'a FileDescriptorProto> {
    let files: Vec<_> = set
        .file
        .iter()
        .filter(|file| names.contains(&file.name()))
        .collect();
    assert_eq!(files.len(), names.len());
    files
}

/// `RunState` to `RUN_STATE_`.
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
