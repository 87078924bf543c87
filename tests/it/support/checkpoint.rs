use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use host_core::Manifest;
use sha2::{Digest, Sha256};

/// Returns the SHA-256 of bytes, in lower-case hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns every file below a folder by its relative path, with its SHA-256.
pub(crate) fn files_of(folder: &Path) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.expect("a name in UTF-8").to_owned();
        if path.is_dir() {
            let below = files_of(&path).into_iter();
            files.extend(below.map(|(file, hash)| (format!("{name}/{file}"), hash)));
        } else {
            files.insert(name, sha256(&fs::read(&path).expect("a file")));
        }
    }
    files
}

/// Returns a checkpoint's manifest.
pub(crate) fn manifest_of(checkpoint: &Path) -> Manifest {
    let text = fs::read(checkpoint.join("manifest.json")).expect("a manifest");
    serde_json::from_slice(&text).expect("a manifest")
}

/// Asserts that a checkpoint has exactly the files of its manifest, and that they match their hashes.
#[track_caller]
pub(crate) fn assert_complete(checkpoint: &Path) {
    let mut found = files_of(checkpoint);
    found.remove("manifest.json").expect("a manifest");
    let said = manifest_of(checkpoint).files.into_iter();
    let said: BTreeMap<String, String> = said.map(|(name, file)| (name, file.sha256)).collect();
    assert_eq!(found, said, "{}", checkpoint.display());
    for name in [
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        assert!(found.contains_key(name), "no {name} in {found:?}");
    }
    // All files have the same permissions.
    let mode = |name: &str| {
        let metadata = fs::metadata(checkpoint.join(name)).expect("a file");
        metadata.permissions().mode()
    };
    for name in found.keys() {
        assert_eq!(mode(name), mode("manifest.json"), "{name}");
    }
}
