//! Before the first step: can the folder be written, and is there room?

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use host_plugin_sdk::{Error, Preflight, Result};

use crate::LocalDisk;
use crate::link::Link;

/// What links cost, and the folder's own files.
const LITTLE: u64 = 1 << 20;

impl LocalDisk {
    /// What was found; a warning is logged where the disk will not hold all that is to be kept.
    pub(crate) fn look(&self, preflight: &Preflight<'_>) -> Result<String> {
        let dir = &self.dir;
        // It may have gone since the sink was made.
        fs::create_dir_all(dir).map_err(|error| Error::io("create folder", dir, &error))?;
        write_and_remove(dir)?;
        let room = free_bytes(dir)?;
        let shares = self.link != Link::Copy && device(dir)? == device(preflight.state_dir())?;
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
            let wanted = wanted.saturating_sub(standing(&dir.join(preflight.run())));
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

fn write_and_remove(dir: &Path) -> Result<()> {
    let path = dir.join(format!(".preflight-{}", std::process::id()));
    let written = fs::write(&path, b"preflight");
    let written = written.map_err(|error| Error::io("write", &path, &error));
    // One that was only begun goes as well.
    match fs::remove_file(&path) {
        Err(error) if written.is_ok() => Err(Error::io("remove", &path, &error)),
        _ => written,
    }
}

fn free_bytes(dir: &Path) -> Result<u64> {
    let disk = rustix::fs::statvfs(dir).map_err(|error| Error::io("ask", dir, &error.into()))?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

fn device(path: &Path) -> Result<u64> {
    let folder = fs::metadata(path).map_err(|error| Error::io("ask", path, &error))?;
    Ok(folder.dev())
}

/// Checkpoints that are in the run's folder already, as after a resume.
fn standing(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let is_whole = |name: &String| name.starts_with("step-") && !name.ends_with(".partial");
    names.filter(is_whole).count() as u64
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
