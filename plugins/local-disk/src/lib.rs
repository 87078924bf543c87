//! Keeps complete checkpoints in a folder: `DIR/RUN/step-000100/`, the last `keep` of each run and the
//! best `keep_best` by a metric.
//!
//! ```toml
//! [[plugin]]
//! id = "local-disk"
//! dir = "/data/checkpoints"
//! keep = 3                    # the newest; all if neither this nor keep_best is given
//! keep_best = 1               # and the best, however old, of a line that the run gave up too
//! metric = "loss/eval"        # the default; any of the evaluation will do
//! greater_is_better = false   # the default; true for accuracies
//! link = "auto"               # the default: reflink, else a hard link of large files, else a copy
//! pointers = true             # `latest` and `best` lead to checkpoints; the default is false
//! ```
//!
//! A checkpoint appears by one rename after everything was verified and synced, or not at all.
//! Whatever is called `step-….partial` is unfinished or being removed, and goes at the next publish.
//! Nothing is ever removed that `.kept.json` in the run's folder does not name, with its manifest's
//! sha256, and of that only what its manifest lists and nobody has changed. A run's folder belongs to one
//! sink of one run, whose id is in `.run-id`. `.local-disk` in `DIR` marks it as the folder that it is: what
//! has its path without the marker, such as a mount point whose disk is gone, gets nothing.

#![forbid(unsafe_code)]

mod copy;
mod dir;
mod id;
mod kept;
mod link;
mod preflight;
mod removal;
mod retention;
mod run_folder;
mod target;

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use host_plugin_sdk::{
    Cancel, Checkpoint, CheckpointSink, Error, Host, Preflight, Result, export_plugin,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::copy::Placed;
use crate::dir::{Dir, Identity, failed};
use crate::kept::{Entry, Kept};
use crate::link::{Link, Way};
use crate::retention::{Best, Retention};
use crate::run_folder::RunFolder;
use crate::target::Target;

/// The settings; `config.schema.json` describes them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    dir: String,
    keep: Option<NonZeroUsize>,
    keep_best: Option<NonZeroUsize>,
    metric: Option<String>,
    greater_is_better: Option<bool>,
    #[serde(default)]
    link: Link,
    #[serde(default)]
    pointers: bool,
}

/// Keeps checkpoints in a folder.
#[derive(Debug)]
pub struct LocalDisk {
    /// Absolute.
    dir: PathBuf,
    /// What had its path when this was made.
    found: Option<Identity>,
    /// None keeps all.
    retention: Option<Retention>,
    link: Link,
    pointers: bool,
    host: Host,
    /// What was said once already.
    told: Told,
}

#[derive(Debug, Default)]
struct Told {
    copies: bool,
    lacks_metric: bool,
    pointers: bool,
}

impl CheckpointSink for LocalDisk {
    type Config = Config;

    fn create(config: Config, host: Host) -> Result<Self> {
        let dir = absolute(&config.dir, std::env::home_dir())?;
        let (link, pointers) = (config.link, config.pointers);
        let retention = retention(config)?;
        // Now rather than at the first checkpoint, which may be hours away.
        fs::create_dir_all(&dir).map_err(|error| Error::io("create folder", &dir, &error))?;
        let found = Dir::open(&dir).and_then(|dir| dir.identity()).ok();
        Ok(Self {
            dir,
            found,
            retention,
            link,
            pointers,
            host,
            told: Told::default(),
        })
    }

    fn publish(&mut self, checkpoint: &Checkpoint<'_>, cancel: &Cancel) -> Result<Value> {
        let mut target = Target::open(&self.dir, checkpoint.state_dir(), self.found)?;
        let folder = RunFolder::claim(&mut target, checkpoint.run())?;
        if folder.is_new() && !folder.path().ends_with(checkpoint.run()) {
            self.host.info(&format!(
                "{} is taken, this run's checkpoints go to {}",
                self.dir.join(checkpoint.run()).display(),
                folder.path().display()
            ));
        }
        self.warn(folder.remove_partial()?);
        let mut kept = Kept::read(folder.dir())?;
        let step = checkpoint.step();
        let path = kept.path(step);
        let there = folder.dir().dir(Kept::name(step));
        if there.is_ok_and(|there| copy::holds(&there, checkpoint.manifest())) {
            kept.update_metrics(step, checkpoint.metrics())?;
        } else {
            self.place(checkpoint, &folder, &mut kept, cancel)?;
        }
        // What somebody else put there has none.
        let placed = kept.find(step).map(|entry| entry.placed.clone());
        self.warn_of_metric(checkpoint);
        if let Err(error) = self.prune(&folder, &mut kept, step) {
            // The checkpoint stands; the next publish prunes again.
            self.host.warn(error.message());
        }
        self.point(&folder, &kept, step);
        self.check_in_place(&target, &folder)?;
        let mut receipt = json!({ "path": path });
        if let Some(placed) = placed {
            receipt["link"] = json!(placed.link);
            receipt["written_bytes"] = json!(placed.written_bytes);
            receipt["manifest_sha256"] = json!(placed.manifest_sha256);
        }
        Ok(receipt)
    }

