//! Before the first step: can the folder be written, and is there room?

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;

use host_plugin_sdk::{Error, Preflight, Result};

use crate::LocalDisk;
use crate::dir::{Dir, failed};
use crate::id;
use crate::link::Link;
use crate::target::Target;

/// What links cost, and the folder's own files.
const LITTLE: u64 = 1 << 20;

impl LocalDisk {
    /// What was found; a warning is logged where the disk will not hold all that is to be kept.
    pub(crate) fn look(&self, preflight: &Preflight<'_>) -> Result<String> {
        let dir = &self.dir;
        if !Target::is_claimed(dir, preflight.state_dir()) {
            // It may have gone since the sink was made.
            fs::create_dir_all(dir).map_err(|error| Error::io("create folder", dir, &error))?;
        }
        let target = Target::open(dir, preflight.state_dir(), None)?.dir;
        write_and_remove(&target)?;
        let ask = |e| failed("ask", dir, &e);
        let room = target.free_bytes().map_err(ask)?;
        let runs = fs::metadata(preflight.state_dir()).map_err(ask)?.dev();
        let shares = self.link != Link::Copy && target.device().map_err(ask)? == runs;
        if shares {
            // Whether the file system links is known at the first checkpoint, and a copy is no failure.
            return Ok(format!("{} free: {}", megabytes(room), dir.display()));
        }
        let each = preflight.checkpoint_bytes() + LITTLE;
        if room < each {
            return Err(Error::temporary(format!(
                "{} are free, and a checkpoint takes {}: {}",
                megabytes(room),
                megabytes(each),
                dir.display()
            )));
        }
        if let Some(wanted) = self.most_at_once() {
            let standing = target.dir(preflight.run()).map_or(0, |run| standing(&run));
            let wanted = wanted.saturating_sub(standing);
            if room / each < wanted {
                self.host.warn(&format!(
                    "{} are free, and the checkpoints that are to be kept, with the one that comes in, will take {}: {}",
                    megabytes(room),
                    megabytes(each.saturating_mul(wanted)),
                    dir.display()
                ));
            }
        }
        Ok(format!(
            "room for {} checkpoints of {}: {}",
            room / each,
            megabytes(each),
            dir.display()
        ))
    }

    /// How many of a run's checkpoints are there when one more has arrived and none was removed yet.
    fn most_at_once(&self) -> Option<u64> {
        let retention = self.retention.as_ref()?;
        let best = retention.best.as_ref().map_or(0, |best| best.keep.get());
        Some((retention.keep.get() + best + 1) as u64)
    }
}

fn write_and_remove(dir: &Dir) -> Result<()> {
    // A name that nobody can have put a link at.
    let name = format!(".preflight-{}", id::new());
    let written = dir
        .create(&name)
        .and_then(|mut file| file.write_all(b"preflight"));
    // One that was only begun goes as well.
    let removed = dir.unlink(&name);
    let path = dir.path().join(&name);
    written.map_err(|error| failed("write", &path, &error))?;
    removed.map_err(|error| failed("remove", &path, &error))
}

/// Checkpoints that are in the run's folder already, as after a resume.
fn standing(folder: &Dir) -> u64 {
    let names = folder.names().unwrap_or_default().into_iter();
    let names = names.map(|name| name.to_string_lossy().into_owned());
    let is_whole = |name: &String| name.starts_with("step-") && !name.ends_with(".partial");
    names.filter(is_whole).count() as u64
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
