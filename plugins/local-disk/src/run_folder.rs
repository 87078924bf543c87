use std::ffi::OsString;
use std::io::{self, ErrorKind, Write};
use std::path::Path;

use host_plugin_sdk::{Error, Result};

use crate::copy::MANIFEST;
use crate::dir::{Dir, failed};
use crate::id;
use crate::removal;
use crate::target::Target;

/// The file in a run's folder that says whose it is: the id that the run's sink keeps in its own
/// state folder.
const OWNER: &str = ".run-id";
/// What ends the name of a folder that is not, or no longer, complete.
const PARTIAL: &str = ".partial";
/// Of one that is being removed, before that.
const REMOVED: &str = ".removed";
/// Of one in whose place another is put.
const REPLACED: &str = ".replaced";

/// The folder of one run. No other run writes to it or prunes it, though it be called the same.
#[derive(Debug)]
pub(crate) struct RunFolder {
    dir: Dir,
    is_new: bool,
}

impl RunFolder {
    /// The run's folder in the target, made if it has none: `RUN`, or `RUN-2` and so on where that
    /// belongs to another run. Once it has one, no other will do.
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
                    Err(Error::temporary(format!("it is gone; {}", gone.message())))
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
                // A link, or a file: somebody else's.
                Err(_) if target.dir.has(&name) => {}
                Err(error) => return Err(failed("create folder", &path, &error)),
            }
            name = format!("{run}-{number}");
        }
        unreachable!("a folder has fewer entries than there are numbers")
    }

    pub(crate) fn dir(&self) -> &Dir {
        &self.dir
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Whether it was claimed just now.
    pub(crate) fn is_new(&self) -> bool {
        self.is_new
    }

    /// Makes the place where a checkpoint is put together.
    pub(crate) fn make_partial(&self, checkpoint: &str) -> Result<Dir> {
        let name = format!("{checkpoint}{PARTIAL}");
        let made = self.dir.make_dir(&name);
        made.map_err(|e| failed("create folder", &self.path().join(&name), &e))
    }

    /// Removes one that did not become whole. Best effort: the next publish removes it too.
    pub(crate) fn drop_partial(&self, checkpoint: &str) {
        let _ = self.dir.remove_all(format!("{checkpoint}{PARTIAL}"));
    }

    /// Puts in order what a crash left. Returns warnings.
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
                // Nothing has come in its place.
                self.dir.rename(&*name, checkpoint).map(|()| None)
            } else if !was.is_empty() || self.holds_manifest(&name) {
                // One that was replaced lies where the one that replaced it was put together.
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

    /// Makes a finished copy visible. What was there under its name, another checkpoint of the same step,
    /// goes; at no moment is neither there for the next publish. With `repairs` it was the same one, and
    /// damaged. Returns a warning if something is left of it.
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
                // Whoever is stopped in between is set right by `remove_partial`.
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
        match put().map_err(|e| failed("put in its place", &path, &e))? {
            None => Ok(None),
            Some(old) => self
                .dispose(old, checkpoint, repairs)
                .map_err(|e| failed("remove", &self.path().join(old), &e)),
        }
    }

    /// Removes a checkpoint. Returns a warning if something is left in its folder.
    pub(crate) fn remove(&self, checkpoint: &str) -> Result<Option<String>> {
        // Invisible first, so that nobody sees it half removed.
        let removed = format!("{checkpoint}{REMOVED}{PARTIAL}");
        self.dir
            .rename(checkpoint, &removed)
            .and_then(|()| self.dispose(&removed, checkpoint, false))
            .map_err(|e| failed("remove", &self.path().join(checkpoint), &e))
    }

    /// Removes what a folder has of a checkpoint. The rest is somebody else's and gets the checkpoint's
    /// name back.
    fn dispose(&self, doomed: &str, checkpoint: &str, repairs: bool) -> io::Result<Option<String>> {
        let left = removal::remove(&self.dir, doomed, repairs)?;
        if left.is_empty() {
            return Ok(None);
        }
        let place = self.free_name(checkpoint);
        self.dir.rename(doomed, &place)?;
        Ok(Some(format!(
            "{checkpoint} was removed, but not what else was in its folder ({}): {}",
            listed(&left),
            self.path().join(place).display()
        )))
    }

    /// Lets a symbolic link in the folder lead to one of its checkpoints. What somebody else has put there
    /// under the link's name stays.
    pub(crate) fn point(&self, link: &str, checkpoint: &str) -> Result<()> {
        let path = self.path().join(link);
        match self.dir.link_text(link) {
            Some(text) if text == checkpoint => return Ok(()),
            Some(text) if text.starts_with("step-") => {}
            None if !self.dir.has(link) => {}
            _ => {
                return Err(Error::new(format!(
                    "what has the name of the link to a checkpoint is not the sink's, move it away: {}",
                    path.display()
                )));
            }
        }
        let pointed = self.dir.point(link, checkpoint);
        pointed.map_err(|e| failed("link", &path, &e))
    }

    /// A name for what is left of a checkpoint: its own, unless another one has that.
    fn free_name(&self, checkpoint: &str) -> String {
        let beside = (1..).map(|number| match number {
            1 => format!("{checkpoint}{REPLACED}"),
            number => format!("{checkpoint}{REPLACED}-{number}"),
        });
        let mut names = std::iter::once(checkpoint.to_owned()).chain(beside);
        let free = names.find(|name| !self.dir.has(name));
        free.expect("a folder has fewer entries than there are numbers")
    }
}

/// Of a folder with a name that only this sink gives: the checkpoint's name, and what became of that.
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

/// A few names, for people.
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

/// Whose a run's folder is; none if nobody has marked it.
fn owner(dir: &Dir) -> Result<Option<String>> {
    match dir.read(OWNER, id::LENGTH as u64) {
        Ok(bytes) => Ok(id::parse(&bytes)),
        Err(error) if is_disk_trouble(&error) => {
            Err(failed("read", &dir.path().join(OWNER), &error))
        }
        Err(_) => Ok(None),
    }
}

/// Whether a file may be there and says nothing just now.
fn is_disk_trouble(error: &io::Error) -> bool {
    use ErrorKind::{Interrupted, NotConnected, StaleNetworkFileHandle, TimedOut};
    matches!(
        error.kind(),
        Interrupted | NotConnected | StaleNetworkFileHandle | TimedOut
    ) || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

/// Marks a folder as the run's if it is nobody's and empty. Of several that try, one succeeds.
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