    fn preflight(&mut self, preflight: &Preflight<'_>, _cancel: &Cancel) -> Result<Option<String>> {
        self.look(preflight).map(Some)
    }
}

impl LocalDisk {
    fn place(
        &mut self,
        checkpoint: &Checkpoint<'_>,
        folder: &RunFolder,
        kept: &mut Kept<'_>,
        cancel: &Cancel,
    ) -> Result<()> {
        let step = checkpoint.step();
        let name = Kept::name(step);
        let before = kept.find(step).map(|before| before.placed.clone());
        if before.is_none() && folder.dir().has(&name) {
            return Err(Error::new(format!(
                "what has the checkpoint's name was not put there by this sink, move it away: {}",
                kept.path(step).display()
            )));
        }
        let mut place = || -> Result<Placed> {
            let partial = folder.make_partial(&name)?;
            let placed = copy::place(checkpoint, &partial, self.link, cancel)?;
            kept.note(Entry::new(step, placed.clone(), checkpoint.metrics()))?;
            Ok(placed)
        };
        let placed = place().inspect_err(|_| folder.drop_partial(&name))?;
        let repairs = before.is_some_and(|it| it.manifest_sha256 == placed.manifest_sha256);
        self.warn(folder.put(&name, repairs)?);
        let asked = matches!(self.link, Link::Reflink | Link::Hard);
        if asked && placed.link == Way::Copy && !std::mem::replace(&mut self.told.copies, true) {
            self.host.warn(&format!(
                "the file system gives no link of this kind to {}, files are copied: {}",
                checkpoint.dir().display(),
                folder.path().display()
            ));
        }
        Ok(())
    }

    /// Says once that a checkpoint cannot be among the best.
    fn warn_of_metric(&mut self, checkpoint: &Checkpoint<'_>) {
        let metrics = checkpoint.metrics();
        if let Some(retention) = &self.retention
            && let Some(best) = &retention.best
            // A checkpoint that somebody asked for comes without an evaluation.
            && !metrics.is_empty()
            && !metrics.contains_key(&best.metric)
            && !std::mem::replace(&mut self.told.lacks_metric, true)
        {
            let names: Vec<&str> = metrics.keys().map(String::as_str).collect();
            self.host.warn(&format!(
                "step {} has no {}, so keep_best does not count it; set metric to one of: {}",
                checkpoint.step(),
                best.metric,
                names.join(", ")
            ));
        }
    }

    /// Removes what is neither new nor good enough; the one of this step stays in any case.
    fn prune(&self, folder: &RunFolder, kept: &mut Kept<'_>, step: u64) -> Result<()> {
        if let Some(retention) = &self.retention {
            let standing = kept.standing();
            let stays = retention.kept(&standing);
            for entry in standing {
                if entry.step != step && !stays.contains(&entry.step) {
                    self.warn(folder.remove(&Kept::name(entry.step))?);
                }
            }
        }
        kept.forget_removed()
    }

    /// Lets `latest` lead to this step, and `best` to the best that stands. A failure is said once.
    fn point(&mut self, folder: &RunFolder, kept: &Kept<'_>, step: u64) {
        if !self.pointers {
            return;
        }
        let best = self.retention.as_ref().and_then(|it| it.best.as_ref());
        let best = best.and_then(|best| best.steps(&kept.standing()).next());
        let pointed = folder
            .point("latest", &Kept::name(step))
            .and_then(|()| best.map_or(Ok(()), |best| folder.point("best", &Kept::name(best))));
        if let Err(error) = pointed
            && !std::mem::replace(&mut self.told.pointers, true)
        {
            self.host.warn(error.message());
        }
    }

    /// A folder that went away while it was written to has what came of that, and nobody finds it there.
    fn check_in_place(&self, target: &Target, folder: &RunFolder) -> Result<()> {
        let path = folder.path();
        let now = Dir::open(&self.dir)
            .and_then(|dir| dir.dir(path.file_name().unwrap_or_default()))
            .and_then(|dir| dir.identity());
        let then = folder.dir().identity();
        match then.map_err(|e| failed("ask", path, &e))? {
            then if now.is_ok_and(|now| now == then) => Ok(()),
            _ => Err(target.is_another(path)),
        }
    }

    fn warn(&self, warnings: impl IntoIterator<Item = String>) {
        warnings.into_iter().for_each(|line| self.host.warn(&line));
    }
}

fn retention(config: Config) -> Result<Option<Retention>> {
    if config.keep_best.is_none() && (config.metric.is_some() || config.greater_is_better.is_some())
    {
        return Err(Error::new(
            "metric and greater_is_better are of use only with keep_best",
        ));
    }
    let best = config.keep_best.map(|keep| Best {
        keep,
        metric: config.metric.unwrap_or_else(|| "loss/eval".to_owned()),
        greater_is_better: config.greater_is_better.unwrap_or(false),
    });
    // Beside the best stays the newest: it is what goes on.
    let keep = config.keep.or(best.as_ref().map(|_| NonZeroUsize::MIN));
    Ok(keep.map(|keep| Retention { keep, best }))
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
