use std::ffi::OsString;
use std::io::{self, ErrorKind, Write};
use std::path::Path;

use host_plugin_sdk::{Error, Result};

use crate::copy::MANIFEST;
use crate::dir::{Dir, failed};
use crate::id;
use crate::removal;
use crate::target::Target;

/// The file in a run's folder that contains the run's id. The sink keeps the same id in its state folder.
const OWNER: &str = ".run-id";
/// Suffix of the name of an incomplete folder.
const PARTIAL: &str = ".partial";
/// Precedes [`PARTIAL`] in the name of a checkpoint that is being removed.
const REMOVED: &str = ".removed";
/// Precedes [`PARTIAL`] in the name of a checkpoint that is being replaced.
const REPLACED: &str = ".replaced";

/// The folder of one run. No other run writes to it or prunes it, even if that run has the same name.
#[derive(Debug)]
pub(crate) struct RunFolder {
    dir: Dir,
    is_new: bool,
}

impl RunFolder {
    /// Opens the run's folder in the target, or creates it. Its name is `RUN`. If that name is already used,
    /// its name is `RUN-2`, and so on. Once the run has a folder, only that folder is accepted.
    pub(crate) fn claim(target: &mut Target, run: &str) -> Result<Self> {
        if let Some(name) = target.folder() {
            let path = target.dir.path().join(name);
            return match target.dir.dir(name) {
                Ok(dir) if owner(&dir)?.as_ref() == Some(&target.id) => {
                    Ok(Self { dir, is_new: false })
                }
                Ok(_) => Err(target.is_another(&path)),
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    let gone = target.is_another(&path);
                    Err(Error::temporary(format!(
                        "the folder was removed or renamed; {}",
                        gone.message()
                    )))
                }
                Err(error) => Err(failed("open folder", &path, &error)),
            };
        }
        let mut name = run.to_owned();
        for number in 2.. {
            let path = target.dir.path().join(&name);
            match target.dir.make_dir(&name) {
                Ok(dir) => {
                    let is_own = owner(&dir)?.as_ref() == Some(&target.id);
                    if is_own || take(&dir, &target.id)? {
                        dir.sync().map_err(|e| failed("sync", &path, &e))?;
                        let above = &target.dir;
                        above.sync().map_err(|e| failed("sync", above.path(), &e))?;
                        target.claim_folder(&name)?;
                        let is_new = !is_own;
                        return Ok(Self { dir, is_new });
                    }
                }
                // A link or a file already has this name: try the next name.
                Err(_) if target.dir.has(&name) => {}
                Err(error) => return Err(failed("create folder", &path, &error)),
            }
            name = format!("{run}-{number}");
        }
        unreachable!("one of the numbered names is always free")
    }

    pub(crate) fn dir(&self) -> &Dir {
        &self.dir
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Whether `claim` created the folder. Also true if `claim` marked an existing empty folder as the folder
    /// of this run.
    pub(crate) fn is_new(&self) -> bool {
        self.is_new
    }

    /// Creates the folder in which a checkpoint is assembled.
    pub(crate) fn make_partial(&self, checkpoint: &str) -> Result<Dir> {
        let name = format!("{checkpoint}{PARTIAL}");
        let made = self.dir.make_dir(&name);
        made.map_err(|e| failed("create folder", &self.path().join(&name), &e))
    }

    /// Removes an incomplete checkpoint. Errors are ignored, because the next publish tries to remove it
    /// again.
    pub(crate) fn drop_partial(&self, checkpoint: &str) {
        let _ = self.dir.remove_all(format!("{checkpoint}{PARTIAL}"));
    }

    /// Removes or restores the folders that a crash left behind. Returns warnings.
    pub(crate) fn remove_partial(&self) -> Result<Vec<String>> {
        let names = self.dir.names();
        let names = names.map_err(|e| failed("read folder", self.path(), &e))?;
        let mut warnings = Vec::new();
        for name in names {
            let name = name.to_string_lossy();
            let Some((checkpoint, was)) = partial(&name) else {
                continue;
            };
            let done = if was == REPLACED && !self.dir.has(checkpoint) {
                // The crash happened before the new checkpoint was renamed: restore the old one.
                self.dir.rename(&*name, checkpoint).map(|()| None)
            } else if !was.is_empty() || self.holds_manifest(&name) {
                // If `put` exchanged the two folders before the crash, the folder with the partial name
                // contains the replaced checkpoint.
                self.dispose(&name, checkpoint, false)
            } else {
                self.dir.remove_all(&*name).map(|()| None)
            };
            warnings.extend(done.map_err(|e| failed("remove", &self.path().join(&*name), &e))?);
        }
        Ok(warnings)
    }

    fn holds_manifest(&self, name: &str) -> bool {
        self.dir.dir(name).is_ok_and(|dir| dir.has(MANIFEST))
    }

    /// Makes a finished copy visible. Removes the old checkpoint of the same step, if there is one. After a
    /// crash, the next publish finds either the old or the new checkpoint. Set `repairs` if the old
    /// checkpoint is a damaged copy of the new one. Returns a warning if the old folder contains files that
    /// do not belong to the checkpoint.
    pub(crate) fn put(&self, checkpoint: &str, repairs: bool) -> Result<Option<String>> {
        let partial = format!("{checkpoint}{PARTIAL}");
        let replaced = format!("{checkpoint}{REPLACED}{PARTIAL}");
        let put = || -> io::Result<Option<&str>> {
            let old = if !self.dir.has(checkpoint) {
                self.dir.rename(&partial, checkpoint)?;
                None
            } else if self.dir.exchange(&partial, checkpoint).is_ok() {
                Some(&*partial)
            } else {
                // If a crash happens between the two renames, `remove_partial` restores the old checkpoint.
                self.dir.rename(checkpoint, &replaced)?;
                self.dir.rename(&partial, checkpoint).inspect_err(|_| {
                    let _ = self.dir.rename(&replaced, checkpoint);
                })?;
                Some(&*replaced)
            };
            self.dir.sync()?;
            Ok(old)
        };
        let path = self.path().join(checkpoint);
        match put().map_err(|e| failed("move into place", &path, &e))? {
            None => Ok(None),
            Some(old) => self
                .dispose(old, checkpoint, repairs)
                .map_err(|e| failed("remove", &self.path().join(old), &e)),
        }
    }

    /// Removes a checkpoint. Returns a warning if its folder contains files that do not belong to it.
    pub(crate) fn remove(&self, checkpoint: &str) -> Result<Option<String>> {
        // Rename first, so that a partially removed checkpoint is never visible.
        let removed = format!("{checkpoint}{REMOVED}{PARTIAL}");
        self.dir
            .rename(checkpoint, &removed)
            .and_then(|()| self.dispose(&removed, checkpoint, false))
            .map_err(|e| failed("remove", &self.path().join(checkpoint), &e))
    }

    /// Removes the files of a checkpoint from a folder. If other files are left, renames the folder to the
    /// checkpoint's name or another unused name.
    fn dispose(&self, doomed: &str, checkpoint: &str, repairs: bool) -> io::Result<Option<String>> {
        let left = removal::remove(&self.dir, doomed, repairs)?;
        if left.is_empty() {
            return Ok(None);
        }
        let place = self.free_name(checkpoint);
        self.dir.rename(doomed, &place)?;
        Ok(Some(format!(
            "{checkpoint} was removed, but its folder remains because it contains other files ({}): {}",
            listed(&left),
            self.path().join(place).display()
        )))
    }

    /// Points a symbolic link in the run's folder to a checkpoint in the same folder. Returns an error if the
    /// link's name is used by an entry that is not a link of the sink.
    pub(crate) fn point(&self, link: &str, checkpoint: &str) -> Result<()> {
        let path = self.path().join(link);
        match self.dir.link_text(link) {
            Some(text) if text == checkpoint => return Ok(()),
            Some(text) if text.starts_with("step-") => {}
            None if !self.dir.has(link) => {}
            _ => {
                return Err(Error::new(format!(
                    "a file or folder with the link's name already exists, but was not created by this sink: move it away: {}",
                    path.display()
                )));
            }
        }
        let pointed = self.dir.point(link, checkpoint);
        pointed.map_err(|e| failed("link", &path, &e))
    }

    /// Returns an unused name for the folder that is left after a checkpoint was removed. Prefers the
    /// checkpoint's own name.
    fn free_name(&self, checkpoint: &str) -> String {
        let beside = (1..).map(|number| match number {
            1 => format!("{checkpoint}{REPLACED}"),
            number => format!("{checkpoint}{REPLACED}-{number}"),
        });
        let mut names = std::iter::once(checkpoint.to_owned()).chain(beside);
        let free = names.find(|name| !self.dir.has(name));
        free.expect("one of the numbered names is always free")
    }
}

