//! Checks that the generated code matches the `.proto` files.
#![allow(missing_docs)]

use std::path::Path;

use prost::Message as _;
use prost_types::FileDescriptorSet;

/// The `.proto` files of this project's own services.
const OURS: [&str; 2] = ["tracker/v1/tracker.proto", "tracker/v1/control.proto"];
/// The `.proto` files whose message names and field numbers come from TensorBoard.
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
    // The descriptors are used for reflection, which does not need comments.
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
            "proto/src/generated/{name} does not match the .proto files; run `make bless`"
        );
    }
    let made = std::fs::read_dir(out.path()).expect("the folder").count();
    assert_eq!(
        made,
        GENERATED.len(),
        "a generated file is missing in GENERATED"
    );
}
