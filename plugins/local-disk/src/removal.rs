//! Removing a checkpoint: of its folder goes what its manifest lists and is still what was delivered. What
//! somebody else has put there or changed stays.

use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::path::{Component, Path};

use host_plugin_sdk::{CheckpointManifest, FileEntry};
use rustix::fs::Stat;

use crate::copy::{MANIFEST, hash, read_manifest};
use crate::dir::{Dir, is_dir, is_file};

/// Removes a checkpoint's own files and then, if nothing else is in it, the folder. Returns what is left.
///
/// With `repairs`, what is not as the manifest says is damage, and goes too. The manifest goes last: whoever
/// is interrupted can begin again.
pub(crate) fn remove(parent: &Dir, name: &str, repairs: bool) -> io::Result<Vec<OsString>> {
    let folder = parent.dir(name)?;
    if let Ok(manifest) = read_manifest(&folder) {
        let written = folder.stat(MANIFEST)?;
        remove_files(&folder, &manifest, &written, repairs)?;
        remove_empty_folders(&folder)?;
        folder.unlink(MANIFEST)?;
    }
    let left = folder.names()?;
    if left.is_empty() {
        parent.remove_dir(name)?;
    }
    Ok(left)
}

fn remove_files(
    folder: &Dir,
    manifest: &CheckpointManifest,
    written: &Stat,
    repairs: bool,
) -> io::Result<()> {
    for (name, entry) in &manifest.files {
        let Some((above, file)) = split(name) else {
            continue;
        };
        let parent = match above.iter().try_fold(None, |parent: Option<Dir>, part| {
            parent.as_ref().unwrap_or(folder).dir(part).map(Some)
        }) {
            Ok(parent) => parent,
            // It is gone, or something else has its place.
            Err(_) => continue,
        };
        let parent = parent.as_ref().unwrap_or(folder);
        let found = match parent.stat(file) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            found => found?,
        };
        if is_file(&found) && (repairs || is_as_written(parent, file, &found, entry, written)?) {
            parent.unlink(file)?;
        }
    }
    Ok(())
}

/// The folders and the file of a manifest's name; none if it leads out of the checkpoint.
pub(crate) fn split(name: &str) -> Option<(Vec<&str>, &str)> {
    let part = |part| match part {
        Component::Normal(part) => part.to_str(),
        _ => None,
    };
    let mut parts: Vec<&str> = Path::new(name)
        .components()
        .map(part)
        .collect::<Option<_>>()?;
    let file = parts.pop()?;
    Some((parts, file))
}

/// Whether a file is what its manifest says. One that nothing has touched since the manifest was written is
/// not read.
fn is_as_written(
    parent: &Dir,
    file: &str,
    found: &Stat,
    entry: &FileEntry,
    manifest: &Stat,
) -> io::Result<bool> {
    if u64::try_from(found.st_size) != Ok(entry.size) {
        return Ok(false);
    }
    let changed = (found.st_ctime, found.st_ctime_nsec);
    let written = (manifest.st_mtime, manifest.st_mtime_nsec);
    // Of a hard link the bytes stay under the other name. Within one tick of the clock they may have changed.
    if found.st_nlink > 1 || changed < written {
        return Ok(true);
    }
    Ok(hash(parent.file(file)?)? == entry.sha256)
}

/// Removes the folders within that have nothing in them.
fn remove_empty_folders(folder: &Dir) -> io::Result<()> {
    for name in folder.names()? {
        if is_dir(&folder.stat(&name)?) {
            remove_empty_folders(&folder.dir(&name)?)?;
            // It fails where something is left.
            let _ = folder.remove_dir(&name);
        }
    }
    Ok(())
}
