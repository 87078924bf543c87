//! Keeps complete checkpoints in a folder, as `DIR/RUN/step-000100/`. Keeps the last `keep` checkpoints of
//! each run, and the best `keep_best` by a metric.
//!
//! ```toml
//! [[plugin]]
//! id = "local-disk"
//! dir = "/data/checkpoints"
//! keep = 3                    # the newest; all if neither this nor keep_best is set
//! keep_best = 1               # and the best, at any age, even from before a rollback
//! metric = "loss/eval"        # the default; can be any metric of the evaluation
//! greater_is_better = false   # the default; true for accuracies
//! link = "auto"               # the default: reflink, else a hard link of large files, else a copy
//! pointers = true             # creates the links `latest` and `best` to checkpoints; the default is false
//! ```
//!
//! A checkpoint becomes visible by one rename, after all its files were verified and synced. A folder
//! `step-….partial` is unfinished or being removed, and the next publish deletes it.
//!
//! The sink removes only checkpoints that `.kept.json` in the run's folder lists with the SHA-256 of their
//! manifest. Of such a checkpoint, it removes only the unchanged files that the manifest lists. A run's
//! folder belongs to one sink of one run. The file `.run-id` in it contains the run's id.
//!
//! The marker file `.local-disk` identifies `DIR`. After a run's first delivery, a folder at the path `DIR`
//! is used only if it contains the marker. The mount point of an unmounted disk, for example, does not
//! contain it.

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
    /// The identity of the folder that was at the path `dir` when the sink was created.
    found: Option<Identity>,
    /// `None` keeps all checkpoints.
    retention: Option<Retention>,
    link: Link,
    pointers: bool,
    host: Host,
    /// The warnings that were already logged.
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
        // The folder is created here already, so that an error is reported early: the first checkpoint may be
        // hours away.
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
                "{} is already in use, this run's checkpoints go to {}",
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
        // The entry is `None` for a checkpoint that the sink did not create.
        let placed = kept.find(step).map(|entry| entry.placed.clone());
        self.warn_of_metric(checkpoint);
        if let Err(error) = self.prune(&folder, &mut kept, step) {
            // The publish still succeeds, because the checkpoint was delivered. The next publish prunes
            // again.
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
                "a file or folder with the checkpoint's name already exists, but was not created by this sink: move it away: {}",
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
                "files are copied, because the file system does not support the requested kind of link to {}: {}",
                checkpoint.dir().display(),
                folder.path().display()
            ));
        }
        Ok(())
    }

    /// Warns once if a checkpoint lacks the metric of `keep_best`.
    fn warn_of_metric(&mut self, checkpoint: &Checkpoint<'_>) {
        let metrics = checkpoint.metrics();
        if let Some(retention) = &self.retention
            && let Some(best) = &retention.best
            // A checkpoint that was written on request has no evaluation.
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

    /// Removes the checkpoints that the retention does not keep. Never removes the checkpoint of this step.
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

    /// Points `latest` to this step's checkpoint and `best` to the best existing one. Warns once on failure.
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

    /// Returns an error if the folder was moved or unmounted during the publish. The checkpoint is then not
    /// at its path.
    fn check_in_place(&self, target: &Target, folder: &RunFolder) -> Result<()> {
        let path = folder.path();
        let now = Dir::open(&self.dir)
            .and_then(|dir| dir.dir(path.file_name().unwrap_or_default()))
            .and_then(|dir| dir.identity());
        let then = folder.dir().identity();
        match then.map_err(|e| failed("check", path, &e))? {
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
        return Err(Error::new("metric and greater_is_better require keep_best"));
    }
    let best = config.keep_best.map(|keep| Best {
        keep,
        metric: config.metric.unwrap_or_else(|| "loss/eval".to_owned()),
        greater_is_better: config.greater_is_better.unwrap_or(false),
    });
    // With `keep_best` alone, the newest checkpoint is kept too, because a resume needs it.
    let keep = config.keep.or(best.as_ref().map(|_| NonZeroUsize::MIN));
    Ok(keep.map(|keep| Retention { keep, best }))
}

/// Returns the absolute path of a setting. Expands `~`, which shells do not expand in `dir=~/checkpoints`.
fn absolute(dir: &str, home: Option<PathBuf>) -> Result<PathBuf> {
    if dir.is_empty() {
        return Err(Error::new("the setting dir is empty"));
    }
    let in_home = match dir.strip_prefix('~') {
        Some("") => home,
        Some(rest) => rest
            .strip_prefix('/')
            .and_then(|rest| Some(home?.join(rest))),
        None => None,
    };
    let path = in_home.unwrap_or_else(|| PathBuf::from(dir));
    std::path::absolute(&path).map_err(|error| Error::io("resolve", Path::new(dir), &error))
}

export_plugin! {
    description: "Keeps complete checkpoints in a folder",
    checkpoint_sink: LocalDisk,
    config: "config.schema.json",
}

#[cfg(test)]
mod tests;
