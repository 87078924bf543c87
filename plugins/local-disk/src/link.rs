//! Transfers a file from the run folder: links it if possible, and otherwise copies it. In every case, the
//! data is read and verified against the manifest.

use std::fs;
use std::io;
use std::path::Path;

use host_plugin_sdk::{Cancel, Error, FileEntry, Result};
use serde::{Deserialize, Serialize};

use crate::copy::copy_verified;
use crate::dir::{Dir, failed, open_file};

/// Minimum size of a file that `auto` hard-links. Weights and optimizer state are larger than this.
/// Configurations and tokenizers are smaller, and must not be hard-linked: users edit them, and an edit in
/// place would also change the run's file.
pub(crate) const HARD_LINK_BYTES: u64 = 16 << 20;

/// The setting `link`: how to transfer files. If a file cannot be transferred in this way, it is copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Link {
    /// A reflink. If that fails, a hard link for large files.
    #[default]
    Auto,
    Reflink,
    Hard,
    Copy,
}

/// How a file was transferred. Ordered by how much the result shares with the run folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Way {
    /// The data was copied.
    Copy,
    /// A separate file that shares its data on the disk with the run's file until one of the two is changed.
    Reflink,
    /// A second name for the run's file.
    Hard,
}

/// Transfers the files of one checkpoint.
pub(crate) struct Transfer<'a> {
    cancel: &'a Cancel,
    tries_reflink: bool,
    tries_hard: bool,
    /// Minimum size of a file that is hard-linked.
    hard_from_bytes: u64,
    /// How the files were transferred: the greatest [`Way`] of all files.
    pub(crate) way: Way,
    /// Total size of the copied files.
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

    /// Transfers a file to a new name and syncs it to the disk.
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

    /// Tries to create a reflink. Returns whether it succeeded. After a failure, later calls return `false`
    /// at once.
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
        // A hard link to a symbolic link would be a symbolic link.
        let is_file = fs::symlink_metadata(source).is_ok_and(|source| source.is_file());
        self.tries_hard = is_file && folder.link(source, name).is_ok();
        self.tries_hard
    }
}
