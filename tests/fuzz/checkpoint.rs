//! Replaces one file of a checkpoint. Then reads the checkpoint in the way that a resume reads it, and in the
//! way that a model loader reads it.
//!
//! The first byte of the input selects the file; the rest is its new content. The manifest is updated to
//! match the new content, because an attacker would do so, too. If the manifest itself is replaced, it is not
//! updated. Finally, the checkpoint is removed in the same way as in a run. Files outside the checkpoint's
//! folder must not change.
#![no_main]

mod contained;
mod folder;
mod sha256;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use folder::Folder;
use host_train::fuzzing::{read_checkpoint, remove_checkpoint};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use sha256::sha256;

/// The files that can be replaced. The host's own checkpoints do not contain the last two.
const NAMES: [&str; 12] = [
    "manifest.json",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "trainer/data.safetensors",
    "trainer/optimizer.safetensors",
    "trainer/random.safetensors",
    "trainer/state.json",
    "model.safetensors.index.json",
    "pytorch_model.bin",
];
const CANARY: &[u8] = b"not the checkpoint's";

/// The name and content of each file of a checkpoint. `run.sh` created the checkpoint with a real run.
static WHOLE: LazyLock<BTreeMap<String, Vec<u8>>> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = folder.join("../../target/fuzz/run/checkpoints/step-000002");
    let files = NAMES.iter().filter_map(|name| {
        let content = fs::read(folder.join(name)).ok()?;
        Some(((*name).to_owned(), content))
    });
    let files: BTreeMap<_, _> = files.collect();
    assert!(files.len() > 8, "no checkpoint in {}", folder.display());
    files
});
static FOLDER: LazyLock<Folder> = LazyLock::new(|| {
    let folder = Folder::new();
    folder.write("canary", CANARY);
    folder
});

fuzz_target!(|input: &[u8]| contained::run(|| test(input)));

fn test(input: &[u8]) {
    let Some((&chosen, content)) = input.split_first() else {
        return;
    };
    let name = NAMES[usize::from(chosen) % NAMES.len()];
    let mut files = WHOLE.clone();
    if matches!(name, "model.safetensors.index.json" | "pytorch_model.bin") {
        files.remove("model.safetensors");
    }
    files.insert(name.to_owned(), content.to_owned());
    if name != "manifest.json" {
        files.remove("manifest.json");
        let manifest = manifest(&files).to_string();
        files.insert("manifest.json".to_owned(), manifest.into_bytes());
    }
    let folder = FOLDER.path("step-000002");
    fs::create_dir_all(folder.join("trainer")).expect("made");
    for (name, content) in &files {
        fs::write(folder.join(name), content).expect("written");
    }
    for error in read_checkpoint(&folder) {
        assert!(error.message().contains("step-000002"), "no path: {error}");
    }
    let _ = remove_checkpoint(&folder);
    let canary = fs::read(FOLDER.path("canary"));
    assert_eq!(canary.expect("the canary"), CANARY);
    let _ = fs::remove_dir_all(folder);
}

fn manifest(files: &BTreeMap<String, Vec<u8>>) -> Value {
    let entry = |(name, content): (&String, &Vec<u8>)| {
        let entry = json!({"sha256": sha256(content), "size": content.len()});
        (name.clone(), entry)
    };
    let files: serde_json::Map<String, Value> = files.iter().map(entry).collect();
    json!({"files": files})
}
