//! Removes a checkpoint: the files in its folder that its manifest lists and that are unchanged. Files that
//! were added or changed by others are kept.

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path};

use host_core::{FileEntry, Manifest};

use crate::manifest::hash;

const MANIFEST: &str = "manifest.json";
/// Maximum size of a manifest in bytes. The manifests of this program are much smaller.
const MOST_MANIFEST_BYTES: u64 = 64 << 20;

/// Removes a checkpoint's own files. Also removes the folder if nothing else is in it. Returns the names of
/// the remaining files.
///
/// The manifest is removed last, so that an interrupted removal can be repeated.
pub(crate) fn remove(folder: &Path) -> io::Result<Vec<OsString>> {
    let path = folder.join(MANIFEST);
    let found = fs::symlink_metadata(&path);
    let found = found.ok().filter(|found| {
        // A manifest that is too large or is not a regular file is not from this program, and is not read
        // into memory.
        found.is_file() && found.len() <= MOST_MANIFEST_BYTES
    });
    if let Some(found) = found
        && let Ok(manifest) = serde_json::from_slice::<Manifest>(&fs::read(&path)?)
    {
        for (name, entry) in &manifest.files {
            let file = folder.join(name);
            if is_inside(folder, name) && is_as_written(&file, entry, &found)? {
                fs::remove_file(file)?;
            }
        }
        remove_empty_folders(folder)?;
        fs::remove_file(path)?;
    }
    let entries = fs::read_dir(folder)?;
    let left: Vec<OsString> = entries
        .map(|entry| Ok(entry?.file_name()))
        .collect::<io::Result<_>>()?;
    if left.is_empty() {
        fs::remove_dir(folder)?;
    }
    Ok(left)
}

/// Whether a name in the manifest is a path that stays within the folder and leads through no symbolic link.
fn is_inside(folder: &Path, name: &str) -> bool {
    let name = Path::new(name);
    let is_plain = |part| matches!(part, Component::Normal(_));
    let mut above = name.ancestors().skip(1);
    name.components().all(is_plain)
        && above.all(|above| {
            let above = fs::symlink_metadata(folder.join(above));
            above.is_ok_and(|above| above.is_dir())
        })
}

/// Whether a file matches its manifest entry. A file that has not changed since the manifest was written is
/// not read.
fn is_as_written(file: &Path, entry: &FileEntry, manifest: &Metadata) -> io::Result<bool> {
    let found = match fs::symlink_metadata(file) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if !found.is_file() || found.len() != entry.size {
        return Ok(false);
    }
    let changed = (found.ctime(), found.ctime_nsec());
    let written = (manifest.mtime(), manifest.mtime_nsec());
    // A file with another hard link counts as unchanged. Its ctime proves nothing, because the ctime also
    // changes when a sink creates a link. Removing the file is harmless, because its content remains under
    // the other name. If a file's ctime equals the manifest's time, the file is read, because it could have
    // changed within the same clock tick.
    Ok(found.nlink() > 1 || changed < written || hash(file)? == *entry)
}

/// Removes the empty folders within a folder.
fn remove_empty_folders(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_empty_folders(&entry.path())?;
            // This fails if the folder is not empty.
            let _ = fs::remove_dir(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// Returns a checkpoint's folder with these files, as the writer leaves it.
    fn checkpoint(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a folder");
        let mut manifest = Manifest::default();
        fs::create_dir(dir.path().join("trainer")).expect("made");
        for (name, text) in files {
            let file = dir.path().join(name);
            fs::write(&file, text).expect("written");
            let entry = hash(&file).expect("read");
            manifest.files.insert((*name).to_owned(), entry);
        }
        let json = serde_json::to_string(&manifest).expect("JSON");
        fs::write(dir.path().join(MANIFEST), json).expect("written");
        dir
    }

    const FILES: [(&str, &str); 3] = [
        ("config.json", "{}"),
        ("model.safetensors", "weights"),
        ("trainer/state.json", "state"),
    ];

    fn left(folder: &Path) -> Vec<String> {
        let left = remove(folder).expect("removed");
        let mut left: Vec<String> = left
            .into_iter()
            .map(|name| name.into_string().expect("UTF-8"))
            .collect();
        left.sort();
        left
    }

    #[test]
    fn a_checkpoint_is_removed_completely() {
        let dir = checkpoint(&FILES);
        assert_eq!(left(dir.path()), [""; 0]);
        assert!(!dir.path().exists());
    }

    #[test]
    fn added_and_changed_files_are_kept() {
        let dir = checkpoint(&FILES);
        let path = |name: &str| dir.path().join(name);
        fs::write(path("my-eval.json"), "mine").expect("written");
        fs::write(path("trainer/notes"), "mine").expect("written");
        // The changed file has the size and the modification time of the original.
        let written = fs::metadata(path("model.safetensors")).and_then(|file| file.modified());
        fs::write(path("model.safetensors"), "WEIGHTS").expect("written");
        fs::File::options()
            .write(true)
            .open(path("model.safetensors"))
            .and_then(|file| file.set_modified(written.expect("a time")))
            .expect("a time");
        fs::create_dir(path("empty")).expect("made");
        assert_eq!(
            left(dir.path()),
            ["model.safetensors", "my-eval.json", "trainer"]
        );
        let read = |name| fs::read_to_string(path(name)).expect("there");
        assert_eq!(read("model.safetensors"), "WEIGHTS");
        assert_eq!(read("my-eval.json"), "mine");
        assert_eq!(read("trainer/notes"), "mine");
        assert!(!path("trainer/state.json").exists());
        // A second removal removes nothing more.
        assert_eq!(left(dir.path()).len(), 3);
    }

    #[test]
    fn files_that_were_only_touched_are_removed() {
        let dir = checkpoint(&FILES);
        let weights = dir.path().join("model.safetensors");
        let other = tempfile::tempdir().expect("a folder");
        let kept = other.path().join("kept");
        fs::hard_link(&weights, &kept).expect("linked");
        let config = dir.path().join("config.json");
        let mut permissions = fs::metadata(&config).expect("there").permissions();
        permissions.set_readonly(true);
        fs::set_permissions(&config, permissions).expect("set");
        assert_eq!(left(dir.path()), [""; 0]);
        assert_eq!(fs::read_to_string(kept).expect("there"), "weights");
    }

    #[test]
    fn nothing_outside_the_folder_is_removed() {
        let other = tempfile::tempdir().expect("a folder");
        fs::write(other.path().join("state.json"), "state").expect("written");
        let dir = checkpoint(&FILES);
        fs::remove_dir_all(dir.path().join("trainer")).expect("removed");
        symlink(other.path(), dir.path().join("trainer")).expect("linked");
        assert_eq!(left(dir.path()), ["trainer"]);

        let dir = checkpoint(&FILES);
        let above = dir.path().parent().expect("a folder").join("above-all");
        fs::write(&above, "{}").expect("written");
        let manifest = fs::read_to_string(dir.path().join(MANIFEST)).expect("text");
        let manifest = manifest.replace("config.json", "../above-all");
        fs::write(dir.path().join(MANIFEST), manifest).expect("written");
        assert_eq!(left(dir.path()), ["config.json"]);
        assert!(above.exists());
        fs::remove_file(above).expect("removed");
    }

    #[test]
    fn without_a_valid_manifest_nothing_is_removed() {
        let dir = checkpoint(&FILES);
        fs::write(dir.path().join(MANIFEST), "{").expect("written");
        assert_eq!(left(dir.path()).len(), 4);
    }
}