/// Parses the name of a partial folder. Returns the checkpoint's name and one of [`REMOVED`], [`REPLACED`]
/// and the empty string. Returns `None` for other names.
fn partial(name: &str) -> Option<(&str, &str)> {
    let name = name.strip_suffix(PARTIAL)?;
    let (checkpoint, was) = [REMOVED, REPLACED]
        .into_iter()
        .find_map(|was| Some((name.strip_suffix(was)?, was)))
        .unwrap_or((name, ""));
    let step = checkpoint.strip_prefix("step-")?;
    let is_step = step.len() >= 6 && step.bytes().all(|byte| byte.is_ascii_digit());
    is_step.then_some((checkpoint, was))
}

/// Returns the first few names as text for a message.
fn listed(names: &[OsString]) -> String {
    let mut names: Vec<String> = names
        .iter()
        .map(|name| name.display().to_string())
        .collect();
    names.sort();
    let more = names.len().saturating_sub(3);
    names.truncate(3);
    match more {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}

/// Returns the id of the run that a folder belongs to. Returns `None` if the folder is not marked.
fn owner(dir: &Dir) -> Result<Option<String>> {
    match dir.read(OWNER, id::LENGTH as u64) {
        Ok(bytes) => Ok(id::parse(&bytes)),
        Err(error) if is_disk_trouble(&error) => {
            Err(failed("read", &dir.path().join(OWNER), &error))
        }
        Err(_) => Ok(None),
    }
}

/// Whether an I/O error is temporary. Such an error does not mean that the file is missing.
fn is_disk_trouble(error: &io::Error) -> bool {
    use ErrorKind::{Interrupted, NotConnected, StaleNetworkFileHandle, TimedOut};
    matches!(
        error.kind(),
        Interrupted | NotConnected | StaleNetworkFileHandle | TimedOut
    ) || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

/// Marks an empty folder as the folder of a run. Returns whether it succeeded. Of several concurrent calls,
/// only one succeeds.
fn take(dir: &Dir, id: &str) -> Result<bool> {
    let names = dir.names();
    let names = names.map_err(|e| failed("read folder", dir.path(), &e))?;
    if !names.is_empty() {
        return Ok(false);
    }
    let write = |e| failed("write", &dir.path().join(OWNER), &e);
    match dir.create(OWNER) {
        Ok(mut file) => {
            let written = file.write_all(id.as_bytes());
            written.and_then(|()| file.sync_all()).map_err(write)?;
            Ok(true)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(write(error)),
    }
}
