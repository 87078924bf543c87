use std::collections::{HashSet, VecDeque};
use std::fs;
use std::io::{
    self,
    ErrorKind::{NotFound, PermissionDenied},
};
use std::path::{Path, PathBuf};

/// Walks the content of a folder and visits each folder once. Links are followed, except those to folders
/// already walked, so loops end.
///
/// Content that is reachable without links is walked first, then content that is reachable only by links. A
/// subfolder is therefore visited under its own path, even if a link in the folder points to it.
#[derive(Default)]
pub(super) struct Walk {
    /// Canonical paths of the folders already walked.
    seen: HashSet<PathBuf>,
    /// Folders that cannot be read, and why.
    pub(super) unreadable: Vec<(PathBuf, io::Error)>,
    /// Broken links.
    pub(super) dangling: Vec<PathBuf>,
}

/// A file, or a folder below the walked folder.
pub(super) struct Entry {
    pub(super) path: PathBuf,
    /// The canonical path.
    pub(super) real: PathBuf,
    pub(super) bytes: u64,
    pub(super) is_folder: bool,
    /// Whether it was reached by a link.
    pub(super) is_link: bool,
}

impl Walk {
    /// Walks the folder and calls `meet` for each entry. Skips paths for which `wants` returns false.
    ///
    /// # Errors
    /// Returns an error if the folder itself cannot be read. Folders below it are added to `unreadable`.
    pub(super) fn folder(
        &mut self,
        top: &Path,
        wants: &dyn Fn(&Path) -> bool,
        meet: &mut dyn FnMut(Entry),
    ) -> io::Result<()> {
        let top = (top.to_owned(), fs::canonicalize(top)?, false);
        fs::read_dir(&top.0)?;
        let (mut folders, mut links) = (vec![top], VecDeque::new());
        while let Some((folder, real, is_link)) = folders.pop().or_else(|| links.pop_front()) {
            if !self.seen.insert(real.clone()) {
                continue;
            }
            let mut entries = match entries(&folder) {
                Ok(entries) => entries,
                Err(error) => {
                    self.unreadable.push((folder, error));
                    continue;
                }
            };
            entries.sort_by_key(fs::DirEntry::file_name);
            for entry in entries {
                let path = entry.path();
                if !wants(&path) {
                    continue;
                }
                let is_itself = entry.file_type().is_ok_and(|kind| kind.is_symlink());
                let metadata = match fs::metadata(&path) {
                    Ok(metadata) => metadata,
                    Err(error) => {
                        match error.kind() {
                            kind if is_itself && kind != PermissionDenied => {
                                self.dangling.push(path);
                            }
                            // The entry was deleted after the folder was listed.
                            NotFound => {}
                            _ if is_itself || is_folder(&entry) => {
                                self.unreadable.push((path, error));
                            }
                            // The folder's entries can be listed but not accessed, so the folder is reported
                            // once, instead of each entry.
                            _ => {
                                self.unreadable.push((folder.clone(), error));
                                break;
                            }
                        }
                        continue;
                    }
                };
                if !metadata.is_dir() && !metadata.is_file() {
                    continue;
                }
                let real = if is_itself {
                    fs::canonicalize(&path).unwrap_or_else(|_| path.clone())
                } else {
                    real.join(entry.file_name())
                };
                let is_link = is_link || is_itself;
                if metadata.is_dir() {
                    let folder = (path.clone(), real.clone(), is_link);
                    if is_itself {
                        links.push_back(folder);
                    } else {
                        folders.push(folder);
                    }
                }
                meet(Entry {
                    path,
                    real,
                    bytes: metadata.len(),
                    is_folder: metadata.is_dir(),
                    is_link,
                });
            }
        }
        Ok(())
    }
}

fn is_folder(entry: &fs::DirEntry) -> bool {
    entry.file_type().is_ok_and(|kind| kind.is_dir())
}

fn entries(folder: &Path) -> io::Result<Vec<fs::DirEntry>> {
    fs::read_dir(folder)?.collect()
}
