//! Checks before the first step: the folder is writable, and there is enough disk space.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;

use host_plugin_sdk::{Error, Preflight, Result};

use crate::LocalDisk;
use crate::dir::{Dir, failed};
use crate::id;
use crate::link::Link;
use crate::target::Target;

/// Disk space in bytes that each checkpoint takes in addition to its files, for links and the sink's own
/// files.
const LITTLE: u64 = 1 << 20;

impl LocalDisk {
    /// Checks the folder and returns the result as text. Logs a warning if the disk has too little free space
    /// for the checkpoints that can be added before `keep` and `keep_best` cause the first removal.
    pub(crate) fn look(&self, preflight: &Preflight<'_>) -> Result<String> {
        let dir = &self.dir;
        if !Target::is_claimed(dir, preflight.state_dir()) {
            // The folder may have been removed since the sink was created.
            fs::create_dir_all(dir).map_err(|error| Error::io("create folder", dir, &error))?;
        }
        let target = Target::open(dir, preflight.state_dir(), None)?.dir;
        write_and_remove(&target)?;
        let ask = |e| failed("check", dir, &e);
        let room = target.free_bytes().map_err(ask)?;
        let runs = fs::metadata(preflight.state_dir()).map_err(ask)?.dev();
        let shares = self.link != Link::Copy && target.device().map_err(ask)? == runs;
        if shares {
            // Only the first delivery will show whether the file system supports links. Without links, the
            // files are copied, which is not a failure.
            return Ok(format!("{} free: {}", size(room), dir.display()));
        }
        let each = preflight.checkpoint_bytes() + LITTLE;
        if room < each {
            return Err(Error::temporary(format!(
                "not enough disk space: {} are free, a checkpoint takes {}: {}",
                size(room),
                size(each),
                dir.display()
            )));
        }
        if let Some(wanted) = self.most_at_once() {
            let standing = target.dir(preflight.run()).map_or(0, |run| standing(&run));
            let wanted = wanted.saturating_sub(standing);
            if room / each < wanted {
                self.host.warn(&format!(
                    "{} are free, but the checkpoints to keep, including the next one, will take {}: {}",
                    size(room),
                    size(each.saturating_mul(wanted)),
                    dir.display()
                ));
            }
        }
        Ok(format!(
            "room for {} checkpoints of {}: {}",
            room / each,
            size(each),
            dir.display()
        ))
    }

    /// Returns the maximum number of checkpoints that a run has on the disk at the same time. This number is
    /// reached after a new checkpoint arrives and before an old one is removed. Returns `None` if all
    /// checkpoints are kept.
    fn most_at_once(&self) -> Option<u64> {
        let retention = self.retention.as_ref()?;
        let best = retention.best.as_ref().map_or(0, |best| best.keep.get());
        Some((retention.keep.get() + best + 1) as u64)
    }
}

fn write_and_remove(dir: &Dir) -> Result<()> {
    // The name is random, so that no prepared symbolic link can have it.
    let name = format!(".preflight-{}", id::new());
    let written = dir
        .create(&name)
        .and_then(|mut file| file.write_all(b"preflight"));
    // This also removes a partially written file.
    let removed = dir.unlink(&name);
    let path = dir.path().join(&name);
    written.map_err(|error| failed("write", &path, &error))?;
    removed.map_err(|error| failed("remove", &path, &error))
}

/// Counts the checkpoints that are already in the run's folder, for example because the run was resumed.
fn standing(folder: &Dir) -> u64 {
    let names = folder.names().unwrap_or_default().into_iter();
    let names = names.map(|name| name.to_string_lossy().into_owned());
    let is_whole = |name: &String| name.starts_with("step-") && !name.ends_with(".partial");
    names.filter(is_whole).count() as u64
}

/// Formats a number of bytes in megabytes, or in gigabytes from 10 GB on.
fn size(bytes: u64) -> String {
    match bytes as f64 {
        bytes if bytes >= 1e10 => format!("{:.1} GB", bytes / 1e9),
        bytes => format!("{:.1} MB", bytes / 1e6),
    }
}
