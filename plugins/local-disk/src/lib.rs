//! Keeps complete checkpoints in a folder: `DIR/RUN/step-000100/`, the last `keep` of each run.
//!
//! A checkpoint appears by one rename after everything was verified and synced, or not at all.
//! Whatever ends in `.partial` is unfinished or being removed, and goes at the next publish.

#![forbid(unsafe_code)]

mod copy;
mod run_folder;

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use host_plugin_sdk::{Cancel, Checkpoint, CheckpointSink, Error, Host, Result, export_plugin};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::run_folder::RunFolder;

/// The settings; `config.schema.json` describes them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    dir: String,
    keep: Option<NonZeroUsize>,
}

/// Copies checkpoints into a folder.
#[derive(Debug)]
pub struct LocalDisk {
    /// Absolute.
    dir: PathBuf,
    keep: Option<NonZeroUsize>,
    host: Host,
}

impl CheckpointSink for LocalDisk {
    type Config = Config;

    fn create(config: Config, host: Host) -> Result<Self> {
        let dir = absolute(&config.dir, std::env::home_dir())?;
        // Now rather than at the first checkpoint, which may be hours away.
        fs::create_dir_all(&dir).map_err(|error| Error::io("create folder", &dir, &error))?;
        Ok(Self {
            dir,
            keep: config.keep,
            host,
        })
    }

    fn publish(&mut self, checkpoint: &Checkpoint<'_>, cancel: &Cancel) -> Result<Value> {
        let folder = RunFolder::claim(&self.dir, checkpoint.run(), checkpoint.state_dir())?;
        if folder.is_new() && !folder.path().ends_with(checkpoint.run()) {
            self.host.info(&format!(
                "{} is taken, this run's checkpoints go to {}",
                self.dir.join(checkpoint.run()).display(),
                folder.path().display()
            ));
        }
        folder.remove_partial()?;
        let target = folder.path().join(format!("step-{:06}", checkpoint.step()));
        if !copy::holds(&target, checkpoint.manifest()) {
            let partial = folder.partial(&target);
            if let Err(error) = copy::copy_checkpoint(checkpoint, &partial, cancel) {
                // Best effort: the next publish removes it too.
                let _ = fs::remove_dir_all(&partial);
                return Err(error);
            }
            folder.put(&partial, &target)?;
        }
        if let Some(keep) = self.keep
            && let Err(error) = folder.prune(keep, &target)
        {
            // The checkpoint stands; the next publish prunes again.
            self.host.warn(error.message());
        }
        Ok(json!({ "path": target }))
    }
}

/// The folder that a setting means. Shells leave the `~` of `dir=~/checkpoints` to the program.
fn absolute(dir: &str, home: Option<PathBuf>) -> Result<PathBuf> {
    if dir.is_empty() {
        return Err(Error::new("dir is empty"));
    }
    let in_home = match dir.strip_prefix('~') {
        Some("") => home,
        Some(rest) => rest
            .strip_prefix('/')
            .and_then(|rest| Some(home?.join(rest))),
        None => None,
    };
    let path = in_home.unwrap_or_else(|| PathBuf::from(dir));
    std::path::absolute(&path).map_err(|error| Error::io("find", Path::new(dir), &error))
}

export_plugin! {
    description: "Keeps complete checkpoints in a folder",
    checkpoint_sink: LocalDisk,
    config: "config.schema.json",
}

#[cfg(test)]
mod tests;
