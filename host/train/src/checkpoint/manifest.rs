//! A checkpoint's manifest: what proves that its files are what was written.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::Path;

use host_core::{Error, FileEntry, Kind, Manifest, Result};
use sha2::{Digest, Sha256};

use crate::data::hex;

/// Compares every file of a checkpoint with its manifest.
///
/// # Errors
/// Names the first file that is missing or not what it was.
pub fn verify(folder: &Path) -> Result<Manifest> {
    let file = folder.join("manifest.json");
    let text = fs::read(&file).map_err(|error| unreadable(&file, &error))?;
    let manifest: Manifest = serde_json::from_slice(&text)
        .map_err(|error| damaged(&format!("its manifest cannot be used: {error}"), &file))?;
    for (name, entry) in &manifest.files {
        let path = folder.join(name);
        let found = hash(&path).map_err(|error| unreadable(&path, &error))?;
        if found != *entry {
            return Err(damaged("a file is not what its manifest says", &path));
        }
    }
    Ok(manifest)
}

fn unreadable(path: &Path, error: &io::Error) -> Error {
    match error.kind() {
        ErrorKind::NotFound => damaged("a file is missing", path),
        _ => Error::io("read the checkpoint", path, error),
    }
}

fn damaged(how: &str, path: &Path) -> Error {
    let message = format!("the checkpoint is damaged: {how}: {}", path.display());
    Error::new(Kind::Config, message)
}

/// Waits until a file or a folder's entries are on the disk.
pub(super) fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// What the manifest says of a file.
pub(super) fn hash(path: &Path) -> io::Result<FileEntry> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    let mut size = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => {
                hash.update(&buffer[..n]);
                size += n as u64;
            }
        }
    }
    Ok(FileEntry {
        sha256: hex(&hash.finalize()),
        size,
    })
}
