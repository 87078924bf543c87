//! A checkpoint brought to another folder so that it is there what the manifest says, or an error.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;

use host_plugin_sdk::{Cancel, Checkpoint, CheckpointManifest, Error, FileEntry, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::link::{Link, Transfer, Way};

/// What is copied between two looks at `cancel`.
const CHUNK_BYTES: usize = 1 << 20;
const MANIFEST: &str = "manifest.json";

/// Whether the folder is a complete copy: its manifest says the same, and its files have the size.
pub(crate) fn holds(folder: &Path, manifest: &CheckpointManifest) -> bool {
    let Ok(there) = read_manifest(folder) else {
        return false;
    };
    let complete = |(name, entry): (&String, &FileEntry)| {
        fs::metadata(folder.join(name)).is_ok_and(|file| file.len() == entry.size)
    };
    there == *manifest && there.files.iter().all(complete)
}

/// A checkpoint that is complete in its folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Placed {
    /// Of `manifest.json`, and so of all.
    pub(crate) manifest_sha256: String,
    /// The most that any of its files shares with the run folder.
    pub(crate) link: Way,
    /// What it took of the disk.
    pub(crate) written_bytes: u64,
}

/// Brings a checkpoint into a new folder and waits until it is on the disk.
pub(crate) fn place(
    checkpoint: &Checkpoint<'_>,
    target: &Path,
    link: Link,
    cancel: &Cancel,
) -> Result<Placed> {
    if read_manifest(checkpoint.dir())? != *checkpoint.manifest() {
        return Err(Error::new(format!(
            "the checkpoint has another manifest than the host says: {}",
            checkpoint.dir().display()
        )));
    }
    create_dir(target)?;
    let mut folders = BTreeSet::from([target.to_owned()]);
    let mut transfer = Transfer::new(link, cancel);
    for (name, entry) in checkpoint.files() {
        let copy = target.join(name);
        for folder in copy.ancestors().skip(1) {
            if !folders.insert(folder.to_owned()) {
                break;
            }
        }
        if let Some(folder) = copy.parent() {
            fs::create_dir_all(folder).map_err(|e| Error::io("create folder", folder, &e))?;
        }
        transfer.file(&checkpoint.dir().join(name), &copy, entry)?;
    }
    // Never a link: it says whose the folder is.
    let manifest = checkpoint.dir().join(MANIFEST);
    let bytes = fs::read(&manifest).map_err(|e| Error::io("read", &manifest, &e))?;
    let copy = target.join(MANIFEST);
    let mut file = create_file(&copy)?;
    file.write_all(&bytes)
        .and_then(|()| file.sync_all())
        .map_err(|e| Error::io("write", &copy, &e))?;
    // The deepest first, so that a folder is never on the disk before what it holds.
    folders.iter().rev().try_for_each(|folder| sync(folder))?;
    Ok(Placed {
        manifest_sha256: hex(&Sha256::digest(&bytes)),
        link: transfer.way,
        written_bytes: transfer.written_bytes + bytes.len() as u64,
    })
}

/// The sha256 of a folder's manifest.
pub(crate) fn manifest_sha256(folder: &Path) -> std::io::Result<String> {
    Ok(hex(&Sha256::digest(fs::read(folder.join(MANIFEST))?)))
}

/// Waits until a folder's entries are on the disk.
pub(crate) fn sync(folder: &Path) -> Result<()> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| Error::io("sync", folder, &error))
}

/// Writes what it reads, which is what the manifest says, or an error.
pub(crate) fn copy_verified(
    (source, mut input): (&Path, impl Read),
    (target, mut output): (&Path, impl Write),
    entry: &FileEntry,
    cancel: &Cancel,
) -> Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut sha256 = Sha256::new();
    let mut size = 0;
    loop {
        cancel.check()?;
        let read = match input.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::io("read", source, &error)),
        };
        sha256.update(&chunk[..read]);
        size += read as u64;
        output
            .write_all(&chunk[..read])
            .map_err(|error| Error::io("write", target, &error))?;
    }
    let sha256 = hex(&sha256.finalize());
    if size != entry.size || sha256 != entry.sha256 {
        return Err(Error::new(format!(
            "file is not what the checkpoint's manifest says, {size} bytes of sha256 {sha256}: {}",
            source.display()
        )));
    }
    Ok(())
}

fn read_manifest(folder: &Path) -> Result<CheckpointManifest> {
    let path = folder.join(MANIFEST);
    let json = fs::read(&path).map_err(|error| Error::io("read", &path, &error))?;
    serde_json::from_slice(&json)
        .map_err(|error| Error::new(format!("cannot read: {error}: {}", path.display())))
}

fn create_dir(path: &Path) -> Result<()> {
    fs::create_dir(path).map_err(|error| Error::io("create folder", path, &error))
}

pub(crate) fn create_file(path: &Path) -> Result<File> {
    File::create_new(path).map_err(|error| Error::io("create", path, &error))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn copy(input: impl Read, output: impl Write, cancel: &Cancel) -> Result<()> {
        let entry = FileEntry {
            sha256: ABC.to_owned(),
            size: 3,
        };
        let (source, target) = (Path::new("/source"), Path::new("/target"));
        copy_verified((source, input), (target, output), &entry, cancel)
    }

    #[test]
    fn a_copy_is_what_the_manifest_says_or_an_error() {
        let cancel = Cancel::default();
        let mut output = Vec::new();
        copy(&b"abc"[..], &mut output, &cancel).expect("copied");
        assert_eq!(output, b"abc");
        for other in [&b"abd"[..], b"ab", b"abcd"] {
            let error = copy(other, io::sink(), &cancel).expect_err("differs");
            assert!(error.message().ends_with(": /source"), "{error}");
            assert!(!error.is_temporary());
        }
    }

    #[test]
    fn a_full_disk_is_temporary() {
        let full = File::options()
            .write(true)
            .open("/dev/full")
            .expect("Linux has one");
        let error = copy(&b"abc"[..], full, &Cancel::default()).expect_err("full");
        assert!(error.is_temporary());
        assert!(
            error.message().starts_with("cannot write: No space left"),
            "{error}"
        );
    }

    #[test]
    fn cancel_is_looked_at_before_each_chunk() {
        /// Asks to end while the second chunk is read.
        struct Endless(Cancel, u32);
        impl Read for Endless {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.1 += 1;
                assert!(self.1 <= 2, "read on after it was asked to end");
                if self.1 == 2 {
                    self.0.request();
                }
                Ok(buffer.len())
            }
        }
        let cancel = Cancel::default();
        let ended = copy(Endless(cancel.clone(), 0), io::sink(), &cancel);
        assert_eq!(ended, Err(Error::cancelled()));
    }
}
