//! A checkpoint's manifest, which proves that the checkpoint's files are unchanged.
//!
//! A folder can be from an untrusted source. So a name in a manifest must not lead out of its folder. Only
//! regular files are read, and none beyond the size in the manifest. Every file that a reader of the
//! checkpoint uses must be in the manifest.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use host_core::{Error, ErrorKind, FileEntry, Manifest, Result, hex};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::regular_file;

/// Compares every file of a checkpoint with its manifest.
///
/// # Errors
/// Returns an error that names the first file that is missing, changed, or not in the manifest.
pub fn verify(folder: &Path) -> Result<Manifest> {
    let manifest = read(folder)?;
    check(folder, &manifest, &|_| true)?;
    Ok(manifest)
}

/// Compares some files with the folder's manifest: those for which `is_taken` returns true. Two kinds of
/// folders pass without a comparison: a folder without a manifest, and another program's model with that
/// program's manifest.
///
/// # Errors
/// As for [`verify`].
pub(crate) fn verify_part(folder: &Path, is_taken: &dyn Fn(&str) -> bool) -> Result<()> {
    let file = folder.join(NAME);
    if file.symlink_metadata().is_err() {
        return Ok(());
    }
    let is_ours = folder.join(TRAINER).is_dir();
    if !is_ours && is_foreign(&file) {
        return Ok(());
    }
    read(folder)
        .and_then(|manifest| check(folder, &manifest, is_taken))
        .map_err(|error| {
            error.hint("use another copy of the checkpoint; if you remove manifest.json, the folder can be used as a model, but no run can be resumed from it")
        })
}

/// Reads a checkpoint's manifest; does not check the checkpoint's files.
///
/// # Errors
/// Returns an error if the manifest is missing, is not valid, or lists a file outside the folder.
pub fn read(folder: &Path) -> Result<Manifest> {
    let file = folder.join(NAME);
    let text = regular_file::open_no_link(&file)
        .and_then(|open| regular_file::read_all(open, regular_file::SMALL))
        .map_err(|error| unreadable(&file, &error))?;
    let unusable = |why: String| damaged(&format!("its manifest cannot be used: {why}"), &file);
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|error| unusable(error.to_string()))?;
    match manifest.files.keys().find(|name| !is_inside(name)) {
        Some(name) => Err(unusable(format!("{name:?} is outside this folder"))),
        None => Ok(manifest),
    }
}

const NAME: &str = "manifest.json";
const TRAINER: &str = "trainer";

/// Returns true if this program reads a file of this name from a checkpoint, to load a model or to resume a
/// run.
fn is_read(name: &str) -> bool {
    match name.split_once('/') {
        Some((folder, _)) => folder == TRAINER,
        None => matches!(
            name,
            "config.json"
                | "generation_config.json"
                | "model.safetensors"
                | "tokenizer.json"
                | "tokenizer_config.json"
        ),
    }
}

/// Compares some files with the manifest: those for which `is_taken` returns true. Files that this program
/// reads from a checkpoint must be in the manifest. Other files, such as a user's notes, need not be in it.
fn check(folder: &Path, manifest: &Manifest, is_taken: &dyn Fn(&str) -> bool) -> Result<()> {
    for (name, entry) in manifest.files.iter().filter(|(name, _)| is_taken(name)) {
        check_file(folder, name, entry)?;
    }
    for below in ["", "trainer/"] {
        let place = folder.join(below);
        let entries = match fs::read_dir(&place) {
            Ok(entries) => entries,
            // The folder does not exist. If it should contain a file, `check_file` has already failed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(unreadable(&place, &error)),
        };
        for entry in entries {
            let entry = entry.map_err(|error| unreadable(&place, &error))?;
            let name = format!("{below}{}", entry.file_name().to_string_lossy());
            if is_read(&name) && is_taken(&name) && !manifest.files.contains_key(&name) {
                let how = "its manifest does not list this file";
                return Err(damaged(how, &entry.path()));
            }
        }
    }
    Ok(())
}

fn check_file(folder: &Path, name: &str, entry: &FileEntry) -> Result<()> {
    let path = folder.join(name);
    for (at, _) in name.match_indices('/') {
        let parent = folder.join(&name[..at]);
        let found = parent.symlink_metadata();
        if !found.map_err(|error| unreadable(&path, &error))?.is_dir() {
            return Err(damaged("it is not a folder", &parent));
        }
    }
    let found = regular_file::open_no_link(&path)
        .and_then(|file| match file.metadata()?.len() == entry.size {
            true => hash_of(file.take(entry.size)).map(Some),
            false => Ok(None),
        })
        .map_err(|error| unreadable(&path, &error))?;
    match found.as_ref() == Some(entry) {
        true => Ok(()),
        false => Err(damaged("a file does not match its manifest", &path)),
    }
}

/// Whether a name is a path within the folder: relative and without `..`.
fn is_inside(name: &str) -> bool {
    let is_part = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
    name != NAME && name.split('/').all(is_part)
}

/// Whether a manifest is JSON that another program wrote.
fn is_foreign(file: &Path) -> bool {
    let is_ours = |json: Value| {
        serde_json::from_value::<BTreeMap<String, FileEntry>>(json["files"].clone()).is_ok()
    };
    regular_file::read(file, regular_file::SMALL)
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .is_some_and(|json| !is_ours(json))
}

fn unreadable(path: &Path, error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => damaged("a file is missing", path),
        // The path is not a regular file.
        io::ErrorKind::Other => damaged(&error.to_string(), path),
        _ => Error::io("read the checkpoint", path, error),
    }
}

