//! Removes a checkpoint: deletes the unchanged files that its manifest lists. Files that were added or
//! changed are kept.

use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::path::{Component, Path};

use host_plugin_sdk::{CheckpointManifest, FileEntry};
use rustix::fs::Stat;

use crate::copy::{MANIFEST, hash, read_manifest};
use crate::dir::{Dir, is_dir, is_file};

/// Removes a checkpoint's own files, and then the folder if it is empty. Returns the names of the remaining
/// entries.
///
/// With `repairs`, files that do not match the manifest are considered damaged and are removed too. The
/// manifest is removed last, so that an interrupted removal can be repeated.
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
            // The file's folder was removed or replaced.
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

/// Splits a name of the manifest into its folders and its file name. Returns `None` if the path is not inside
/// the checkpoint.
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

/// Whether a file matches its entry in the manifest. The file is read only if it may have changed after the
/// manifest was written.
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
    // If the file has more than one hard link, removing one of them loses no data, so the content is not
    // checked. If the file's change time equals the time of the manifest, the file is read: it may have
    // changed after the manifest was written, within the same clock tick.
    if found.st_nlink > 1 || changed < written {
        return Ok(true);
    }
    Ok(hash(parent.file(file)?)? == entry.sha256)
}

/// Removes empty folders inside a folder.
fn remove_empty_folders(folder: &Dir) -> io::Result<()> {
    for name in folder.names()? {
        if is_dir(&folder.stat(&name)?) {
            remove_empty_folders(&folder.dir(&name)?)?;
            // This fails if the folder is not empty.
            let _ = folder.remove_dir(&name);
        }
    }
    Ok(())
}
