//! Protects a checkpoint while a sink has access to it. The sink must not change the checkpoint. If it does,
//! the changes are detected when the sink returns, and are reverted as far as possible.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use host_core::{CheckpointDir, FileEntry, Step, hex};
use sha2::{Digest, Sha256};

/// Name of the only file that the manifest does not list.
const MANIFEST: &str = "manifest.json";
/// Size in bytes of the largest file that is copied to memory. A larger file is cloned instead, if the file
/// system supports that.
const SMALL: u64 = 16 << 20;
/// For each checkpoint, the maximum total size in bytes of its copies in memory.
const MOST: u64 = 64 << 20;

/// The state of a checkpoint when a sink received it.
pub(super) struct Custody {
    folder: PathBuf,
    files: BTreeMap<String, Held>,
    /// Files in the folder that do not belong to the checkpoint.
    others: Vec<String>,
}

/// A file of the checkpoint.
struct Held {
    stamp: Stamp,
    /// Size and hash of the content, from the manifest. None for the manifest itself.
    entry: Option<FileEntry>,
    /// The open file, through which the content stays available even if the file is removed. None after the
    /// sink has returned.
    file: Option<File>,
    kept: Kept,
}

/// Where a copy of a file's content is kept.
enum Kept {
    Nowhere,
    Memory(Vec<u8>),
    Clone(File),
}

/// A file's metadata. It shows whether the file was written to, without the need to read the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    place: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    links: u64,
    mode: u32,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            place: (metadata.dev(), metadata.ino()),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            links: metadata.nlink(),
            mode: metadata.mode(),
        }
    }

    /// Whether the file is certainly unchanged. Adding or removing a hard link changes only the number of
    /// links and the change time.
    fn is_still(&self, now: &Self) -> bool {
        let is_linked = self.links != now.links;
        (self.place, self.size, self.modified) == (now.place, now.size, now.modified)
            && (is_linked || self.changed == now.changed)
    }
}

/// What a sink did to a checkpoint.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Damage {
    /// For each file, a description of the change.
    did: Vec<String>,
    /// Changed files that could not be restored.
    lost: Vec<String>,
    is_repaired: bool,
}

impl Custody {
    /// Records the state of a checkpoint before a sink receives it.
    ///
    /// # Errors
    /// Returns a message if a file does not match the manifest.
    pub(super) fn begin(checkpoint: &CheckpointDir) -> Result<Self, String> {
        let folder = checkpoint.path.clone();
        let mut left = MOST;
        let mut files = BTreeMap::new();
        let names = checkpoint.manifest.files.keys().map(String::as_str);
        let sealed = fs::metadata(folder.join(MANIFEST)).map(|m| Stamp::of(&m).modified);
        for name in names.chain([MANIFEST]) {
            let entry = checkpoint.manifest.files.get(name).cloned();
            // Skips unreadable files: the sink also fails to read them, and reports the failure itself.
            let Ok(held) = Held::begin(&folder.join(name), entry, &mut left) else {
                continue;
            };
            let is_older = sealed
                .as_ref()
                .is_ok_and(|sealed| held.stamp.modified <= *sealed);
            if !is_older && !held.is_as_the_manifest_says() {
                return Err(format!(
                    "the checkpoint is damaged: a file does not match its manifest: {}",
                    folder.join(name).display()
                ));
            }
            files.insert(name.to_owned(), held);
        }
        let others = names_in(&folder, "");
        let others = others.into_iter().filter(|name| !files.contains_key(name));
        Ok(Self {
            others: others.collect(),
            folder,
            files,
        })
    }

    /// Detects and reverts changes. On the first call, these are the changes since [`Self::begin`]; on a
    /// later call, the changes since the previous call.
    ///
    /// # Errors
    /// Returns the changes, if there are any.
    pub(super) fn end(&mut self) -> Result<(), Damage> {
        let mut damage = Damage::default();
        // If the folder is missing, the run has pruned the checkpoint.
        if !self.folder.is_dir() {
            return Ok(());
        }
        for (name, held) in &mut self.files {
            let path = self.folder.join(name);
            let how = match held.change(&path) {
                None => continue,
                Some(how) => how,
            };
            damage.did.push(format!("{how} {name}"));
            match held.put_back(&self.folder, name) {
                Ok(()) => damage.is_repaired = true,
                Err(_) => damage.lost.push(name.clone()),
            }
        }
        if !self.folder.is_dir() {
            return Ok(());
        }
        for name in names_in(&self.folder, "") {
            if !self.files.contains_key(&name) && !self.others.contains(&name) {
                damage.did.push(format!("added {name}"));
                self.others.push(name);
            }
        }
        for held in self.files.values_mut() {
            // Open files and clones are closed, because they would occupy disk space even after the
            // checkpoint is pruned.
            held.file = None;
            if let Kept::Clone(_) = held.kept {
                held.kept = Kept::Nowhere;
            }
        }
        match damage.did.is_empty() {
            true => Ok(()),
            false => Err(damage),
        }
    }
}