fn damaged(how: &str, path: &Path) -> Error {
    let message = format!("the checkpoint is damaged: {how}: {}", path.display());
    Error::new(ErrorKind::Config, message).hint("use another copy of it, or an older checkpoint")
}

/// Waits until a file or a folder's entries are on disk.
pub(super) fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Returns the manifest entry of a file.
pub(super) fn hash(path: &Path) -> io::Result<FileEntry> {
    hash_of(File::open(path)?)
}

fn hash_of(mut file: impl Read) -> io::Result<FileEntry> {
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use serde_json::json;
    use tempfile::TempDir;

    use super::*;

    /// Returns a folder with two files of a checkpoint and their manifest.
    fn checkpoint() -> (TempDir, impl Fn(&str) -> PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().to_owned();
        let path = move |name: &str| root.join(name);
        fs::create_dir(path("trainer")).expect("made");
        let mut manifest = Manifest::default();
        for name in ["model.safetensors", "trainer/state.json"] {
            fs::write(path(name), name).expect("written");
            let entry = hash(&path(name)).expect("hashed");
            manifest.files.insert(name.to_owned(), entry);
        }
        write(&path("manifest.json"), &json!(manifest));
        (folder, path)
    }

    fn write(path: &Path, json: &Value) {
        fs::write(path, json.to_string()).expect("written");
    }

    #[track_caller]
    fn refused(folder: &Path, how: &str) {
        let error = verify(folder).expect_err(how);
        assert!(error.message().contains(how), "{error}");
        let error = verify_part(folder, &|_| true).expect_err(how);
        assert!(error.message().contains(how), "{error}");
    }

    #[test]
    fn names_outside_the_folder_are_rejected() {
        let (folder, path) = checkpoint();
        for name in [
            "../a",
            "/dev/zero",
            "trainer/../../a",
            "",
            ".",
            "a//b",
            "a/",
            "trainer/..",
            "a\0b",
            "manifest.json",
        ] {
            let entry = json!({ "sha256": "00", "size": 1 });
            write(&path("manifest.json"), &json!({ "files": { name: entry } }));
            refused(folder.path(), "is outside this folder");
        }
    }

    #[test]
    fn files_that_are_read_must_be_listed_but_notes_need_not() {
        let (folder, path) = checkpoint();
        fs::write(path("my-eval.json"), "{}").expect("written");
        fs::create_dir(path("plots")).expect("made");
        verify(folder.path()).expect("whole");
        for name in [
            "trainer/optimizer.safetensors",
            "trainer/observer-x",
            "config.json",
            "tokenizer.json",
            "generation_config.json",
        ] {
            fs::write(path(name), "").expect("written");
            refused(folder.path(), "does not list this file");
            let only_weights = |name: &str| name == "model.safetensors";
            verify_part(folder.path(), &only_weights).expect("not taken");
            fs::remove_file(path(name)).expect("removed");
        }
    }

    #[test]
    fn only_regular_files_of_the_listed_size_are_read() {
        let (folder, path) = checkpoint();
        let good = fs::read(path("model.safetensors")).expect("read");
        let replaced = |make: &dyn Fn(&Path), how: &str| {
            fs::remove_file(path("model.safetensors")).expect("removed");
            make(&path("model.safetensors"));
            refused(folder.path(), how);
        };
        replaced(
            &|file| symlink("/dev/zero", file).expect("linked"),
            "symbolic link",
        );
        fs::write(path("other"), &good).expect("written");
        replaced(
            &|file| symlink("other", file).expect("linked"),
            "symbolic link",
        );
        let pipe = |file: &Path| {
            let made = std::process::Command::new("mkfifo").arg(file).status();
            assert!(made.expect("mkfifo").success());
        };
        replaced(&pipe, "not a regular file");
        // A sparse file larger than any disk; none of it is read.
        let sparse = |file: &Path| {
            let made = File::create(file).expect("made");
            made.set_len(1 << 42).expect("a sparse file");
        };
        replaced(&sparse, "does not match its manifest");
        fs::remove_file(path("model.safetensors")).expect("removed");
        fs::write(path("model.safetensors"), &good).expect("written");
        verify(folder.path()).expect("whole again");
    }

    #[test]
    fn a_folder_and_the_manifest_must_not_be_links() {
        let (folder, path) = checkpoint();
        fs::rename(path("trainer"), path("elsewhere")).expect("moved");
        symlink("elsewhere", path("trainer")).expect("linked");
        refused(folder.path(), "it is not a folder");
        let (folder, path) = checkpoint();
        fs::rename(path("manifest.json"), path("elsewhere")).expect("moved");
        symlink("elsewhere", path("manifest.json")).expect("linked");
        refused(folder.path(), "it is a symbolic link");
    }

    #[test]
    fn a_model_can_have_a_manifest_of_another_program() {
        let folder = tempfile::tempdir().expect("a folder");
        verify_part(folder.path(), &|_| true).expect("none");
        fs::write(folder.path().join("config.json"), "{}").expect("written");
        for foreign in [
            json!({ "name": "app" }),
            json!([1]),
            json!({ "files": ["a"] }),
        ] {
            write(&folder.path().join("manifest.json"), &foreign);
            verify_part(folder.path(), &|_| true).expect("not ours");
        }
        fs::write(folder.path().join("manifest.json"), "|").expect("written");
        assert!(verify_part(folder.path(), &|_| true).is_err());
    }
}
