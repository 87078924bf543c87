use std::ffi::OsString;
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use host_plugin_sdk::{Error, Result};

use crate::copy::sync;

/// The file in a run's folder that says whose it is: the id that the run's sink keeps in its own
/// state folder.
const OWNER: &str = ".run-id";
/// What ends the name of a folder that is not, or no longer, complete.
const PARTIAL: &str = ".partial";
const ID_LENGTH: usize = 32;

/// The folder of one run. No other run writes to it or prunes it, though it be called the same.
#[derive(Debug)]
pub(crate) struct RunFolder {
    path: PathBuf,
    is_new: bool,
}

impl RunFolder {
    /// The run's folder in `dir`, made if it has none: `RUN`, or `RUN-2` and so on where that
    /// belongs to another run.
    pub(crate) fn claim(dir: &Path, run: &str, state_dir: &Path) -> Result<Self> {
        let id = run_id(state_dir)?;
        let mut path = dir.join(run);
        for number in 2.. {
            match fs::create_dir(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    // It was there when the run began: an unmounted disk, perhaps.
                    let message = format!("the folder is gone: {}", dir.display());
                    return Err(Error::temporary(message));
                }
                Err(error) => return Err(Error::io("create folder", &path, &error)),
            }
            if fs::read_to_string(path.join(OWNER)).is_ok_and(|owner| owner == id) {
                return Ok(Self {
                    path,
                    is_new: false,
                });
            }
            if take(&path, &id)? {
                sync(&path)?;
                sync(dir)?;
                return Ok(Self { path, is_new: true });
            }
            path = dir.join(format!("{run}-{number}"));
        }
        unreachable!("a folder has fewer entries than there are numbers")
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it was claimed just now.
    pub(crate) fn is_new(&self) -> bool {
        self.is_new
    }

    /// Where a checkpoint is put together.
    pub(crate) fn partial(&self, target: &Path) -> PathBuf {
        with_suffix(target, PARTIAL)
    }

    /// Removes what a crash left.
    pub(crate) fn remove_partial(&self) -> Result<()> {
        for name in self.names()? {
            if is_partial(&name.to_string_lossy()) {
                remove(&self.path.join(name))?;
            }
        }
        Ok(())
    }

    /// Makes a finished copy visible. What was there under its name, another checkpoint of the
    /// same step, goes.
    pub(crate) fn put(&self, partial: &Path, target: &Path) -> Result<()> {
        let replaced = with_suffix(target, ".replaced.partial");
        let replaces = match fs::rename(target, &replaced) {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => return Err(Error::io("replace", target, &error)),
        };
        fs::rename(partial, target).map_err(|error| {
            if replaces {
                // Best effort; what cannot even go back is removed by the next publish.
                let _ = fs::rename(&replaced, target);
            }
            Error::io("create folder", target, &error)
        })?;
        sync(&self.path)?;
        if replaces {
            remove(&replaced)?;
        }
        Ok(())
    }

    /// Removes a checkpoint.
    pub(crate) fn remove(&self, checkpoint: &Path) -> Result<()> {
        // Invisible first, so that nobody sees it half removed.
        let removed = with_suffix(checkpoint, ".removed.partial");
        fs::rename(checkpoint, &removed).map_err(|e| Error::io("remove", checkpoint, &e))?;
        remove(&removed)
    }

    fn names(&self) -> Result<Vec<OsString>> {
        fs::read_dir(&self.path)
            .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect())
            .map_err(|error| Error::io("read folder", &self.path, &error))
    }
}

/// Whether a folder has a name that only this sink gives.
fn is_partial(name: &str) -> bool {
    let step = || name.strip_prefix("step-")?.strip_suffix(PARTIAL);
    step().is_some_and(|step| {
        let step = step.strip_suffix(".replaced").unwrap_or(step);
        let step = step.strip_suffix(".removed").unwrap_or(step);
        step.len() >= 6 && step.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// Marks a folder as the run's if it is nobody's and empty. Of several that try, one succeeds.
fn take(path: &Path, id: &str) -> Result<bool> {
    let write = |error| Error::io("write", &path.join(OWNER), &error);
    let mut entries = fs::read_dir(path).map_err(|e| Error::io("read folder", path, &e))?;
    if entries.next().is_some() {
        return Ok(false);
    }
    match File::create_new(path.join(OWNER)) {
        Ok(mut file) => {
            file.write_all(id.as_bytes())
                .and_then(|()| file.sync_all())
                .map_err(write)?;
            Ok(true)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(write(error)),
    }
}

/// The id that this run's sink drew when it first published.
fn run_id(state_dir: &Path) -> Result<String> {
    let path = state_dir.join("run-id");
    if let Ok(id) = fs::read_to_string(&path)
        && id.len() == ID_LENGTH
    {
        return Ok(id);
    }
    // The standard library's source of randomness; ids need to differ, not to be secret.
    let random = || RandomState::new().build_hasher().finish();
    let id = format!("{:016x}{:016x}", random(), random());
    let write = |error| Error::io("write", &path, &error);
    let mut file = File::create(&path).map_err(write)?;
    file.write_all(id.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(write)?;
    sync(state_dir)?;
    Ok(id)
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::io("remove", folder, &error))
        }
        _ => Ok(()),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
