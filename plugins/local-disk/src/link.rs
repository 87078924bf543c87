//! How a file arrives: shared with the run folder where that goes, else copied. Whichever way it took,
//! what arrived was read and is what the manifest says, or it is an error.

use std::fs;
use std::io;
use std::path::Path;

use host_plugin_sdk::{Cancel, Error, FileEntry, Result};
use serde::{Deserialize, Serialize};

use crate::copy::copy_verified;
use crate::dir::{Dir, failed, open_file};

/// From this size on, `auto` hard-links a file: weights, and the optimizer's state. What people edit,
/// configurations and tokenizers, is smaller, and an edit in place would change the run's file too.
pub(crate) const HARD_LINK_BYTES: u64 = 16 << 20;

/// The setting `link`: the first way that is tried. The last is always a copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Link {
    /// A reflink, else a hard link of a large file.
    #[default]
    Auto,
    Reflink,
    Hard,
    Copy,
}

/// The way a file took; the more it shares with the run folder, the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Way {
    /// Its bytes were written again.
    Copy,
    /// A file of its own, whose bytes are on the disk once until one of the two is changed.
    Reflink,
    /// It is the run's own file under a second name.
    Hard,
}

/// The files of one checkpoint on their way.
pub(crate) struct Transfer<'a> {
    cancel: &'a Cancel,
    tries_reflink: bool,
    tries_hard: bool,
    /// Smaller files are not hard-linked.
    hard_from_bytes: u64,
    /// The most that any file shares.
    pub(crate) way: Way,
    /// What was written of the files.
    pub(crate) written_bytes: u64,
}

impl<'a> Transfer<'a> {
    pub(crate) fn new(link: Link, cancel: &'a Cancel) -> Self {
        Self {
            cancel,
            tries_reflink: matches!(link, Link::Auto | Link::Reflink),
            tries_hard: matches!(link, Link::Auto | Link::Hard),
            hard_from_bytes: match link {
                Link::Auto => HARD_LINK_BYTES,
                _ => 0,
            },
            way: Way::Copy,
            written_bytes: 0,
        }
    }

    /// Brings a file to a place where none is, and waits until it is on the disk.
    pub(crate) fn file(
        &mut self,
        source: &Path,
        (folder, name): (&Dir, &str),
        entry: &FileEntry,
    ) -> Result<()> {
        self.cancel.check()?;
        let target = &folder.path().join(name);
        let input = open_file(source).map_err(|e| Error::io("read", source, &e))?;
        let way = if self.reflink(&input, (folder, name))? {
            Way::Reflink
        } else if self.hard_link(source, (folder, name), entry) {
            Way::Hard
        } else {
            Way::Copy
        };
        let arrived = if way == Way::Copy {
            let copy = folder.create(name);
            let copy = copy.map_err(|e| failed("create", target, &e))?;
            copy_verified((source, input), (target, &copy), entry, self.cancel)?;
            self.written_bytes += entry.size;
            copy
        } else {
            let arrived = folder.file(name).map_err(|e| failed("read", target, &e))?;
            copy_verified((source, &arrived), (target, io::sink()), entry, self.cancel)?;
            arrived
        };
        self.way = self.way.max(way);
        arrived
            .sync_all()
            .map_err(|error| failed("write", target, &error))
    }

    /// Whether it went. A file system that cannot do it once is not asked again.
    fn reflink(&mut self, source: &fs::File, (folder, name): (&Dir, &str)) -> Result<bool> {
        if !self.tries_reflink {
            return Ok(false);
        }
        let target = &folder.path().join(name);
        let to = folder.create(name);
        let to = to.map_err(|e| failed("create", target, &e))?;
        if rustix::fs::ioctl_ficlone(&to, source).is_ok() {
            return Ok(true);
        }
        self.tries_reflink = false;
        folder
            .unlink(name)
            .map_err(|e| failed("remove", target, &e))?;
        Ok(false)
    }

    fn hard_link(
        &mut self,
        source: &Path,
        (folder, name): (&Dir, &str),
        entry: &FileEntry,
    ) -> bool {
        if !self.tries_hard || entry.size < self.hard_from_bytes {
            return false;
        }
        // The link of a symbolic link would be one too.
        let is_file = fs::symlink_metadata(source).is_ok_and(|source| source.is_file());
        self.tries_hard = is_file && folder.link(source, name).is_ok();
        self.tries_hard
    }
}