impl Held {
    fn begin(path: &Path, entry: Option<FileEntry>, left: &mut u64) -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let size = metadata.len();
        let kept = if size <= SMALL && size <= *left {
            *left -= size;
            let mut content = Vec::new();
            file.read_to_end(&mut content)?;
            Kept::Memory(content)
        } else {
            clone(path, &file).map_or(Kept::Nowhere, Kept::Clone)
        };
        Ok(Self {
            stamp: Stamp::of(&metadata),
            entry,
            file: Some(file),
            kept,
        })
    }

    fn is_as_the_manifest_says(&self) -> bool {
        let (Some(entry), Some(file)) = (&self.entry, &self.file) else {
            return true;
        };
        self.stamp.size == entry.size && sha256(file).is_ok_and(|found| found == entry.sha256)
    }

    /// If the content of the file at this path was changed, returns how. If only its metadata changed,
    /// updates the stamp and returns `None`.
    fn change(&mut self, path: &Path) -> Option<&'static str> {
        let now = match fs::symlink_metadata(path) {
            Err(_) => return Some("removed"),
            Ok(metadata) if !metadata.is_file() => return Some("replaced"),
            Ok(metadata) => Stamp::of(&metadata),
        };
        if self.stamp.is_still(&now) {
            return None;
        }
        let same = match (&self.kept, &self.entry) {
            _ if now.size != self.stamp.size => false,
            (Kept::Memory(content), _) => fs::read(path).is_ok_and(|found| found == *content),
            (_, Some(entry)) => File::open(path)
                .and_then(|file| sha256(&file))
                .is_ok_and(|found| found == entry.sha256),
            (_, None) => false,
        };
        if same {
            self.stamp = now;
            return None;
        }
        Some(match now.place == self.stamp.place {
            true => "changed",
            false => "replaced",
        })
    }

    /// Restores the content: writes it to a file outside the checkpoint, and renames this file into place.
    fn put_back(&mut self, checkpoint: &Path, name: &str) -> io::Result<()> {
        let path = &checkpoint.join(name);
        let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let outside = checkpoint.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let mut below = checkpoint.to_owned();
        for part in folder.strip_prefix(checkpoint).into_iter().flatten() {
            // Does not create the checkpoint's own folder: if this folder is missing, the checkpoint has just
            // been pruned.
            below.push(part);
            let _ = fs::create_dir(&below);
            if !fs::symlink_metadata(&below)?.is_dir() {
                return Err(io::ErrorKind::NotADirectory.into());
            }
        }
        if fs::symlink_metadata(path).is_ok_and(|found| found.is_dir()) {
            // A folder has replaced the file. The folder's contents must not be deleted.
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let mut partial = tempfile::NamedTempFile::new_in(outside)?;
        match (&mut self.kept, &mut self.file) {
            (Kept::Memory(content), _) => partial.write_all(content)?,
            (Kept::Clone(file), _) | (Kept::Nowhere, Some(file)) => {
                file.seek(SeekFrom::Start(0))?;
                io::copy(file, &mut partial)?;
            }
            (Kept::Nowhere, None) => return Err(io::ErrorKind::NotFound.into()),
        }
        if let Some(entry) = &self.entry
            && sha256(partial.as_file())? != entry.sha256
        {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mode = fs::Permissions::from_mode(self.stamp.mode & 0o777);
        partial.as_file().set_permissions(mode)?;
        partial.as_file().sync_all()?;
        let placed = partial.persist(path).map_err(|error| error.error)?;
        File::open(folder)?.sync_all()?;
        self.stamp = Stamp::of(&placed.metadata()?);
        Ok(())
    }
}

impl Damage {
    /// Describes the changes and whether they were reverted. `others` are the other sinks that had access to
    /// the checkpoint.
    pub(super) fn describe(&self, others: &[String]) -> String {
        let did = self.did.join(", ");
        let who = match others {
            [] => "the sink wrote to the checkpoint".to_owned(),
            others => format!(
                "the checkpoint was modified while this sink had access to it (other sinks with access: {})",
                others.join(", ")
            ),
        };
        let came = match (self.lost.is_empty(), self.is_repaired) {
            (true, true) => "; the changes were reverted".to_owned(),
            (true, false) => String::new(),
            (false, _) => format!(
                "; the checkpoint is damaged: {} cannot be restored",
                self.lost.join(", ")
            ),
        };
        format!("{who}: {did}{came}")
    }
}

/// For each checkpoint, the sinks of the run that had access to it.
#[derive(Clone, Debug, Default)]
pub(super) struct Holders(Arc<Mutex<BTreeMap<Step, BTreeSet<String>>>>);

impl Holders {
    pub(super) fn enter(&self, step: Step, label: &str) {
        let mut holders = self.lock();
        holders.entry(step).or_default().insert(label.to_owned());
    }

    /// Returns the other sinks that had access to the checkpoint of this step.
    pub(super) fn others(&self, step: Step, label: &str) -> Vec<String> {
        let holders = self.lock();
        let all = holders.get(&step).into_iter().flatten();
        all.filter(|holder| *holder != label).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Step, BTreeSet<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns a copy that shares the bytes of the original until one of the two is written to. None if the file
/// system does not support that.
fn clone(path: &Path, file: &File) -> Option<File> {
    let clone = tempfile::tempfile_in(path.parent()?).ok()?;
    rustix::fs::ioctl_ficlone(&clone, file).ok()?;
    Some(clone)
}

fn sha256(file: &File) -> io::Result<String> {
    let mut file = file.try_clone()?;
    file.seek(SeekFrom::Start(0))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    let digest = hash.finalize();
    Ok(hex(&digest))
}

/// Returns the sorted relative paths of the files below a folder. Ignores unreadable folders.
fn names_in(folder: &Path, below: &str) -> Vec<String> {
    let entries = folder.join(below).read_dir().into_iter().flatten();
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = match below {
            "" => name,
            below => format!("{below}/{name}"),
        };
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(names_in(folder, &path)),
            _ => found.push(path),
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use host_core::Manifest;

    use super::*;

    /// Creates a checkpoint with small files, and one file that is too large for a copy in memory.
    fn checkpoint(folder: &Path) -> CheckpointDir {
        let path = folder.join("step-000010");
        fs::create_dir_all(path.join("trainer")).expect("made");
        let large = vec![7; SMALL as usize + 1];
        let mut manifest = Manifest::default();
        for (name, content) in [
            ("config.json", &b"{}"[..]),
            ("model.safetensors", &large),
            ("trainer/state.json", b"{\"step\": 10}"),
        ] {
            fs::write(path.join(name), content).expect("written");
            let file = File::open(path.join(name)).expect("there");
            let entry = FileEntry {
                sha256: sha256(&file).expect("readable"),
                size: content.len() as u64,
            };
            manifest.files.insert(name.to_owned(), entry);
        }
        fs::write(path.join(MANIFEST), "{}").expect("written");
        CheckpointDir {
            step: Step(10),
            path,
            manifest,
            metrics: Vec::new(),
        }
    }

    /// Calls `act` with the folder of a checkpoint. Returns the changes that are found afterwards, and
    /// whether the checkpoint is undamaged after they are reverted.
    fn after(act: impl Fn(&Path)) -> (Result<(), String>, bool) {
        let folder = tempfile::tempdir().expect("a folder");
        let checkpoint = checkpoint(folder.path());
        let mut custody = Custody::begin(&checkpoint).expect("whole");
        act(&checkpoint.path);
        let found = custody.end().map_err(|damage| damage.describe(&[]));
        let is_whole = checkpoint.manifest.files.iter().all(|(name, entry)| {
            let file = File::open(checkpoint.path.join(name));
            file.and_then(|file| sha256(&file))
                .is_ok_and(|found| found == entry.sha256)
        });
        // A second check finds changes only if the first check could not revert them.
        let is_pruned = !checkpoint.path.is_dir();
        assert_eq!(custody.end().is_ok(), is_whole || is_pruned);
        (found, is_whole)
    }

    #[test]
    fn reading_linking_and_touching_are_not_changes() {
        for act in [
            (|path: &Path| drop(fs::read(path.join("config.json")))) as fn(&Path),
            |path| fs::hard_link(path.join("config.json"), path.with_extension("link")).unwrap(),
            |path| {
                let mode = fs::Permissions::from_mode(0o600);
                fs::set_permissions(path.join("model.safetensors"), mode).unwrap();
            },
            |path| {
                let file = File::options()
                    .write(true)
                    .open(path.join("model.safetensors"));
                file.unwrap()
                    .set_modified(std::time::SystemTime::UNIX_EPOCH)
                    .unwrap();
            },
            // Like pruning.
            |path| fs::rename(path, path.with_extension("pruned")).unwrap(),
        ] {
            assert_eq!(after(act).0, Ok(()));
        }
    }

    #[test]
    fn changes_are_reported_and_reverted() {
        const START: &str = "the sink wrote to the checkpoint: ";
        const BACK: &str = "; the changes were reverted";
        for (act, did) in [
            (
                (|path: &Path| fs::write(path.join("config.json"), "[]").unwrap()) as fn(&Path),
                "changed config.json",
            ),
            (
                // Changes the content, but keeps the size and the modification time.
                |path| {
                    let file = path.join("config.json");
                    let modified = file.metadata().unwrap().modified().unwrap();
                    fs::write(&file, "[]").unwrap();
                    let file = File::options().write(true).open(file).unwrap();
                    file.set_modified(modified).unwrap();
                },
                "changed config.json",
            ),
            (
                |path| fs::remove_file(path.join("model.safetensors")).unwrap(),
                "removed model.safetensors",
            ),
            (
                |path| {
                    fs::write(path.join("new"), vec![8; SMALL as usize + 1]).unwrap();
                    fs::rename(path.join("new"), path.join("model.safetensors")).unwrap();
                },
                "replaced model.safetensors",
            ),
            (
                |path| {
                    fs::remove_file(path.join("config.json")).unwrap();
                    symlink("model.safetensors", path.join("config.json")).unwrap();
                },
                "replaced config.json",
            ),
            (
                |path| fs::remove_dir_all(path.join("trainer")).unwrap(),
                "removed trainer/state.json",
            ),
            (
                |path| fs::write(path.join(MANIFEST), "").unwrap(),
                "changed manifest.json",
            ),
        ] {
            let (found, is_whole) = after(act);
            assert_eq!(found, Err(format!("{START}{did}{BACK}")));
            assert!(is_whole, "{did}");
        }
        let (found, is_whole) = after(|path| fs::write(path.join("trainer/lock"), "").unwrap());
        assert_eq!(found, Err(format!("{START}added trainer/lock")));
        assert!(is_whole);
    }

    #[test]
    fn changes_that_cannot_be_reverted_are_reported() {
        let (found, is_whole) = after(|path| {
            let mut file = File::options()
                .write(true)
                .open(path.join("model.safetensors"));
            file.as_mut().unwrap().write_all(b"x").unwrap();
        });
        let found = found.expect_err("changed");
        assert!(found.contains(": changed model.safetensors"), "{found}");
        // The file is restored only if the file system supports clones.
        let is_said = found.ends_with("is damaged: model.safetensors cannot be restored");
        assert_eq!(is_said, !is_whole, "{found}");
    }

    #[test]
    fn a_damaged_checkpoint_is_not_passed_to_a_sink() {
        let folder = tempfile::tempdir().expect("a folder");
        let checkpoint = checkpoint(folder.path());
        let path = checkpoint.path.join("config.json");
        fs::write(&path, "[]").expect("written");
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(10);
        let file = File::options().write(true).open(&path).expect("there");
        file.set_modified(later).expect("set");
        let error = Custody::begin(&checkpoint).err().expect("damaged");
        assert!(error.ends_with("config.json"), "{error}");
        fs::write(&path, "{}").expect("written");
        file.set_modified(later).expect("set");
        assert!(Custody::begin(&checkpoint).is_ok(), "the same content");
    }
}
