//! Transfers a checkpoint to another folder and verifies it against its manifest.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use host_plugin_sdk::{Cancel, Checkpoint, CheckpointManifest, Error, FileEntry, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::dir::{Dir, failed, is_file, open_file};
use crate::link::{Link, Transfer, Way};
use crate::removal::split;

/// Number of bytes copied between two checks of `cancel`.
const CHUNK_BYTES: usize = 1 << 20;
pub(crate) const MANIFEST: &str = "manifest.json";
/// Size limit of a manifest. Real manifests are much smaller.
const MOST_MANIFEST_BYTES: u64 = 64 << 20;

/// Returns true if the folder is a complete copy of the checkpoint with this manifest: the folder's manifest
/// is the same, and its files have the right sizes.
pub(crate) fn holds(folder: &Dir, manifest: &CheckpointManifest) -> bool {
    let Ok(there) = read_manifest(folder) else {
        return false;
    };
    let complete = |(name, entry): (&String, &FileEntry)| {
        let found = split(name).and_then(|(above, file)| {
            let mut parent: Option<Dir> = None;
            for part in above {
                parent = Some(parent.as_ref().unwrap_or(folder).dir(part).ok()?);
            }
            parent.as_ref().unwrap_or(folder).stat(file).ok()
        });
        found.is_some_and(|file| is_file(&file) && u64::try_from(file.st_size) == Ok(entry.size))
    };
    there == *manifest && there.files.iter().all(complete)
}

/// A complete copy of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Placed {
    /// SHA-256 of `manifest.json`, which contains the digests of all files.
    pub(crate) manifest_sha256: String,
    /// How the files were transferred. If the files differ in this, this field is the greatest [`Way`] among
    /// them.
    pub(crate) link: Way,
    /// Number of bytes written to the disk.
    pub(crate) written_bytes: u64,
}

/// Transfers a checkpoint into an empty folder and syncs it to the disk.
pub(crate) fn place(
    checkpoint: &Checkpoint<'_>,
    target: &Dir,
    link: Link,
    cancel: &Cancel,
) -> Result<Placed> {
    let manifest = checkpoint.dir().join(MANIFEST);
    let bytes = read_source(&manifest)?;
    let said: CheckpointManifest = serde_json::from_slice(&bytes)
        .map_err(|error| Error::new(format!("cannot read: {error}: {}", manifest.display())))?;
    if said != *checkpoint.manifest() {
        return Err(Error::new(format!(
            "the checkpoint's manifest differs from the host's: {}",
            checkpoint.dir().display()
        )));
    }
    let mut folders: BTreeMap<PathBuf, Dir> = BTreeMap::new();
    let mut transfer = Transfer::new(link, cancel);
    for (name, entry) in checkpoint.files() {
        let Some((above, file)) = split(name) else {
            return Err(Error::new(format!(
                "the manifest names a file outside the checkpoint, {name:?}: {}",
                manifest.display()
            )));
        };
        let mut path = PathBuf::new();
        for part in above {
            let parent = folders.get(&path).unwrap_or(target);
            let made = parent.make_dir(part);
            path.push(part);
            let made = made.map_err(|e| failed("create folder", &target.path().join(&path), &e))?;
            folders.insert(path.clone(), made);
        }
        let parent = folders.get(&path).unwrap_or(target);
        transfer.file(&checkpoint.dir().join(name), (parent, file), entry)?;
    }
    // The manifest is always written, never linked, because it identifies the folder as created by the sink.
    let write = || {
        let mut file = target.create(MANIFEST)?;
        file.write_all(&bytes)?;
        file.sync_all()
    };
    write().map_err(|e| failed("write", &target.path().join(MANIFEST), &e))?;
    // Syncs the deepest folders first, so that a folder is never on the disk before its content.
    let folders = folders.values().rev().chain([target]);
    for folder in folders {
        folder
            .sync()
            .map_err(|e| failed("sync", folder.path(), &e))?;
    }
    Ok(Placed {
        manifest_sha256: hex(&Sha256::digest(&bytes)),
        link: transfer.way,
        written_bytes: transfer.written_bytes + bytes.len() as u64,
    })
}

fn read_source(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read =
        open_file(path).and_then(|file| file.take(MOST_MANIFEST_BYTES).read_to_end(&mut bytes));
    read.map_err(|error| Error::io("read", path, &error))?;
    Ok(bytes)
}

/// Returns the SHA-256 of a folder's manifest.
pub(crate) fn manifest_sha256(folder: &Dir) -> io::Result<String> {
    let bytes = folder.read(MANIFEST, MOST_MANIFEST_BYTES)?;
    Ok(hex(&Sha256::digest(bytes)))
}

/// Returns the SHA-256 of the data that remains in a reader.
pub(crate) fn hash(mut input: impl Read) -> io::Result<String> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut sha256 = Sha256::new();
    loop {
        match input.read(&mut chunk) {
            Ok(0) => return Ok(hex(&sha256.finalize())),
            Ok(read) => sha256.update(&chunk[..read]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Copies the data of a reader to a writer. Returns an error if the data does not match the manifest's entry.
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
            .map_err(|error| failed("write", target, &error))?;
        if size > entry.size {
            break;
        }
    }
    let sha256 = hex(&sha256.finalize());
    if size != entry.size || sha256 != entry.sha256 {
        let size = match size > entry.size {
            true => format!("more than {} bytes", entry.size),
            false => format!("{size} bytes with sha256 {sha256}"),
        };
        return Err(Error::new(format!(
            "the file does not match the checkpoint's manifest, it has {size}: {}",
            source.display()
        )));
    }
    Ok(())
}

/// Reads a folder's manifest.
pub(crate) fn read_manifest(folder: &Dir) -> io::Result<CheckpointManifest> {
    let json = folder.read(MANIFEST, MOST_MANIFEST_BYTES)?;
    Ok(serde_json::from_slice(&json)?)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::File;

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
    fn a_copy_that_does_not_match_the_manifest_is_an_error() {
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
    fn cancel_is_checked_before_each_chunk() {
        /// Requests cancellation while the second chunk is read.
        struct Endless(Cancel, u32);
        impl Read for Endless {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.1 += 1;
                assert!(self.1 <= 2, "read after the cancellation");
                if self.1 == 2 {
                    self.0.request();
                }
                Ok(buffer.len())
            }
        }
        let cancel = Cancel::default();
        let entry = FileEntry {
            sha256: ABC.to_owned(),
            size: u64::MAX,
        };
        let source = (Path::new("/source"), Endless(cancel.clone(), 0));
        let target = (Path::new("/target"), io::sink());
        let ended = copy_verified(source, target, &entry, &cancel);
        assert_eq!(ended, Err(Error::cancelled()));
    }
}
