//! The cache, a folder for data that later runs can reuse: trained tokenizers and fetched models.
//!
//! The cache is optional: if it cannot be written, a run works without it.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use host_core::{Error, Result};
use tempfile::TempDir;

/// The cache folder, which can be missing or not writable.
#[derive(Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
    /// Set if this process uses a temporary folder, which is deleted on drop.
    temporary: Option<TempDir>,
    /// A warning that explains why the usual folder is not used.
    pub(crate) warning: Option<String>,
}

/// A folder for large data. A temporary folder is deleted on drop.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) path: PathBuf,
    #[expect(dead_code, reason = "deletes the folder on drop")]
    temporary: Option<TempDir>,
    /// A warning that explains why the data will not be kept.
    pub(crate) warning: Option<String>,
}

impl Cache {
    /// Finds the folder `host` in the user's cache folder. If the user has no home folder, tries the folder
    /// `host-UID` in the system's temporary folder. This folder is used only if no other user can write to
    /// it. Otherwise, uses a temporary folder of this process.
    ///
    /// # Errors
    /// Returns an error if a temporary folder is needed and cannot be created.
    pub(crate) fn find() -> Result<Self> {
        let from = |name: &str| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let users = from("XDG_CACHE_HOME").or_else(|| from("HOME").map(|home| home.join(".cache")));
        match users {
            Some(users) => Ok(Self {
                folder: users.join("host"),
                temporary: None,
                warning: None,
            }),
            None => Self::without_home(&std::env::temp_dir()),
        }
    }

    fn without_home(temp: &Path) -> Result<Self> {
        let user = rustix::process::geteuid().as_raw();
        let folder = temp.join(format!("host-{user}"));
        match own(&folder, user) {
            Ok(()) => Ok(Self {
                folder,
                temporary: None,
                warning: None,
            }),
            Err(why) => {
                let place = folder.display();
                let warning = format!("the cache is not used, because {why}: {place}");
                let temporary = temporary(temp)?;
                Ok(Self {
                    folder: temporary.path().to_owned(),
                    temporary: Some(temporary),
                    warning: Some(warning),
                })
            }
        }
    }

    /// Returns the folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns a writable folder below the cache folder, or a temporary folder of this process.
    ///
    /// # Errors
    /// Returns an error if the temporary folder cannot be created either.
    pub(crate) fn place(self, below: &Path) -> Result<Place> {
        let path = self.folder.join(below);
        let tried = fs::create_dir_all(&path).and_then(|()| {
            tempfile::Builder::new()
                .prefix(".writable-")
                .tempfile_in(&path)
        });
        let Err(error) = tried else {
            return Ok(Place {
                path,
                temporary: self.temporary,
                warning: self.warning,
            });
        };
        let temporary = temporary(&std::env::temp_dir())?;
        let place = path.display();
        Ok(Place {
            path: temporary.path().to_owned(),
            temporary: Some(temporary),
            warning: Some(format!(
                "fetched files are not kept, because the cache cannot be written: {error}: {place}"
            )),
        })
    }
}

fn temporary(temp: &Path) -> Result<TempDir> {
    tempfile::Builder::new()
        .prefix("host-")
        .tempdir_in(temp)
        .map_err(|e| Error::io("create a temporary folder", temp, &e))
}

/// Creates a folder that only this user can write to. Accepts an existing folder if only this user can write
/// to it. If neither is possible, returns the reason.
fn own(folder: &Path, user: u32) -> std::result::Result<(), String> {
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.to_string()),
        _ => {}
    }
    // Does not follow a link, because the link's owner could change it later.
    let found = fs::symlink_metadata(folder).map_err(|error| error.to_string())?;
    if !found.is_dir() {
        Err("it is not a folder".to_owned())
    } else if found.uid() != user {
        Err("another user owns it".to_owned())
    } else if found.mode() & 0o022 != 0 {
        Err("other users can write to it".to_owned())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn without_a_home_only_a_folder_of_the_same_user_is_used() {
        let temp = tempfile::tempdir().expect("a folder");
        let user = rustix::process::geteuid().as_raw();
        let folder = temp.path().join(format!("host-{user}"));
        let usual = || {
            let cache = Cache::without_home(temp.path()).expect("a cache");
            (cache.folder() == folder, cache.warning)
        };
        assert_eq!(usual(), (true, None));
        let mode = fs::metadata(&folder).expect("made").mode();
        assert_eq!(mode & 0o777, 0o700);
        assert_eq!(usual(), (true, None));

        let refused = |why: &str| {
            let (is_usual, warning) = usual();
            assert!(!is_usual, "{why}");
            assert!(warning.expect("a warning").contains(why), "{why}");
        };
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).expect("opened");
        refused("other users can write to it");
        fs::remove_dir(&folder).expect("removed");
        symlink(temp.path(), &folder).expect("linked");
        refused("it is not a folder");
        fs::remove_file(&folder).expect("removed");
        fs::create_dir(&folder).expect("made");
        assert_eq!(
            own(&folder, user + 1),
            Err("another user owns it".to_owned())
        );
    }

    #[test]
    fn without_a_writable_cache_the_folder_is_temporary() {
        let home = tempfile::tempdir().expect("a folder");
        let cache = |folder: PathBuf| Cache {
            folder,
            temporary: None,
            warning: None,
        };
        let good = cache(home.path().join("cache"))
            .place(Path::new("hub/a"))
            .expect("a place");
        assert_eq!(good.path, home.path().join("cache/hub/a"));
        assert!(good.warning.is_none() && good.path.is_dir());
        let taken = home.path().join("taken");
        fs::write(&taken, "").expect("written");
        let other = cache(taken).place(Path::new("hub/a")).expect("a place");
        assert!(other.warning.is_some() && other.path.is_dir());
        let path = other.path.clone();
        drop(other);
        assert!(!path.exists());
    }
}
