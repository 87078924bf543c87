//! The folder of a run's checkpoints: what they are called, how one gets its place and loses it.

use std::fs;
use std::path::{Path, PathBuf};

use host_core::{Error, Result, Step};

use super::manifest::sync;

/// What ends the name of a folder that is no checkpoint yet.
const PARTIAL: &str = ".partial";
/// What ends the name of one that is none any more.
const PRUNED: &str = ".pruned";

/// What every checkpoint of a run has in common.
#[derive(Debug)]
pub(crate) struct Layout {
    /// The folder that receives the checkpoints.
    pub(crate) folder: PathBuf,
    /// Files with the same content in every checkpoint: (name, content).
    pub(crate) files: Vec<(&'static str, String)>,
    /// How many checkpoints stay; 0 keeps all.
    pub(crate) keep: usize,
}

/// A checkpoint's folder name. The digits keep the names in the steps' order.
pub(super) fn name(step: Step) -> String {
    format!("step-{:06}", step.0)
}

fn step_of(name: &str) -> Option<Step> {
    name.strip_prefix("step-")?.parse().ok().map(Step)
}

/// The newest complete checkpoint in a folder up to a step.
pub(crate) fn newest(folder: &Path, up_to: Step) -> Option<(Step, PathBuf)> {
    let entries = fs::read_dir(folder).ok()?;
    let steps = entries.filter_map(|entry| step_of(&entry.ok()?.file_name().to_string_lossy()));
    let newest = steps.filter(|&step| step <= up_to).max()?;
    Some((newest, folder.join(name(newest))))
}

impl Layout {
    /// Where the checkpoint of this step is put together.
    pub(super) fn partial(&self, step: Step) -> PathBuf {
        self.hidden(step, PARTIAL)
    }

    fn hidden(&self, step: Step, suffix: &str) -> PathBuf {
        self.folder.join(format!(".{}{suffix}", name(step)))
    }

    /// Removes what a killed process left: checkpoints half written or half removed.
    pub(super) fn sweep(&self) {
        for name in self.names() {
            if name.starts_with(".step-") && (name.ends_with(PARTIAL) || name.ends_with(PRUNED)) {
                // What stays is in nobody's way: it is not taken for a checkpoint.
                let _ = fs::remove_dir_all(self.folder.join(name));
            }
        }
    }

    /// Gives the folder `partial` its place by one rename. Where a checkpoint of the same step
    /// stands, it goes.
    pub(super) fn put(&self, partial: &Path, step: Step) -> Result<PathBuf> {
        let path = self.folder.join(name(step));
        let old = self.hidden(step, PRUNED);
        let replaces = path.exists();
        let place = || {
            if replaces {
                fs::rename(&path, &old)?;
            }
            fs::rename(partial, &path).inspect_err(|_| {
                if replaces {
                    let _ = fs::rename(&old, &path);
                }
            })?;
            sync(&self.folder)
        };
        place().map_err(|error| Error::io("move the checkpoint into place", &path, &error))?;
        if replaces {
            let _ = fs::remove_dir_all(old);
        }
        Ok(path)
    }

    /// Removes the oldest checkpoints beyond `keep`, but not the newest nor any that is needed.
    pub(super) fn prune(&self, newest: Step, is_needed: &dyn Fn(Step) -> bool) {
        if self.keep == 0 {
            return;
        }
        let names = self.names();
        let mut steps: Vec<Step> = names.iter().filter_map(|name| step_of(name)).collect();
        steps.sort_unstable();
        let excess = steps.len().saturating_sub(self.keep);
        for &step in &steps[..excess] {
            if step != newest && !is_needed(step) {
                // It stops being a checkpoint by one rename; what cannot be removed goes when the
                // run is resumed.
                let doomed = self.hidden(step, PRUNED);
                if fs::rename(self.folder.join(name(step)), &doomed).is_ok() {
                    let _ = fs::remove_dir_all(doomed);
                }
            }
        }
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    }
}
