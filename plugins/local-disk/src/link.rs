//! How a file arrives: shared with the run folder where that goes, else copied. Whichever way it took,
//! what arrived was read and is what the manifest says, or it is an error.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use host_plugin_sdk::{Cancel, Error, FileEntry, Result};
use serde::{Deserialize, Serialize};

use crate::copy::{copy_verified, create_file};

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
    pub(crate) fn file(&mut self, source: &Path, target: &Path, entry: &FileEntry) -> Result<()> {
        self.cancel.check()?;
        let way = if self.reflink(source, target)? {
            Way::Reflink
        } else if self.hard_link(source, target, entry) {
            Way::Hard
        } else {
            Way::Copy
        };
        let write = |error: io::Error| Error::io("write", target, &error);
        let open = |path: &Path| File::open(path).map_err(|e| Error::io("read", source, &e));
        let arrived = if way == Way::Copy {
            let copy = create_file(target)?;
            copy_verified((source, open(source)?), (target, &copy), entry, self.cancel)?;
            self.written_bytes += entry.size;
            copy
        } else {
            let arrived = open(target)?;
            copy_verified((source, &arrived), (target, io::sink()), entry, self.cancel)?;
            arrived
        };
        self.way = self.way.max(way);
        arrived.sync_all().map_err(write)
    }

    /// Whether it went. A file system that cannot do it once is not asked again.
    fn reflink(&mut self, source: &Path, target: &Path) -> Result<bool> {
        if !self.tries_reflink {
            return Ok(false);
        }
        let from = File::open(source).map_err(|e| Error::io("read", source, &e))?;
        let to = create_file(target)?;
        if rustix::fs::ioctl_ficlone(&to, &from).is_ok() {
            return Ok(true);
        }
        self.tries_reflink = false;
        fs::remove_file(target).map_err(|e| Error::io("remove", target, &e))?;
        Ok(false)
    }

    fn hard_link(&mut self, source: &Path, target: &Path, entry: &FileEntry) -> bool {
        if !self.tries_hard || entry.size < self.hard_from_bytes {
            return false;
        }
        // The link of a symbolic link would be one too.
        let is_file = fs::symlink_metadata(source).is_ok_and(|source| source.is_file());
        self.tries_hard = is_file && fs::hard_link(source, target).is_ok();
        self.tries_hard
    }
}
