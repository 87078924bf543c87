use std::collections::{HashSet, VecDeque};
use std::fs;
use std::io::{
    self,
    ErrorKind::{NotFound, PermissionDenied},
};
use std::path::{Path, PathBuf};

/// What is below a folder, each folder once: links are followed, and those that lead back into what was
/// looked through are passed over, which ends loops.
///
/// What is there under its own name comes first, then what only links lead to, so that a link into the
/// folder changes no name.
#[derive(Default)]
pub(super) struct Walk {
    /// Folders, by what they really are, that were looked through.
    seen: HashSet<PathBuf>,
    /// Folders that cannot be read, and why.
    pub(super) unreadable: Vec<(PathBuf, io::Error)>,
    /// Links that lead nowhere.
    pub(super) dangling: Vec<PathBuf>,
}

/// A file, or a folder below the one that is looked through.
pub(super) struct Entry {
    pub(super) path: PathBuf,
    /// The path without links.
    pub(super) real: PathBuf,
    pub(super) bytes: u64,
    pub(super) is_folder: bool,
    /// Whether it has this name by a link.
    pub(super) is_link: bool,
}

impl Walk {
    /// Looks through the folder. What `wants` refuses by its path is neither met nor entered.
    ///
    /// # Errors
    /// The folder itself cannot be read. One below it is put down as unreadable.
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
                            // It vanished in between, so it is like one that was not there.
                            NotFound => {}
                            _ if is_itself || is_folder(&entry) => {
                                self.unreadable.push((path, error));
                            }
                            // Names can be listed and nothing more, so one file stands for all.
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
